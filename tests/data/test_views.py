"""Views of an image lie where their boxes say, overlap, and depend on seed, epoch and index alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.views import MultiCrop, ViewDataset
from dhr_lightning.errors import ConfigError

PLAIN = MultiCrop((64, 32), (2, 4), jitter=(0, 0, 0, 0))


def ramps(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.stack([x * 255, y * 255, x * 0], -1).round().astype(np.uint8))


def test_a_view_shows_the_part_that_its_box_names():
    views, boxes = PLAIN(ramps(300, 200), torch.Generator().manual_seed(0))
    assert [tuple(view.shape) for view in views] == [(3, 64, 64)] * 2 + [(3, 32, 32)] * 4
    for view, (left, top, right, bottom) in zip(views, boxes.tolist(), strict=True):
        size = view.shape[-1]
        place = (torch.arange(size) + 0.5) / size
        across = 255 * (left + place * (right - left))
        down = 255 * (top + place * (bottom - top))
        assert (view[0].float().mean(0) - across).abs().max() < 2
        assert (view[1].float().mean(1) - down).abs().max() < 2


def test_areas_and_shapes_are_those_asked_for_and_all_views_meet_the_large_ones():
    crop = MultiCrop(counts=(2, 6), overlap=0.05)
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        boxes: list = []
        for count, scale in zip(crop.counts, crop.scales, strict=True):
            for _ in range(count):
                boxes.append(crop._box((300, 200), scale, boxes[:2], generator))
                left, top, right, bottom = boxes[-1]
                assert 0 <= left < right <= 1 + 1e-6
                assert 0 <= top < bottom <= 1 + 1e-6
                area, ratio = (right - left) * (bottom - top), (right - left) * 300 / ((bottom - top) * 200)
                assert area <= scale[1] + 1e-6
                if right - left < 0.999 and bottom - top < 0.999:  # not cut off at the image
                    assert area >= scale[0] - 1e-6
                    assert 0.74 < ratio < 1.34
        for large in boxes[:2]:
            for other in boxes:
                width = min(large[2], other[2]) - max(large[0], other[0])
                height = min(large[3], other[3]) - max(large[1], other[1])
                assert width * height >= 0.05 * (large[2] - large[0]) * (large[3] - large[1])


def test_small_views_need_not_meet_each_other():
    """With whole images as large views, small ones lie anywhere; all pairs that overlap would crowd together."""
    crop = MultiCrop((32, 16), (1, 4), ((1.0, 1.0), (0.05, 0.05)), overlap=0.04, jitter=(0, 0, 0, 0))
    apart = 0
    for seed in range(10):
        _, boxes = crop(ramps(90, 90), torch.Generator().manual_seed(seed))
        for first in boxes[1:]:
            for second in boxes[1:]:
                low, high = torch.maximum(first, second), torch.minimum(first, second)
                apart += bool(((high[2:] - low[:2]) <= 0).any())
    assert apart > 60  # of 120 ordered pairs


def test_views_depend_on_seed_epoch_and_index_alone(tmp_path):
    ramps(90, 60).save(tmp_path / "a.png")
    records = [Record(name, tmp_path / "a.png", ()) for name in ("a", "b")]
    data = ViewDataset(records, PLAIN, seed=3)
    first = data[(1, 0)]
    torch.manual_seed(9)
    again = ViewDataset(records, PLAIN, seed=3)[(1, 0)]
    assert torch.equal(first["boxes"], again["boxes"])
    assert all(torch.equal(*pair) for pair in zip(first["views"], again["views"], strict=True))
    for other in (data[(2, 0)], data[(1, 1)], ViewDataset(records, PLAIN, seed=4)[(1, 0)]):
        assert not torch.equal(first["boxes"], other["boxes"])
    batch = ViewDataset.collate([data[0], data[1]])
    assert batch["id"] == ["a", "b"]
    assert [tuple(view.shape) for view in batch["views"]] == [(2, 3, 64, 64)] * 2 + [(2, 3, 32, 32)] * 4
    assert batch["boxes"].shape == (2, 6, 4)
    assert torch.equal(batch["views"][2][1], data[1]["views"][2])


def test_colours_change_if_asked():
    grey = Image.new("RGB", (50, 50), (120, 130, 140))
    views, _ = MultiCrop((32, 16), (2, 2))(grey, torch.Generator().manual_seed(0))
    means = torch.stack([view.float().mean((1, 2)) for view in views])
    assert (means.std(0) > 3).any()
    plain, _ = PLAIN(grey, torch.Generator().manual_seed(0))
    assert all((view.float().mean((1, 2)) - torch.tensor([120.0, 130, 140])).abs().max() < 1 for view in plain)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"counts": (0, 4)}, "counts"),
        ({"counts": (1, 0)}, "two in all"),
        ({"sizes": (224, 0)}, "sizes >= 1"),
        ({"scales": ((0.5, 0.2), (0.1, 0.2))}, r"scales\[0\] <= scales\[1\]"),
        ({"scales": ((0.0, 0.2), (0.1, 0.2))}, r"0 < scales\[0\]"),
        ({"overlap": 1.0}, "overlap < 1"),
    ],
)
def test_views_that_make_no_sense_are_refused(options: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        MultiCrop(**options)
