"""An image's result depends on the image, never on its batch: any order, batch size, subset, sizes, orientations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.methods import memory
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.pipeline.command import split_request, stage_main
from dhr_lightning.pipeline.plan import make_plan
from tests.mixed_photos import SIZES, Files, MixedPhotos, largest_difference, randomise
from tests.pipeline_workspace import STAGES
from tests.task_samples import NAMES, make_task

MAP_TOLERANCE = 1e-3  # features and maps are stored in half precision
MASK_TOLERANCE = 1e-3  # share of pixels
TASKS: dict[str, dict[str, Any]] = {
    "CAMTask": {"scales": [1.0, 0.5, 1.5], "backbone": "small32"},
    "SEAMTask": {"scales": [1.0, 0.5]},
    "SFCTask": {"scales": [1.0, 1.5]},
    "AdvCAMTask": {"scales": [1.0, 0.5], "climb": {"iterations": 3}},
    "PropagationTask": {"background": 0.3},
    "PropagationTask by the lattice": {"background": 0.3, "refine": "lattice", "refine_scale": 0.5},
    "PropagationTask by PAMR": {"background": 0.3, "refine": "pamr"},
    "PropagationTask of confident labels": {"confident": {}},
    "IRNTask": {},
    "PSATask": {},
    "FittedTask": {"backbone": "patches"},
    "FittedTask of an encoder": {"backbone": "resnet18", "head": "whitening", "dimension": 8},
    "StegoTask": {"backbone": "vit_tiny_patch16_224", "dimension": 8},
    "CauseTask": {},
    "LeopartTask": {},
    "WSSTask": {"scales": [1.0, 0.5]},
    "WSSTask with a CRF": {"test_crf": {"iterations": 2}},
    "MARSSegmenterTask": {"scales": [1.0]},
    "MARSTask": {},
    "DHRTask": {},
    "DHRTask of the paper": {"rebalance": {"profile": "reference"}, "refine": "lattice"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> MixedPhotos:
    return MixedPhotos(tmp_path_factory.mktemp("photos"))


def prepare(name: str) -> BaseTask:
    task = make_task(name.split()[0], **TASKS[name])
    if name == "MARSTask":
        task.centroids = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
        task.found = torch.ones(5, dtype=torch.bool)
        return task
    randomise(task)
    if hasattr(task, "inference"):  # decisive, as after training: a flat softmax would hide what changes
        task.network.head.weight.data.mul_(50)
    return task


@pytest.fixture(scope="module", params=TASKS)
def alone(request: pytest.FixtureRequest, photos: MixedPhotos) -> tuple[BaseTask, Files]:
    """A task, and what it makes of every photo by itself."""
    task = prepare(request.param)
    found: Files = {}
    with torch.no_grad():
        for index in range(len(SIZES)):
            for kind, files in photos.outputs(task, [index], 1).items():
                found.setdefault(kind, {}).update(files)
    return task, found


chosen_photos = st.lists(st.integers(0, len(SIZES) - 1), min_size=2, unique=True)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chosen=chosen_photos, batch_size=st.integers(2, 8))
@torch.no_grad()
def test_the_result_of_a_photo_is_that_of_the_photo_alone(
    alone: tuple[BaseTask, Files], photos: MixedPhotos, chosen: list[int], batch_size: int
):
    task, expected = alone
    check_files(photos.outputs(task, chosen, batch_size), expected, {photos.records[index].id for index in chosen})


@torch.no_grad()
def test_photos_come_one_at_a_time_where_memory_has_no_room_for_several(
    alone: tuple[BaseTask, Files], photos: MixedPhotos, monkeypatch: pytest.MonkeyPatch
):
    refused: list[int] = []
    monkeypatch.setattr(memory, "within_memory", lambda compute, batch: refused.append(len(batch["id"])))
    task, expected = alone
    everything = list(range(len(SIZES)))
    check_files(photos.outputs(task, everything, 4), expected, {record.id for record in photos.records})
    loaders = photos.datamodule.predict_dataloader()
    together = [len(batch["id"]) for loader in loaders for batch in loader if len(batch["id"]) > 1]
    assert refused == together  # photos come together that share a canvas, which for some tasks none of these do


def check_files(found: Files, expected: Files, ids: set[str]) -> None:
    """The files of some photos are those of each photo alone."""
    assert set(found) == set(expected)
    for kind, files in found.items():
        assert set(files) == ids
        for image_id, arrays in files.items():
            maps, masks = largest_difference(arrays, expected[kind][image_id])
            assert maps <= MAP_TOLERANCE, (kind, image_id)
            assert masks <= MASK_TOLERANCE, (kind, image_id)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_centroids_of_mars_do_not_depend_on_the_batches(photos: MixedPhotos, batch_size: int):
    found = []
    for size in (1, batch_size):
        task = make_task("MARSTask")
        datamodule = photos.attach(task, range(len(SIZES)), size)
        datamodule.batch_size = size
        for index, batch in enumerate(datamodule.train_dataloader()):
            task.training_step(datamodule.on_after_batch_transfer(batch, 0), index)
        task.on_train_epoch_end()
        found.append(task.centroids)
    assert torch.allclose(*found, atol=1e-5)


def test_a_mask_that_is_made_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Alone in its batch now, where it shared one with photos of other sizes before."""
    photos = MixedPhotos(tmp_path / "photos" / "images")
    rows = [f"{record.id},{';'.join(NAMES[tag] for tag in record.tags)}" for record in photos.records]
    (tmp_path / "photos" / "tags.csv").write_text("\n".join(["image,tags", *rows]))
    (tmp_path / "photos.yaml").write_text("data: {dataset: folder, root: photos, options: {holdout: 0}}")
    monkeypatch.chdir(tmp_path)
    arguments = ["dhr", "--data", "photos.yaml", "--overlay", "debug.yaml", "--swap", "uss=patches"]
    plan = make_plan(split_request(arguments))
    assert stage_main(STAGES["stage1_cam"], arguments) == 0
    for image_id in ("photo_0", "photo_5"):
        cam, mask = (
            plan.view.store.path(plan[step].address(kind), "train", image_id)
            for step, kind in (("cam", "cam"), ("propagation", "mask"))
        )
        before, (keys, maps) = read_mask(mask), read_cam(cam)
        mask.unlink()
        cam.unlink()
        assert stage_main(STAGES["stage1_cam"], arguments) == 0
        again, (keys_again, maps_again) = read_mask(mask), read_cam(cam)
        assert keys_again.tolist() == keys.tolist()
        assert np.abs(maps_again.astype(float) - maps.astype(float)).max() <= MAP_TOLERANCE
        assert (again != before).mean() <= MASK_TOLERANCE
