"""MARS and the panels on stored features; datasets without masks or without a background class."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.callbacks.panels import draw_panel
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh
from dhr_lightning.data import files
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.methods.base import BaseTask
from tests.stored_samples import (
    CAMS,
    MASKS,
    as_run,
    features_of,
    fit,
    last,
    predict,
    put_cams,
    put_masks,
    stored_module,
    task_on,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
READS = {
    "tag_head": {},
    "light": {"masks": MASKS},
    "rebalance_stored": {"masks": MASKS, "cam": CAMS},
    "light_dhr": {"masks": MASKS, "cam": CAMS},
    "mars": {"masks": MASKS},
}


def module_of(root: Path, folder: Path, method: str) -> WSSSDataModule:
    datamodule = stored_module(root, folder, method, inputs=READS[method])
    put_masks(datamodule)
    put_cams(datamodule)
    return datamodule


def run(task: BaseTask, datamodule: WSSSDataModule, folder: Path) -> dict[str, list[torch.Tensor]]:
    """Fit, if the method fits, and predict."""
    callbacks = [PseudoMaskRefresh()] if datamodule.spec.has_rounds else []
    if datamodule.spec.fits:
        fit(task, datamodule, folder, *callbacks, epochs=1)
    return predict(task, datamodule, folder)


@pytest.mark.parametrize("taps", [["keys"], ["keys", "block1"], None])
def test_mars_compares_the_layers_that_are_named(tiny_voc: Path, tmp_path: Path, taps: list[str] | None):
    """Centroids have as many channels as these layers, in their order: as of features that hold nothing else."""
    datamodule = module_of(tiny_voc, tmp_path / "named", "mars")
    named = task_on(datamodule, taps=taps, refine="none")
    found = run(named, datamodule, tmp_path)
    channels = {None: range(7), ("keys",): range(4, 7), ("keys", "block1"): [4, 5, 6, 0, 1, 2, 3]}
    chosen = list(channels[None if taps is None else tuple(taps)])
    other = stored_module(tiny_voc, tmp_path / "cut", "mars", inputs=READS["mars"], taps=None)
    put_masks(other)
    for split in ("train", "val"):
        for record in other.records(split):
            np.save(other.store.path("uss/1a2b/features", split, record.id), features_of(record)[chosen])
    task = task_on(other, refine="none")
    expected = run(task, other, tmp_path)
    assert named.centroids.shape == (21, len(chosen))
    torch.testing.assert_close(named.centroids, task.centroids)
    for name, (mask,) in expected.items():
        assert torch.equal(found[name][0], mask)


@pytest.mark.parametrize(
    ("method", "titles"),
    [("tag_head", 2), ("light", 4), ("light_dhr", 6), ("mars", 3)],
)
def test_panels_show_what_a_task_on_stored_features_reads_and_says(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, titles: int
):
    """Photo and truth; masks, CAMs and current masks where there are some; predictions of those that segment."""
    datamodule = module_of(tiny_voc, tmp_path, method)
    task, shown = task_on(datamodule, **({"gate": True} if method == "light" else {})), {}
    callbacks = [PseudoMaskRefresh()] if method == "light_dhr" else []
    fit(task, datamodule, tmp_path, *callbacks, epochs=1)
    monkeypatch.setattr(
        "dhr_lightning.callbacks.panels.panel",
        lambda rows, names, *_: shown.update(titles=names, rows=rows) or np.zeros((1, 1, 3), np.uint8),
    )
    task.train()
    draw_panel(task, datamodule, 2)
    assert task.training
    assert len(shown["titles"]) == titles
    assert len(shown["rows"]) == 2
    assert ("prediction" in shown["titles"]) == method.startswith("light")
    assert "features" not in shown["titles"]


def without_masks(datamodule: WSSSDataModule) -> None:
    for split in ("train", "val"):
        datamodule._records[split] = [replace(one, gt_mask=None) for one in datamodule.records(split)]


@pytest.mark.parametrize("method", ["tag_head", "light", "rebalance_stored", "light_dhr"])
def test_tags_are_enough_and_nothing_reads_the_truth(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    datamodule = module_of(tiny_voc, tmp_path, method)
    expected = run(task_on(datamodule, refine="none") if "dhr" in method else task_on(datamodule), datamodule, tmp_path)
    other = stored_module(tiny_voc, tmp_path / "tags", method, inputs=READS[method])
    put_masks(other)
    put_cams(other)
    without_masks(other)

    def refuse(path: Path) -> np.ndarray:
        raise AssertionError(f"read {path}")

    monkeypatch.setattr(files, "read_truth", refuse)  # every reader of true masks ends there
    found = run(task_on(other, refine="none") if "dhr" in method else task_on(other), other, tmp_path / "tags")
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert all(torch.equal(one, two) for one, two in zip(found[name], tensors, strict=True))


CLASSES = ClassSet(("sky", "grass", "cat", "dog"), has_background=False)


def no_background(root: Path, folder: Path, method: str) -> WSSSDataModule:
    """The photos with four classes of which each image has two, and every pixel one of them."""
    datamodule = stored_module(root, folder, method, inputs=READS[method])
    datamodule.info = replace(datamodule.info, classes=CLASSES)
    for split in ("train", "val"):
        records = datamodule.records(split)
        datamodule._records[split] = [
            Record(one.id, one.image, (index % 2, 2 + index % 2)) for index, one in enumerate(records)
        ]
    for address in (MASKS, CAMS):
        records = datamodule.records("train")
        identity = Manifest.create(address, "voc", "train", ids=[one.id for one in records], settings={})
        with datamodule.writer(identity, owner=True) as writer:
            for record in records:
                _write(writer, record, masks=address == MASKS)
            writer.seal()
    return datamodule


def _write(writer: ArtifactWriter, record: Record, *, masks: bool) -> None:
    height, width = files.image_size(record.image)
    if masks:
        left = np.arange(width) < width // 2
        writer.write(record.id, np.where(left, *record.tags).astype(np.uint8)[None].repeat(height, 0))
    else:
        maps = np.linspace(1, 0.1, width // 8, dtype=np.float16)[None].repeat(height // 8, 0)
        writer.write(record.id, np.array(record.tags, np.int16), np.stack([maps, maps[:, ::-1]]))


@pytest.mark.parametrize("method", ["tag_head", "light", "rebalance_stored", "light_dhr"])
def test_a_dataset_without_background_has_tagged_classes_only(tiny_voc: Path, tmp_path: Path, method: str):
    datamodule = no_background(tiny_voc, tmp_path, method)
    options = {"tag_head": {"background": "learnt", "lr": 30.0}, "light": {"lr": 1.0}}.get(method, {"refine": "none"})
    found = run(task_on(datamodule, has_background=False, **options), datamodule, tmp_path)
    tags = {record.id: set(record.tags) for record in datamodule.records("train")}
    train = {name.partition("/")[2]: one for name, one in found.items() if name.partition("/")[2] in tags}
    assert len(train) == (0 if method in ("light", "light_dhr") else 4)
    for image_id, tensors in train.items():
        assert set(tensors[0].unique().tolist()) <= tags[image_id]
    if method == "tag_head":
        assert all(float(maps.max()) == 1 for _, maps in train.values())
    if method == "light_dhr":
        first = datamodule.store.folder("light_dhr/mask/round_00", "train")
        assert len(list(first.glob("*.png"))) == 4
        assert {int(one.max()) for (one,) in found.values()} <= {0, 1, 2, 3}


def test_the_gate_of_a_dataset_without_background_passes_no_class(tiny_voc: Path, tmp_path: Path):
    head_module = no_background(tiny_voc, tmp_path / "head", "tag_head")
    head = task_on(head_module, has_background=False)
    fit(head, head_module, tmp_path / "head", epochs=1)
    datamodule = no_background(tiny_voc, tmp_path, "light")
    datamodule.inputs["tagger"] = "tag_head/1a2b"
    as_run(datamodule, last(tmp_path / "head"))
    task = task_on(datamodule, has_background=False, gate=True)
    fit(task, datamodule, tmp_path, epochs=1)
    predict(task, datamodule, tmp_path)
    features = torch.randn(1, 7, 3, 4)
    gate = task.gate(features)
    assert gate.shape == (1, 4)
    assert bool((gate < 1).all())
    batch = {"inputs": {"features": features}, "pixels": torch.zeros(1, 3, 24, 32)}
    plain = F.interpolate(task.network(features).softmax(1) * gate[..., None, None], (24, 32), mode="bilinear")
    torch.testing.assert_close(task.probability(batch), plain)
