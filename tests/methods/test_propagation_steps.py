"""What propagation hands to its refinement, and how it chooses its background score."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.propagation import task as module
from dhr_lightning.methods.propagation.task import PropagationTask
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold
from dhr_lightning.steps import get_method
from tests.pipeline_workspace import Lines
from tests.task_samples import NAMES, make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


def plain_task(**options: Any) -> PropagationTask:
    return make_task("PropagationTask", **{"refine": "none", "background": 0.3, **options})


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
    task, seen = plain_task(background=0.4), Refinement()
    task.refiner = seen
    task.predict_step(batch, 0)
    assert seen.image is batch["pixels"]
    assert seen.valid is batch["valid"]
    assert seen.present.tolist() == [[True, True, True], [True, True, False]]
    expected = torch.cat([torch.full((2, 1, 32, 48), 0.4), batch["inputs"]["cam"]], 1)
    torch.testing.assert_close(seen.score, expected / expected.sum(1, keepdim=True))


@torch.no_grad()
def test_a_class_that_an_image_lacks_never_wins_whatever_the_refinement_says(batch: Batch):
    task = plain_task()
    task.refiner = lambda image, score, present, *, valid: torch.where(present[:, :, None, None], score, 9.0)
    cam = torch.rand(2, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    assert set(task.masks(batch, cam)[1].unique().tolist()) == {0, 2}


@torch.no_grad()
def test_without_background_the_shares_are_those_of_the_tags():
    task, seen = plain_task(class_names=NAMES[1:], has_background=False), Refinement()
    task.refiner, batch = seen, make_batch([[0, 2]], [(8, 8)], offset=0)
    cam = torch.zeros(1, 2, 16, 16)
    cam[:, 0, :8], cam[:, 1, :4] = 0.6, 0.2
    masks = task.masks(batch, cam)
    assert seen.score[0, :, 0, 0].tolist() == pytest.approx([0.75, 0.25])
    assert seen.score[0, :, 6, 0].tolist() == pytest.approx([1, 0])
    assert seen.score[0, :, 12, 0].tolist() == [0, 0]  # no class at all is no division by zero
    assert masks[0, 0, 0] == 0


@torch.no_grad()
def test_confident_labels_get_the_photo_the_maps_and_the_refinement(batch: Batch, monkeypatch: pytest.MonkeyPatch):
    task, seen = plain_task(confident={"foreground": 0.6, "background": 0.1}), {}

    def labels(image: Tensor, score: Tensor, classes: ImageClasses, **options: Any) -> str:
        seen.update(options, image=image, score=score, keys=classes.keys, valid=classes.valid)
        return "labels"

    monkeypatch.setattr(module, "confident_labels", labels)
    assert task.masks(batch, batch["inputs"]["cam"]) == "labels"
    assert seen["image"] is batch["pixels"]
    assert seen["score"] is batch["inputs"]["cam"]
    assert seen["keys"].tolist() == [[1, 3], [2, -1]]
    assert seen["valid"] is batch["valid"]
    assert seen["refine"] is task.refiner
    assert (seen["thresholds"].foreground, seen["thresholds"].background) == (0.6, 0.1)


EXPONENTS = [0.5, 1, 3.0]


@torch.no_grad()
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("background", ["auto", 0.3])
def test_the_background_may_be_a_power_of_what_the_maps_leave(batch: Batch, exponent: float, background: Any):
    task, seen = plain_task(background=background, background_exponent=exponent), Refinement()
    task.refiner, cam = seen, batch["inputs"]["cam"]
    masks = task.masks(batch, cam)
    expected = torch.cat([(1 - cam.amax(1, keepdim=True)) ** exponent, cam], 1)
    torch.testing.assert_close(seen.score, expected / expected.sum(1, keepdim=True))
    constant = plain_task(background=task.background)  # unrefined, the threshold that is recorded says the same
    assert torch.equal(masks, constant.masks(batch, cam))


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_a_power_is_recorded_with_its_threshold_and_nothing_is_chosen(exponent: float):
    task = plain_task(background="auto", background_exponent=exponent)
    run = Run(task)
    task.on_predict_start()
    assert run.asked == []
    info = task.inference_info()
    assert set(info) == {"background", "background_rule"}
    assert info["background_rule"] == f"(1 - CAM)^{exponent:g}"
    assert (1 - info["background"]) ** exponent == pytest.approx(info["background"], abs=1e-6)


@pytest.mark.parametrize("exponent", [0, -1.0])
def test_an_exponent_of_the_background_is_positive(exponent: float):
    with pytest.raises(ConfigError, match=rf"model\.init_args\.background_exponent > 0, but got {exponent}\."):
        plain_task(background_exponent=exponent)


@pytest.mark.parametrize("method", ["crf", "pamr"])
def test_the_exponent_is_of_the_prediction_alone(method: str):
    assert "background_exponent" in get_method(method).spec.predict_only


class Run:
    """A trainer whose datamodule has 300 images; two batches of two of them are made, whatever is asked."""

    def __init__(self, task: PropagationTask) -> None:
        self.asked, self.gradients = [], []
        datamodule = SimpleNamespace(records={"train": list(range(300))}.__getitem__, step="propagation")
        task._trainer = SimpleNamespace(datamodule=datamodule)
        task.whole_batches = self.batches

    def batches(self, records: list[int], what: str) -> Iterator[Batch]:
        self.asked.append((records, what))
        for batch in two_batches():
            self.gradients.append(torch.is_grad_enabled())
            yield batch


def two_batches() -> Iterator[Batch]:
    """The CAMs say something in the padding too, where nobody may look."""
    for power in (1, 3):
        batch = make_batch([[1, 3], [2]], [(32, 48), (24, 36)])
        batch["inputs"]["cam"] = batch["inputs"]["cam"] ** power
        batch["inputs"]["cam"][1, :, 24:], batch["inputs"]["cam"][1, :, :, 36:] = 0.99, 0.99
        yield batch


def expected_threshold() -> float:
    """The edge with the largest variance between its two sides, over the pixels inside the images of two batches."""
    best = [
        batch["inputs"]["cam"][index, :, :height, :width].amax(0).flatten()
        for batch in two_batches()
        for index, (height, width) in enumerate([(32, 48), (24, 36)])
    ]
    values, spread = torch.cat(best).double(), {}
    middle = ((values * 256).floor().clamp(max=255) + 0.5) / 256
    for edge in range(1, 256):
        low, high = middle[middle < edge / 256], middle[middle > edge / 256]
        if len(low) and len(high):
            spread[edge / 256] = len(low) * len(high) * float(low.mean() - high.mean()) ** 2
    return max(spread, key=spread.__getitem__)


def test_the_background_score_is_chosen_once_from_the_pixels_of_some_images(lines: Lines):
    task = plain_task(background="auto")
    run, wanted = Run(task), expected_threshold()
    task.on_predict_start()
    assert task.background == pytest.approx(wanted, abs=1e-3)
    assert 0.05 < wanted < 0.95
    ((records, what),) = run.asked
    assert (len(records), records[:3], what) == (128, [0, 2, 4], "background score")
    assert run.gradients == [False] * 2
    assert task.inference_info() == {"background": task.background, "background_rule": "Otsu, 128 training images"}
    assert lines.messages == [f"background score {task.background:.3f}: Otsu's threshold of 128 training CAMs"]
    assert len(run.asked) == 1


def test_a_run_that_had_nothing_to_predict_still_records_its_score(lines: Lines):
    task = plain_task(background="auto")
    assert task.inference_info() == {}
    run = Run(task)
    assert 0 < task.inference_info()["background"] < 1
    assert len(run.asked) == 1


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"background": 0.3}, {"background": 0.3, "background_rule": "given"}),
        ({"background": "auto", "class_names": NAMES[1:], "has_background": False}, {}),
    ],
)
def test_nothing_is_chosen_where_a_score_is_given_or_not_needed(options: dict[str, Any], recorded: dict[str, Any]):
    task = plain_task(**options)
    run = Run(task)
    task.on_predict_start()
    assert run.asked == []
    assert task.inference_info() == recorded


@torch.no_grad()
def test_before_a_choice_images_are_judged_by_their_own_pixels():
    """The padding of the second image holds activations that would move the threshold."""
    task, seen = plain_task(background="auto"), Refinement()
    task.refiner, batch = seen, next(two_batches())
    task.predict_step(batch, 0)
    cam = batch["inputs"]["cam"]
    counts = foreground_histogram(cam[:1]).sum(0) + foreground_histogram(cam[1:, :, :24, :36]).sum(0)
    score = seen.score[0, :, 0, 0]
    threshold = float(score[0] / score[1:].sum() * cam[0, :, 0, 0].sum())
    assert threshold == pytest.approx(float(otsu_threshold(counts)), rel=1e-4)


@pytest.mark.parametrize(("background", "allowed"), [(0.001, True), (0.999, True), (0, False), (1, False)])
def test_the_background_score_is_between_zero_and_one(background: float, allowed: bool):
    if allowed:
        assert make_task("PropagationTask", background=background).background == background
        return
    with pytest.raises(ConfigError, match=r"background in \(0, 1\) or auto"):
        make_task("PropagationTask", background=background)
