import copy

import numpy as np
import pytest
import torch

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.methods.base import cut_masks
from tests.task_samples import NAMES, make_batch, make_task, pick

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


def fitted(**changes: object) -> torch.nn.Module:
    task = make_task("MARSTask", refine="none", **changes)
    task.training_step(make_batch(TAGS, SIZES), 0)
    task.on_train_epoch_end()
    return task


def test_one_centroid_for_each_class_that_occurs():
    task = fitted()
    assert task.centroids.shape == (5, 6)
    assert task.found.tolist()[1:] == [True] * 4
    assert task.centroids[task.found].isfinite().all()


@pytest.mark.parametrize(("rejected", "value"), [("background", 0), ("ignore", 255)])
def test_pixels_are_kept_or_rejected(rejected: str, value: int):
    task, batch = fitted(rejected=rejected), make_batch(TAGS, SIZES)
    masks = task.predict_step(batch, 0)["mask"]
    for (mask,), before, (height, width) in zip(masks, batch["inputs"]["masks"], SIZES, strict=True):
        assert mask.shape == (height, width)
        changed = mask != before[:height, :width]
        assert set(mask[changed].tolist()) <= {value}
        assert not changed[before[:height, :width] == 0].any()


def test_the_state_is_restored_whatever_its_size():
    source, task = fitted(), make_task("MARSTask")
    checkpoint = {"state_dict": source.state_dict(), "hyper_parameters": {"class_names": NAMES}}
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(task.centroids, source.centroids)


def test_masks_without_background_are_refused_with_what_to_do():
    task, batch = make_task("MARSTask", refine="none"), make_batch([[1], [2]], [(32, 32), (32, 32)])
    batch["inputs"]["masks"] = torch.tensor([1, 2])[:, None, None].expand_as(batch["inputs"]["masks"]).contiguous()
    task.training_step(batch, 0)
    with pytest.raises(
        MaskError,
        match=r"None of the masks has a cell of background.*run `python -m dhr_lightning run` with --drop mars",
    ):
        task.on_train_epoch_end()


def test_unusable_settings_are_refused():
    with pytest.raises(ConfigError, match="MARS needs a background class"):
        make_task("MARSTask", class_names=NAMES[1:], has_background=False)
    with pytest.raises(ConfigError, match="background or ignore, but got 'drop'"):
        make_task("MARSTask", rejected="drop")
    with pytest.raises(ConfigError, match=r"threshold in \(0, 1\) or auto, but got 1\.0"):
        make_task("MARSTask", threshold=1.0)
    with pytest.raises(ConfigError, match=r"max_rejected in \[0, 1\], but got 1\.5"):
        make_task("MARSTask", max_rejected=1.5)


def cat_with_a_stripe() -> Batch:
    """A cat whose body is near the background and whose small stripe is far from it; three directions, no noise."""
    batch = make_batch([[1]], [(32, 32)])
    directions = torch.eye(6)
    kinds = torch.zeros(8, 8, dtype=torch.long)
    kinds[2:7, 1:7], kinds[3, 1:4] = 1, 2  # 27 cells of body, 3 of stripe
    feature = torch.stack([directions[0], directions[0] + directions[1], directions[2]])[kinds]  # (8, 8, 6)
    batch["inputs"]["features"] = feature.permute(2, 0, 1)[None]
    batch["inputs"]["masks"] = (kinds > 0).long().repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    return batch


@pytest.mark.parametrize(("weighting", "part"), [("cells", [1, 1, 0]), ("centroids", [0, 0, 1])])
def test_weighting_decides_whether_a_small_part_may_stand_for_the_class(weighting: str, part: list[int]):
    """Of two clusters, 0.5 of the centroids is the farther one; 0.5 of the cells is the body and all of the stripe."""
    task = make_task("MARSTask", refine="none", weighting=weighting, alpha=0.5)
    task.training_step(cat_with_a_stripe(), 0)
    task.on_train_epoch_end()
    body, stripe = torch.tensor([1.0, 1, 0, 0, 0, 0]) / 2**0.5, torch.eye(6)[2]
    mean = stripe if weighting == "centroids" else (3 * stripe + 27 * body) / 30
    torch.testing.assert_close(task.centroids[1], mean / mean.norm(), atol=1e-5, rtol=0)
    nearest = torch.tensor(part, dtype=torch.float32)
    assert task.centroids[1][:3] @ nearest / nearest.norm() > 0.9


def test_nothing_is_trained_and_the_batch_is_left_as_it_was():
    batch = make_batch(TAGS, SIZES)
    before = copy.deepcopy(batch)
    task = make_task("MARSTask", refine="none")
    assert list(task.parameters()) == []
    assert task.configure_optimizers() is None
    task.training_step(batch, 0)
    task.on_train_epoch_end()
    task.predict_step(batch, 0)
    assert not any(tensor.requires_grad for tensor in task.state_dict().values())
    assert all(torch.equal(batch["inputs"][port], value) for port, value in before["inputs"].items())
    assert all(torch.equal(batch[name], before[name]) for name in ("pixels", "image", "valid", "tags"))


@pytest.mark.parametrize("settings", [{"refine": "none"}, {"refine": "lattice"}, {"refine": "none", "threshold": 0.2}])
def test_batch_and_order_change_nothing(settings: dict[str, object]):
    batch = make_batch(TAGS, [(48, 64), (40, 60), (33, 49)])  # on one canvas
    together, alone = (make_task("MARSTask", **settings) for _ in range(2))
    together.training_step(batch, 0)
    for row in (2, 0, 1):
        alone.training_step(pick(batch, [row]), row)
    for task in (together, alone):
        task.on_train_epoch_end()
    torch.testing.assert_close(together.centroids, alone.centroids, atol=1e-5, rtol=0)
    masks = [mask for (mask,) in together.predict_step(batch, 0)["mask"]]
    sources = cut_masks(batch["inputs"]["masks"], batch)
    assert any(not torch.equal(mask, source) for mask, (source,) in zip(masks, sources, strict=True))
    for row in (1, 2, 0):
        ((mask,),) = together.predict_step(pick(batch, [row]), 0)["mask"]
        assert (mask == masks[row]).float().mean() >= 0.999


def test_the_chosen_threshold_is_otsus_of_the_similarities_inside_the_images():
    """Against a search over all edges, one cosine at a time."""
    batch, task = make_batch(TAGS, [(48, 64), (40, 60), (36, 52)]), fitted(threshold="auto")
    values = []
    for row, tags in enumerate(TAGS):
        height, width = (side // 4 for side in batch["geometry"][row].size)
        cells = batch["inputs"]["features"][row, :, :height, :width].flatten(1).T
        padding = torch.ones(12, 16, dtype=torch.bool)
        padding[:height, :width] = False
        batch["inputs"]["features"][row, :, padding] = task.centroids[
            tags[0], :, None
        ]  # would be a crowd of similarities of 1
        for cell in cells:
            values.append(max(0.0, *(float(cell @ task.centroids[tag] / cell.norm()) for tag in tags)))
    values = np.array(values)
    spread = {}
    for edge in np.arange(1, 256) / 256:
        low, high = values[values < edge], values[values >= edge]
        if len(low) and len(high):
            spread[edge] = len(low) * len(high) * (low.mean() - high.mean()) ** 2
    assert task.choose_threshold([batch]) == pytest.approx(max(spread, key=spread.get), abs=0.02)
    assert task.choose_threshold([pick(batch, [2]), pick(batch, [1, 0])]) == task.choose_threshold([batch])


def test_a_low_threshold_keeps_what_a_high_one_rejects():
    batch = make_batch(TAGS, SIZES)
    kept = []
    for threshold in (0.05, 0.5, 0.95):
        masks = fitted(threshold=threshold).predict_step(batch, 0)["mask"]
        kept.append([mask > 0 for (mask,) in masks])
    for low, middle, high in zip(*kept, strict=True):
        assert (high <= middle).all()
        assert (middle <= low).all()
    low, middle, high = (sum(int(mask.sum()) for mask in masks) for masks in kept)
    assert low > middle > high
