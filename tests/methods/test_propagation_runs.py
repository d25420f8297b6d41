"""Two steps, CAM and propagation, give what one step from photo to mask gives; and what a run of the second leaves."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.callbacks.writers import to_arrays
from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.propagation.task import PropagationTask
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.ops.refine import Refiner
from tests.mixed_photos import SIZES, MixedPhotos, randomise
from tests.pipeline_workspace import Workspace, interrupt_at
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]
BACKGROUND = 0.4
PAMR = ["--swap", "uss=patches", "propagation=pamr"]


def batches_of(photos: MixedPhotos, task: BaseTask) -> Iterator[Batch]:
    datamodule = photos.attach(task, range(len(photos.records)), 1)
    for batch in datamodule.whole_dataloader(datamodule.records("train")):
        yield datamodule.on_after_batch_transfer(batch, 0)


def one_step(task: CAMTask, batch: Batch, refiner: Refiner) -> tuple[Tensor, Tensor]:
    """From photo to mask without a file in between: `(H, W)` class values, and by how much the winner leads."""
    (height, width), (tags,) = batch["geometry"][0].size, batch["tags"].nonzero()[:, 1].split(99)
    canvas = tuple(batch["pixels"].shape[-2:])
    cam = F.interpolate(task.compact_cam(batch, task.tagged(batch)), canvas, mode="bilinear", align_corners=False)
    score = torch.cat([torch.full((1, 1, *canvas), BACKGROUND), cam], 1)
    score = score / score.sum(1, keepdim=True)
    present = torch.ones(1, score.shape[1], dtype=torch.bool)
    refined = refiner(batch["pixels"], score, present, valid=batch["valid"])[0, :, :height, :width]
    best = refined.topk(2, 0)
    return torch.cat([torch.tensor([0]), tags + 1])[best.indices[0]], best.values[0] - best.values[1]


def two_steps(folder: Path, sizes: Sequence[tuple[int, int]]) -> tuple[MixedPhotos, CAMTask]:
    """Photos with the CAMs of a classifier on the disk."""
    photos, task = MixedPhotos(folder, sizes), randomise(make_task("CAMTask"))
    with torch.no_grad():
        for batch in batches_of(photos, task):
            (tensors,) = task.predict_step(batch, 0)["cam"]
            photos.write_cam(batch["id"][0], *to_arrays("cam", tensors))
    return photos, task


@pytest.mark.parametrize("refine", ["none", "lattice", "pamr"])
@torch.no_grad()
def test_two_steps_give_the_masks_of_one_but_for_the_half_precision_of_the_file(tmp_path: Path, refine: str):
    photos, classifier = two_steps(tmp_path / "images", ((64, 64), (96, 32), (32, 64), (64, 96), (128, 64)))
    task = make_task("PropagationTask", refine=refine, background=BACKGROUND)
    for one, two in zip(batches_of(photos, classifier), batches_of(photos, task), strict=True):
        expected, lead = one_step(classifier, one, task.refiner)
        ((found,),) = task.predict_step(two, 0)["mask"]
        assert len(expected.unique()) > 1
        assert bool((lead[found != expected] < 2e-3).all())
        assert (found != expected).float().mean() < 0.005


@torch.no_grad()
def test_two_steps_give_nearly_the_masks_of_one_where_images_do_not_fill_their_canvas(tmp_path: Path):
    """One step lets the padding fade the maps at the border, and its cells are four pixels wide; those of a file lie
    evenly over the image. On maps of random weights, which are rough, that is a few pixels of a hundred.
    """
    photos, classifier = two_steps(tmp_path / "images", SIZES)
    task = make_task("PropagationTask", refine="none", background=BACKGROUND)
    unlike = []
    for one, two in zip(batches_of(photos, classifier), batches_of(photos, task), strict=True):
        expected, _ = one_step(classifier, one, task.refiner)
        unlike.append(float((task.predict_step(two, 0)["mask"][0][0] != expected).float().mean()))
    assert max(unlike) < 0.06
    assert np.mean(unlike) < 0.03


@torch.no_grad()
def test_masks_without_refinement_equal_a_plain_reference(tmp_path: Path):
    """Pixel by pixel from the arrays of the files, whose cells lie evenly over the image."""
    photos, _ = two_steps(tmp_path / "images", SIZES)
    task = make_task("PropagationTask", refine="none", background=BACKGROUND)
    for batch in batches_of(photos, task):
        ((mask,),) = task.predict_step(batch, 0)["mask"]
        keys, maps = read_cam(photos.datamodule.store.path("cam", "train", batch["id"][0]))
        height, width = mask.shape
        for y, x in np.random.default_rng(0).integers(0, (height, width), (60, 2)):
            scores = [BACKGROUND, *(value_at(one.astype(float), y, x, (height, width)) for one in maps)]
            winner = int(np.argmax(scores))
            if sorted(scores)[-1] - sorted(scores)[-2] > 1e-4:
                assert int(mask[y, x]) == ([0, *keys.tolist()])[winner]


@torch.no_grad()
def test_the_order_of_classes_in_a_file_is_no_matter_and_one_that_it_lacks_has_no_pixel(tmp_path: Path):
    photos = MixedPhotos(tmp_path / "images")
    task = make_task("PropagationTask", refine="none", background=BACKGROUND)
    masks = []
    for keys in ([1, 2, 3, 4], [4, 1, 3, 2], [4, 3]):  # of photo_4, which shows all four
        maps = np.zeros((len(keys), 15, 16), np.float16)
        for row, key in enumerate(keys):
            maps[row, :, 4 * key - 4 : 4 * key] = 0.9
        photos.write_cam("photo_4", np.array(keys, np.int16), maps)
        datamodule = photos.attach(task, [4], 1)
        (batch,) = datamodule.whole_dataloader(datamodule.records("train"))
        masks.append(task.predict_step(datamodule.on_after_batch_transfer(batch, 0), 0)["mask"][0][0])
    assert torch.equal(masks[0], masks[1])
    assert [masks[0][30, x].item() for x in (7, 23, 38, 53)] == [1, 2, 3, 4]
    assert [masks[2][30, x].item() for x in (7, 23, 38, 53)] == [0, 0, 3, 4]


def value_at(grid: np.ndarray, y: int, x: int, size: tuple[int, int]) -> float:
    """Bilinear value of cells at the centre of a pixel; the outermost cells go on to the border."""
    places = []
    for pixel, cells, length in zip((y, x), grid.shape, size, strict=True):
        place = min(max((pixel + 0.5) * cells / length - 0.5, 0.0), cells - 1.0)
        low = min(int(place), cells - 2) if cells > 1 else 0
        places.append(((low, 1 - (place - low)), (min(low + 1, cells - 1), place - low)))
    return sum(a * b * grid[i, j] for i, a in places[0] for j, b in places[1])


def test_the_second_step_runs_without_weights_and_leaves_no_fit(workspace: Workspace):
    manifest = workspace.manifest("propagation/train")
    assert manifest.checkpoint is None
    assert workspace.manifest("cam/train").checkpoint is not None
    assert 0 < manifest.info["background"] < 1
    assert manifest.info["background_rule"] == "Otsu, 12 training images"
    assert manifest.info["refine"] in ("pydensecrf", "lattice")
    cam = workspace.place("cam/train")[0]
    assert f"{cam}/train" in manifest.inputs
    assert not list(Path("runs/microworld").glob("crf/*/version_*"))


def test_masks_on_disk_hold_the_tags_of_their_image(workspace: Workspace):
    for record in workspace.plan().view.records("train"):
        mask = read_mask(workspace.path("propagation/train", record.id))
        assert mask.shape == (128, 128)
        assert set(np.unique(mask).tolist()) <= {0, *record.tags}


@pytest.mark.parametrize("options", [[], PAMR], ids=["crf", "pamr"])
def test_a_continued_run_ends_with_the_masks_of_an_undisturbed_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, options: list[str]
):
    """The background score of the images that are left alone would be another one."""
    assert workspace.stage("stage1_cam", options=options) == 0
    address, split = workspace.places(options=options)["propagation/train"]
    folder = workspace.store.folder(address, split)
    before = {path.name: path.read_bytes() for path in folder.glob("train_*.png")}
    info = workspace.store.manifest(address, split).info
    assert len(before) == 12
    for number in range(1, 12):
        workspace.store.path(address, split, f"train_{number:04d}").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dhr_lightning.artifacts.writer.ArtifactWriter.write", interrupt_at(5, address=address))
        assert workspace.stage("stage1_cam", options=options) == 130
    assert 1 < len(list(folder.glob("train_*.png"))) < 12
    assert workspace.stage("stage1_cam", options=options) == 0
    after = {path.name: path.read_bytes() for path in folder.glob("train_*.png")}
    assert after == before
    again = workspace.store.manifest(address, split).info
    assert (again["background"], again["refine"]) == (info["background"], info["refine"])


def test_crf_and_pamr_have_masks_of_their_own(workspace: Workspace):
    assert workspace.stage("stage1_cam", options=PAMR) == 0
    crf, pamr = (workspace.places(options=one)["propagation/train"] for one in ([], PAMR))
    assert (crf[0].split("/")[0], pamr[0].split("/")[0]) == ("crf", "pamr")
    masks = [[read_mask(workspace.store.path(*one, f"train_{k:04d}")) for k in range(1, 13)] for one in (crf, pamr)]
    assert any((one != other).any() for one, other in zip(*masks, strict=True))
    assert workspace.store.manifest(*pamr).info["refine"] == "pamr"
    assert PropagationTask.spec.name == "crf"
