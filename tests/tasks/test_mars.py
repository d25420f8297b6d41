import pytest
import torch

from dhr_lightning.errors import ConfigError, MaskError
from tests.task_samples import NAMES, make_batch, make_task

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
    masks = task.predict_step(batch, 0)["mars_mask"]
    for (mask,), before, (height, width) in zip(masks, batch["mask"], SIZES, strict=True):
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
    batch["mask"] = torch.tensor([1, 2])[:, None, None].expand_as(batch["mask"]).contiguous()
    task.training_step(batch, 0)
    with pytest.raises(MaskError, match=r"No base_mask has a cell of background.*start DHR from base_mask"):
        task.on_train_epoch_end()


def test_unusable_settings_are_refused():
    with pytest.raises(ConfigError, match="MARS needs a background class"):
        make_task("MARSTask", class_names=NAMES[1:], has_background=False)
    with pytest.raises(ConfigError, match="background or ignore, but got 'drop'"):
        make_task("MARSTask", rejected="drop")
