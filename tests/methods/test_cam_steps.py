"""What stage 1 hands to its refinement, how it chooses its background score, and where maps lie in an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dhr_lightning.tasks import cam as module
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold
from tests.pipeline_workspace import Lines
from tests.task_samples import NAMES, make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


class Brightness(nn.Module):
    """Maps of four classes: channels of the mean colour of each cell of four pixels, and their mean."""

    def forward(self, image: Tensor) -> Tensor:
        cells = F.avg_pool2d(image, 4)
        return torch.cat([cells, cells.mean(1, keepdim=True)], 1).relu()


def bright_task(**options: Any) -> CAMTask:
    task = make_task("CAMTask", **{"refine": "none", "background": 0.3, **options})
    task.network = Brightness()
    return task


class Refinement:
    """Keeps what it is given, and gives the scores back."""

    def __call__(self, image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor) -> Tensor:
        self.image, self.score, self.present, self.valid = image, score, present, valid
        return score


@pytest.fixture
def batch() -> Batch:
    return make_batch([[1, 3], [2]], [(32, 48), (24, 36)])


@torch.no_grad()
def test_the_refinement_gets_the_photo_the_shares_of_the_classes_and_the_image_area(batch: Batch):
    task, seen = bright_task(background=0.4), Refinement()
    task.refiner = seen
    classes = task.tagged(batch)
    cam = torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    task.base_masks(batch, cam, classes)
    assert seen.image is batch["pixels"]
    assert seen.valid is batch["valid"]
    assert seen.present.tolist() == [[True, True, True], [True, True, False]]
    full = F.interpolate(cam, (32, 48), mode="bilinear", align_corners=False) * classes.present[:, :, None, None]
    expected = torch.cat([torch.full((2, 1, 32, 48), 0.4), full], 1)
    torch.testing.assert_close(seen.score, expected / expected.sum(1, keepdim=True))


@torch.no_grad()
def test_a_class_that_an_image_lacks_never_wins_whatever_the_refinement_says(batch: Batch):
    task = bright_task()
    task.refiner = lambda image, score, present, *, valid: torch.where(present[:, :, None, None], score, 9.0)
    classes = task.tagged(batch)
    cam = torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    mask = task.base_masks(batch, cam, classes)[1]
    assert set(mask.unique().tolist()) == {0, 2}


@torch.no_grad()
def test_without_background_the_shares_are_those_of_the_tags():
    task, seen = bright_task(class_names=NAMES[1:], has_background=False), Refinement()
    task.refiner, batch = seen, make_batch([[0, 2]], [(8, 8)], offset=0)
    classes = task.tagged(batch)
    cam = torch.zeros(1, 2, 16, 16)
    cam[:, 0, :8], cam[:, 1, :4] = 0.6, 0.2
    masks = task.base_masks(batch, cam, classes)
    assert seen.score[0, :, 0, 0].tolist() == pytest.approx([0.75, 0.25])
    assert seen.score[0, :, 6, 0].tolist() == pytest.approx([1, 0])
    assert seen.score[0, :, 12, 0].tolist() == [0, 0]  # no class at all is no division by zero
    assert masks[0, 0, 0] == 0


@torch.no_grad()
def test_confident_labels_get_the_photo_the_maps_and_the_refinement(batch: Batch, monkeypatch: pytest.MonkeyPatch):
    task, seen = bright_task(confident={"foreground": 0.6, "background": 0.1}), {}

    def labels(image: Tensor, score: Tensor, classes: ImageClasses, **options: Any) -> str:
        seen.update(options, image=image, score=score, classes=classes)
        return "labels"

    monkeypatch.setattr(module, "confident_labels", labels)
    classes = task.tagged(batch)
    cam = torch.rand(2, 2, 8, 12)
    assert task.base_masks(batch, cam, classes) == "labels"
    assert seen["image"] is batch["pixels"]
    torch.testing.assert_close(seen["score"], F.interpolate(cam, (32, 48), mode="bilinear"))
    assert seen["classes"] is classes
    assert classes.valid is batch["valid"]
    assert seen["refine"] is task.refiner
    assert (seen["thresholds"].foreground, seen["thresholds"].background) == (0.6, 0.1)


@torch.no_grad()
def test_maps_are_the_tagged_channels_between_zero_and_one_on_the_grid_of_the_canvas(batch: Batch):
    task = bright_task(cam_stride=2, scales=[1.0])
    batch["image"] = torch.rand(2, 3, 32, 48) * batch["valid"][:, None]
    classes = task.tagged(batch)
    maps = task.compact_cam(batch, classes)
    assert maps.shape == (2, 2, 16, 24)
    raw = F.interpolate(Brightness()(batch["image"]), (16, 24), mode="bilinear", align_corners=False)
    expected = raw[0, [0, 2]] / raw[0, [0, 2]].amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps[0], expected, atol=1e-4, rtol=1e-4)
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1


@torch.no_grad()
def test_a_mirrored_photo_has_mirrored_maps():
    """A network that tells left from right shows that the mirror is part of the sum."""
    task = bright_task(scales=[1.0, 0.5])
    right = torch.linspace(0.1, 1, 8)
    task.network.register_forward_hook(lambda _, __, maps: maps * F.interpolate(right[None, None], maps.shape[-1])[0])
    batch = make_batch([[1, 4]], [(32, 32)])
    batch["image"] = batch["pixels"] / 255
    classes = task.tagged(batch)
    found = task.compact_cam(batch, classes)
    mirrored = task.compact_cam({**batch, "image": batch["image"].flip(-1)}, classes)
    torch.testing.assert_close(mirrored.flip(-1), found)


@torch.no_grad()
def test_files_hold_the_cells_that_touch_the_image():
    batch = make_batch([[1, 3], [2], [4]], [(32, 48), (21, 33), (17, 16)])
    batch["image"] = torch.rand(batch["image"].shape)
    task = bright_task()
    found = task.predict_step(batch, 0)
    classes = task.tagged(batch)
    maps = task.compact_cam(batch, classes)
    grids = [(8, 12), (6, 9), (5, 4)]
    for index, ((key, cam), grid, tags) in enumerate(zip(found["cam"], grids, [[1, 3], [2], [4]], strict=True)):
        assert key.tolist() == tags
        assert torch.equal(cam, maps[index, : len(tags), : grid[0], : grid[1]])
    assert [tuple(mask.shape) for (mask,) in found["base_mask"]] == [(32, 48), (21, 33), (17, 16)]
    batch["geometry"] = batch["geometry"][:2]
    with pytest.raises(ValueError, match="zip"):
        task.predict_step(batch, 0)


class Run:
    """A trainer whose datamodule has 300 images; batches of two are made of two of them, whatever is asked."""

    def __init__(self, task: CAMTask) -> None:
        self.contexts = 0
        self.task, self.asked, self.modes = task, [], []
        task._trainer = SimpleNamespace(
            datamodule=SimpleNamespace(records=lambda split: list(range(300)) if split == "train" else None),
            precision_plugin=SimpleNamespace(forward_context=self.precision),
        )
        task.whole_batches = self.batches

    @contextmanager
    def precision(self) -> Iterator[None]:
        self.contexts += 1
        yield

    def batches(self, records: list[int], what: str) -> Iterator[Batch]:
        self.asked.append((records, what))
        for index in range(2):
            batch = make_batch([[1, 3], [2]], [(32, 48), (24, 36)])
            batch["image"] = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(index)) ** 3
            self.modes.append((self.task.training, torch.is_grad_enabled()))
            yield batch


def expected_threshold(task: CAMTask) -> float:
    """Otsu's threshold of the pixels in the images, of two batches."""
    counts = torch.zeros(256, dtype=torch.int64)
    for index in range(2):
        image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(index)) ** 3
        batch = make_batch([[1, 3], [2]], [(32, 48), (24, 36)])
        batch["image"] = image
        classes = task.tagged(batch)
        maps = task.compact_cam(batch, classes)
        for one, (height, width) in zip(maps, [(8, 12), (6, 9)], strict=True):
            counts += foreground_histogram(one[None, :, :height, :width]).sum(0)
    return float(otsu_threshold(counts))


def test_the_background_score_is_chosen_once_from_the_pixels_of_some_images(lines: Lines):
    task = bright_task(background="auto").train()
    run = Run(task)
    with torch.no_grad():
        wanted = expected_threshold(task)
    task.on_predict_start()
    assert task.background == pytest.approx(wanted)
    assert 0.05 < wanted < 0.95
    ((records, what),) = run.asked
    assert (len(records), records[:3], what) == (128, [0, 2, 4], "background score")
    assert run.contexts == 2
    assert run.modes == [(False, False)] * 2
    assert task.inference_info() == {"background": task.background, "background_rule": "Otsu, 128 training images"}
    assert lines.messages == [f"background score {wanted:.3f}: Otsu's threshold of 128 training CAMs"]
    assert len(run.asked) == 1


def test_a_run_that_had_nothing_to_predict_still_records_its_score(lines: Lines):
    task = bright_task(background="auto")
    assert task.inference_info() == {}
    run = Run(task)
    assert 0 < task.inference_info()["background"] < 1
    assert len(run.asked) == 1


@pytest.mark.parametrize(
    ("options", "info"),
    [
        ({"background": 0.3}, {"background": 0.3, "background_rule": "given"}),
        ({"background": "auto", "class_names": NAMES[1:], "has_background": False}, {}),
    ],
)
def test_nothing_is_chosen_where_a_score_is_given_or_not_needed(options: dict[str, Any], info: dict[str, Any]):
    task = bright_task(**options)
    run = Run(task)
    task.on_predict_start()
    assert run.asked == []
    assert task.inference_info() == info


@torch.no_grad()
def test_before_a_choice_images_are_judged_by_their_own_pixels(batch: Batch):
    """The padding of the second image holds activations that would move the threshold."""
    task = bright_task(background="auto")
    seen = Refinement()
    task.refiner = seen
    classes = task.tagged(batch)
    cam = torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(0)) ** 2
    cam[1, :, 6:], cam[1, :, :, 9:], cam[1, 1] = 0.9, 0.9, 0
    task.base_masks(batch, cam, classes)
    counts = foreground_histogram(cam[:1]).sum(0) + foreground_histogram(cam[1:, :, :6, :9]).sum(0)
    score = seen.score[0, :, 0, 0]
    threshold = float(score[0] / score[1:].sum() * F.interpolate(cam, (32, 48), mode="bilinear")[0, :, 0, 0].sum())
    assert threshold == pytest.approx(float(otsu_threshold(counts)), rel=1e-4)


@pytest.mark.parametrize(("background", "allowed"), [(0.001, True), (0.999, True), (0, False), (1, False)])
def test_the_background_score_is_between_zero_and_one(background: float, allowed: bool):
    if allowed:
        assert make_task("CAMTask", background=background).background == background
        return
    with pytest.raises(ConfigError, match=r"background in \(0, 1\) or auto"):
        make_task("CAMTask", background=background)
