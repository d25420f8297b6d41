"""Every shipped recipe is built: its networks, one training step (in bfloat16 where that pays), refresh, prediction."""

from typing import Any

import pytest
import torch
from segmentation_models_pytorch.encoders import encoders

from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features.fitted.task import FittedTask
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.masks.mars.task import MARSTask
from dhr_lightning.methods.propagation.affinity import AffinityTask
from dhr_lightning.models.wide_resnet38 import WIDE_RESNET38
from dhr_lightning.ops import bfloat16
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.recipe import shipped_recipes
from dhr_lightning.pipeline.request import Request
from tests.task_samples import NAMES, make_batch, predicting, training_loss

DATA = {name: name.partition("/")[2].partition("_")[0] for name in shipped_recipes() if name.startswith("paper/")}
ELSEWHERE = ("frozen", "tag_head", "light", "rebalance_stored", "light_dhr")  # test_frozen_built.py
PAYS = bfloat16.pays(torch.device("cpu"))  # on a processor that emulates it no fit computes in it, and hours go by here
WITHOUT_TRAINING = ("PropagationTask", "MARSTask", "RebalanceTask", "FittedTask", "StegoTask")


def different_steps() -> list[Any]:
    """Each step of the shipped recipes whose task has other arguments than those before."""
    found = {}
    for name in shipped_recipes():
        data = DATA.get(name, "context" if name == "no_background" else "voc")
        root = "/nowhere"  # planning reads no file of a benchmark
        for step in make_plan(Request(name, data, root)).steps:
            identity = step.identity
            if identity.spec.name in ELSEWHERE:
                continue
            arguments = (
                {**identity.arguments, "pretrained": False}
                if "pretrained" in identity.arguments
                else identity.arguments
            )
            key = digest_config({"task": identity.spec.task, "arguments": dict(arguments)})
            found.setdefault(key, pytest.param(identity.spec, dict(arguments), id=f"{name}:{step.name}"))
    return list(found.values())


@pytest.mark.parametrize(("spec", "arguments"), different_steps())
def test_every_step_of_every_recipe_can_be_built_trained_and_used(
    spec: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    monkeypatch.setitem(encoders[WIDE_RESNET38], "params", {"narrow": 8})  # at its full width it takes its time
    if spec.name == "advcam":
        arguments = {**arguments, "climb": {"iterations": 2}}
    task: BaseTask = spec.task_class()(class_names=NAMES, **arguments)
    task.configure_model()
    batch = make_batch([[1, 2], [3]], [(64, 64), (64, 64)])
    if isinstance(task, AffinityTask):
        task._keep(batch, batch["inputs"]["masks"])
    if spec.task_name not in WITHOUT_TRAINING:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=PAYS):
            loss = training_loss(task, batch)
        assert loss.isfinite()
        loss.backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in task.network.parameters())
    if isinstance(task, MARSTask):
        task.training_step(batch, 0)
        task.on_train_epoch_end()
    if isinstance(task, FittedTask):
        task.network.head.fit(torch.rand(2000, task.network.backbone(batch[task.network.source]).shape[1]), seed=0)
    predicting(task.eval(), "val")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=PAYS):
        if isinstance(task, DHRTask):
            assert task.pseudo_masks(batch).mask.shape == (2, 64, 64)
        found = task.predict_step(batch, 0)
    assert set(found) <= set(spec.writes)
    assert {len(one) for one in found.values()} == {2}


@pytest.mark.parametrize(
    ("step", "method"),
    [("cam", "seam"), ("cam", "sfc"), ("cam", "advcam"), ("propagation", "irn"), ("propagation", "psa")],
)
def test_methods_that_are_swapped_into_photos_have_its_size(step: str, method: str):
    identity = make_plan(Request("photos", "voc", "/nowhere", swaps={step: method}))[step].identity
    assert identity.arguments["backbone"] == "mobilenet_v2"  # published: a ResNet-50
    assert identity.config["data"]["crop_size"] == 256
    assert identity.config["trainer"]["precision"] == "32-true"
