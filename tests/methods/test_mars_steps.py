"""MARS sees images and not their padding, hands the photo to its refinement, and keeps what settings ask for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import CheckpointError
from dhr_lightning.methods.masks.mars import task as mars
from dhr_lightning.methods.masks.mars.task import MARSTask
from tests.task_samples import make_batch, make_task


def padded(batch: Batch, size: int) -> Batch:
    """The same images on a larger canvas; masks and features of the padding would count if they were looked at."""
    height, width = batch["pixels"].shape[-2:]
    right, below = size - width, size - height
    more, inputs = dict(batch), batch["inputs"]
    more["pixels"] = F.pad(batch["pixels"], (0, right, 0, below))
    more["valid"] = F.pad(batch["valid"], (0, right, 0, below))
    more["inputs"] = {
        "masks": F.pad(inputs["masks"], (0, right, 0, below), value=1),
        "features": F.pad(inputs["features"], (0, right // 4, 0, below // 4), value=3.0),
    }
    return Batch(**more)


def fitted(*batches: Batch, **options: Any) -> MARSTask:
    task = make_task("MARSTask", refine="none", **options)
    for index, batch in enumerate(batches):
        others = {**batch, "id": [f"{index}/{name}" for name in batch["id"]]}  # each image is seen once in an epoch
        task.training_step(others, index)
    task.on_train_epoch_end()
    return task


@pytest.mark.parametrize("weighting", ["cells", "centroids"])
def test_centroids_do_not_see_the_padding(weighting: str):
    batch = make_batch([[1, 3], [1, 2]], [(32, 32), (32, 32)])
    one, other = fitted(batch, weighting=weighting), fitted(padded(batch, 64), weighting=weighting)
    torch.testing.assert_close(one.centroids, other.centroids)
    assert one.found.tolist() == other.found.tolist() == [False, True, True, True, False]


def blocks(*values: tuple[int, list[float]]) -> Batch:
    """One image of four quarters: a class and a feature each."""
    batch = make_batch([[1]], [(32, 32)])
    for quarter, (value, feature) in enumerate(values):
        row, column = 16 * (quarter // 2), 16 * (quarter % 2)
        batch["inputs"]["masks"][0, row : row + 16, column : column + 16] = value
        rows, columns = slice(row // 4, row // 4 + 4), slice(column // 4, column // 4 + 4)
        batch["inputs"]["features"][0, :, rows, columns] = torch.tensor(feature)[:, None, None]
    return batch


BACKGROUND, BIAS, TARGET = [1.0, 0, 0, 0, 0, 0], [0.9, 0.4, 0, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]


def test_the_part_of_a_class_that_resembles_background_is_rejected():
    batch = blocks((0, BACKGROUND), (1, BIAS), (1, TARGET), (0, BACKGROUND))
    task = fitted(batch, alpha=0.5)
    torch.testing.assert_close(F.normalize(task.centroids[1], dim=0), torch.tensor(TARGET), atol=1e-4, rtol=0)
    for rejected, value in (("background", 0), ("ignore", 255)):
        task.hparams.rejected = rejected
        ((mask,),) = task.predict_step(batch, 0)["mask"]
        assert mask[:12, 20:].unique().tolist() == [value]
        assert mask[20:, :12].unique().tolist() == [1]  # away from the seam of the features
        assert mask[:16, :16].unique().tolist() == mask[16:, 16:].unique().tolist() == [0]


@pytest.mark.parametrize(("weighting", "kept"), [("cells", TARGET), ("centroids", BIAS)])
def test_the_share_that_is_kept_is_one_of_cells_or_of_centroids(weighting: str, kept: list[float]):
    """Of the farthest centroids one is large in one image, and in another two are small."""
    large = blocks((0, BACKGROUND), (1, TARGET), (1, TARGET), (1, TARGET))
    small = blocks((0, BACKGROUND), (0, BACKGROUND), (0, BACKGROUND), (0, BACKGROUND))
    small["inputs"]["masks"][0, 16:24, 16:24] = 1
    small["inputs"]["features"][0, :, 4:6, 4:6] = torch.tensor(BIAS)[:, None, None]
    task = fitted(large, small, small, small, weighting=weighting, alpha=0.5, k_fg=1)
    centroid = F.normalize(task.centroids[1], dim=0)
    assert float(centroid @ torch.tensor(TARGET)) > (0.99 if kept is TARGET else 0)
    assert (float(centroid[0]) > 0.1) == (kept is BIAS)


def test_more_clusters_tell_more_parts_apart(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    real = mars.image_centroids

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.update(options, classes=arguments[2])
        return real(*arguments, **options)

    monkeypatch.setattr(mars, "image_centroids", spy)
    task = make_task("MARSTask", k_fg=3, k_bg=1)
    batch = make_batch([[1, 2]], [(32, 32)])
    task.training_step(batch, 0)
    assert (seen["k_fg"], seen["k_bg"], seen["classes"].offset) == (3, 1, 1)
    assert seen["classes"].valid is batch["valid"]
    ((centroids, classes, sizes),) = task._collected.values()
    assert [int((classes == value).sum()) for value in (0, 1, 2)] == [1, 3, 3]
    assert len(centroids) == len(sizes) == 7
    cells = F.interpolate(batch["inputs"]["masks"][:, None].float(), (8, 8), mode="nearest").long()
    assert float(sizes.sum()) == pytest.approx(cells.numel(), abs=1)


def test_the_epoch_forgets_what_it_has_collected():
    batch = make_batch([[1, 3]], [(32, 32)])
    task = fitted(batch)
    first = task.centroids.clone()
    task.training_step(batch, 0)
    task.on_train_epoch_end()
    assert torch.equal(task.centroids, first)
    assert task._collected == {}


@torch.no_grad()
def test_the_refinement_gets_the_photo_and_the_image_area():
    task, seen = fitted(make_batch([[1, 3], [2]], [(32, 48), (24, 36)])), {}

    def refine(image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor) -> Tensor:
        seen.update(image=image, valid=valid)
        return score

    task.refiner = refine
    batch = make_batch([[1, 3], [2]], [(32, 48), (24, 36)])
    task.predict_step(batch, 0)
    assert seen["image"] is batch["pixels"]
    assert torch.equal(seen["valid"], batch["valid"])


@torch.no_grad()
def test_masks_do_not_depend_on_the_canvas():
    batch = make_batch([[1, 3], [1, 2]], [(32, 32), (32, 32)])
    task = fitted(batch)
    for (one,), (other,) in zip(
        task.predict_step(batch, 0)["mask"], task.predict_step(padded(batch, 64), 0)["mask"], strict=True
    ):
        assert torch.equal(one, other)


def test_a_checkpoint_of_other_classes_is_refused():
    task = make_task("MARSTask")
    state = {"centroids": torch.ones(5, 6), "found": torch.ones(5, dtype=torch.bool)}
    with pytest.raises(CheckpointError):
        task.on_load_checkpoint({"state_dict": state, "hyper_parameters": {"class_names": ["background", "cow"]}})
    task.on_load_checkpoint({"state_dict": state})
    task.load_state_dict(state, strict=False)
    assert task.centroids.shape == (5, 6)
    assert task.found.dtype == torch.bool
    assert task.found.all()
