"""Every step on stored features of the shipped recipes, with the settings of its recipe, on a handful of photos."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.recipe import shipped_recipes
from dhr_lightning.pipeline.request import Request
from tests.stored_samples import CAMS, MASKS, as_run, fit, last, predict, put_cams, put_masks, stored_module

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
METHODS = ("tag_head", "light", "rebalance_stored", "light_dhr")


def different_steps() -> list[Any]:
    """Each step on stored features of the shipped recipes whose task has other arguments than those before."""
    found = {}
    for name in (one for one in shipped_recipes() if one.startswith("frozen")):
        for step in make_plan(Request(name, "voc", "/nowhere")).steps:
            identity, arguments = step.identity, dict(step.identity.arguments)
            if identity.spec.name in METHODS:
                key = digest_config({"method": identity.spec.name, "arguments": arguments})
                found.setdefault(key, pytest.param(identity.spec, arguments, id=f"{name}:{step.name}"))
    return list(found.values())


@pytest.mark.parametrize(("spec", "arguments"), different_steps())
def test_every_step_can_be_built_trained_and_used(tiny_voc: Path, tmp_path: Path, spec: Any, arguments: dict[str, Any]):
    addresses = {"masks": MASKS, "cam": CAMS}
    inputs = {port: address for port, address in addresses.items() if port in spec.reads}
    gated = bool(arguments.get("gate"))
    if gated:
        head_module = stored_module(tiny_voc, tmp_path / "head", "tag_head", inputs={})
        fit_task(head_module, tmp_path / "head", {"pooling": {"name": "logsumexp"}})
        inputs["tagger"] = "tag_head/1a2b"
    datamodule = stored_module(tiny_voc, tmp_path, spec.name, inputs=inputs)
    put_masks(datamodule)
    put_cams(datamodule)
    if gated:
        as_run(datamodule, last(tmp_path / "head"))
    if spec.name == "tag_head":
        arguments = {**arguments, "lr": 0.5}  # four photos: their background is learnt from cells that are sure
    task = fit_task(datamodule, tmp_path, arguments)
    found = predict(task, datamodule, tmp_path)
    assert {name.partition("/")[0] for name in found} <= set(spec.writes)
    splits = {split for write in spec.writes.values() if not write.rounds for split in write.splits}
    assert len(found) == 4 * ("train" in splits) + 2 * ("val" in splits)


def fit_task(datamodule: Any, folder: Path, arguments: dict[str, Any]) -> Any:
    """The task of the datamodule's method after a short fit, if it has one."""
    task = datamodule.spec.task_class()(class_names=datamodule.class_names, **arguments)
    callbacks = [PseudoMaskRefresh(every=1)] if datamodule.spec.has_rounds else []
    if datamodule.spec.fits:
        fit(task, datamodule, folder, *callbacks, epochs=2)
        assert all(bool(torch.isfinite(one).all()) for one in task.state_dict().values())
    return task
