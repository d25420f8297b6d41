"""Where the maps of CAM lie in an image, and how they follow from the maps of the classifier."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.seeds.cam.task import CAMTask
from tests.task_samples import make_batch, make_task


class Brightness(nn.Module):
    """Maps of four classes: channels of the mean colour of each cell of four pixels, and their mean."""

    def forward(self, image: Tensor) -> Tensor:
        cells = F.avg_pool2d(image, 4)
        return torch.cat([cells, cells.mean(1, keepdim=True)], 1).relu()


def bright_task(**options: Any) -> CAMTask:
    task = make_task("CAMTask", **options)
    task.network = Brightness()
    return task


@pytest.fixture
def batch() -> Batch:
    return make_batch([[1, 3], [2]], [(32, 48), (24, 36)])


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
        assert cam.shape == (len(tags), *grid)
        if index == 0:  # the image fills its canvas
            torch.testing.assert_close(cam, maps[index])
    batch["geometry"] = batch["geometry"][:2]
    with pytest.raises(ValueError, match="zip"):
        task.predict_step(batch, 0)


@pytest.mark.parametrize("size", [(32, 32), (61, 41), (34, 33), (23, 63)])
@torch.no_grad()
def test_cells_lie_evenly_over_each_image_whatever_its_canvas(size: tuple[int, int]):
    """Maps that rise over the canvas, the first from left to right and the second from top to bottom."""
    task, batch = make_task("CAMTask"), make_batch([[1, 2]], [size])
    height, width = batch["pixels"].shape[-2:]
    across = ((torch.arange(width // 4) + 0.5) * 4).expand(height // 4, -1)
    down = ((torch.arange(height // 4) + 0.5) * 4)[:, None].expand(-1, width // 4)
    task.compact_cam = lambda batch, keys: torch.stack([across, down])[None] / 100
    ((_, maps),) = task.predict_step(batch, 0)["cam"]
    rows, columns = maps.shape[-2:]
    assert (rows, columns) == (-(-size[0] // 4), -(-size[1] // 4))
    expected = torch.stack(
        [
            ((torch.arange(columns) + 0.5) * size[1] / columns).expand(rows, -1),
            ((torch.arange(rows) + 0.5) * size[0] / rows)[:, None].expand(-1, columns),
        ]
    )
    torch.testing.assert_close(maps * 100, expected, atol=0.25, rtol=0)  # pixels; the outermost half cell is level
