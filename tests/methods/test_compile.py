"""Compiled parts of a network: which, when, and that nothing else changes."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dhr_lightning.callbacks.average import WeightAverage
from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.models.compiled import check_compile, compile_network, compiled_parts
from tests.methods.test_training import SGD, Seeded, state
from tests.task_samples import make_batch, make_task

pytestmark = pytest.mark.filterwarnings("ignore")
GRAPHS: list[GraphModule] = []


def counting(graph: GraphModule, inputs: Any) -> Any:
    """A backend that runs what was traced as it is."""
    GRAPHS.append(graph)
    return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a backend that is quick and counts what it compiles."""
    if "counting" not in torch.compiler.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(counting, name="counting")
    torch._dynamo.reset()
    GRAPHS.clear()
    return "counting"


def fitted(name: str, folder: Path, *, compile: bool | str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    task = make_task(name, compile=compile, **SGD, lr=0.05, **options).train()
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[WeightAverage(0.5)], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, datamodule=Seeded(make_batch([[1], [2, 3]], [(64, 64), (64, 64)]), 3))
    return state(task)


@pytest.mark.parametrize("name", ["CAMTask", "WSSTask", "DHRTask"])
def test_a_compiled_fit_gives_the_weights_of_a_plain_one(tmp_path: Path, backend: str, name: str):
    plain = fitted(name, tmp_path, compile=False)
    assert not GRAPHS
    compiled = fitted(name, tmp_path, compile=backend)
    assert GRAPHS
    assert list(compiled) == list(plain)  # names in checkpoints stay
    for key, value in plain.items():
        assert torch.allclose(value, compiled[key], atol=1e-6), key


def test_encoder_and_decoder_are_compiled_or_the_whole_network():
    segmenter, own = make_task("WSSTask").network, nn.Linear(2, 2)
    assert compiled_parts(segmenter) == [segmenter.encoder, segmenter.decoder]
    assert compiled_parts(own) == [own]
    classifier = make_task("CAMTask").network
    assert compiled_parts(classifier) == [classifier.encoder]


def test_only_a_fit_compiles(backend: str):
    """Prediction sees many sizes, and each would be compiled."""
    from lightning.pytorch.trainer.states import TrainerFn

    for mode in TrainerFn:
        task = make_task("WSSTask", compile=backend)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        task._trainer = SimpleNamespace(
            state=SimpleNamespace(fn=mode), strategy=strategy, datamodule=SimpleNamespace(step="baseline")
        )
        task.configure_model()
        task.network.encoder.eval()(torch.zeros(1, 3, 32, 32))
        assert bool(GRAPHS) == (mode == TrainerFn.FITTING), mode
        GRAPHS.clear()
        torch._dynamo.reset()


def test_an_unknown_backend_and_a_missing_compiler_are_refused(monkeypatch: pytest.MonkeyPatch):
    assert (check_compile(False), check_compile(True), check_compile("eager")) == (None, "inductor", "eager")
    with pytest.raises(ConfigError, match=r"compile to be true.*'inducto'. Did you mean inductor"):
        make_task("WSSTask", compile="inducto")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    network = nn.Linear(2, 2)
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler"):
        compile_network(network, "inductor", torch.device("cpu"))
    assert network._compiled_call_impl is None
    compile_network(network, "inductor", torch.device("cuda"))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_inductor_computes_what_the_network_computes():
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 16, 16)
    expected = network(image)
    compile_network(network, "inductor", torch.device("cpu"))
    found = network(image)
    assert torch.allclose(found, expected, atol=1e-5)
    found.sum().backward()
    assert all(one.grad is not None for one in network.parameters())
