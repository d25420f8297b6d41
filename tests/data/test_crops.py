"""Five crops of each image and pairs of them."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.crops import CROPS, CropPairs, FiveCrop, FiveCrops
from dhr_lightning.errors import ConfigError

PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")


def coordinate_image(width: int, height: int) -> Image.Image:
    """A photo whose red is the column, whose green is the row and whose blue is full: no pixel of it is black."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([columns / width * 255, rows / height * 255, np.full_like(rows, 255)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


@pytest.fixture
def crops(train_records: list[Record], voc_classes: ClassSet) -> FiveCrops:
    return FiveCrops(train_records, voc_classes, FiveCrop(16))


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (200, 200)])
@pytest.mark.parametrize("place", range(CROPS), ids=PLACES)
def test_crops_equal_those_of_torchvision(size: tuple[int, int], place: int):
    image = coordinate_image(*size)
    width, height = size
    part = v2.FiveCrop((int(height * 0.5), int(width * 0.5)))(image)[place]
    expected = v2.Compose([v2.Resize(224), v2.CenterCrop(224), v2.PILToTensor()])(part)
    pixels, _ = FiveCrop()(image, place)
    assert pixels.shape == (3, 224, 224)
    assert (pixels.int() - expected.int()).abs().max() <= 2  # one pixel of a photo is about one grey value


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    place=st.integers(0, CROPS - 1),
    ratio=st.floats(0.05, 1),
)
def test_no_crop_of_any_image_has_padding(size: tuple[int, int], place: int, ratio: float):
    pixels, geometry = FiveCrop(12, ratio)(coordinate_image(*size), place)
    x0, y0, x1, y1 = geometry.source
    assert 0 <= x0 < x1 <= size[0]
    assert 0 <= y0 < y1 <= size[1]
    assert x1 - x0 == pytest.approx(y1 - y0)
    assert geometry.destination == (0, 0, 12, 12)
    assert pixels.shape == (3, 12, 12)
    assert (pixels[2] == 255).all()


@pytest.mark.parametrize("place", range(CROPS), ids=PLACES)
def test_the_geometry_says_where_each_pixel_comes_from(place: int):
    width, height = 120, 90
    pixels, geometry = FiveCrop(45, 0.5)(coordinate_image(width, height), place)
    x0, y0, _, _ = geometry.source
    steps = (torch.arange(45) + 0.5) / geometry.scale[0]
    position = pixels[:2].float() / 255 * torch.tensor([width, height]).view(2, 1, 1)
    assert (position[0] - (x0 + steps)).abs().max() < 0.6
    assert (position[1] - (y0 + steps)[:, None]).abs().max() < 0.6
    assert geometry.size == (height, width)
    assert not geometry.flip


def test_the_five_places_differ_and_corners_do_not_overlap():
    boxes = [FiveCrop().box((100, 80), place) for place in range(CROPS)]
    assert len(set(boxes)) == CROPS
    for one, other in combinations(boxes[:4], 2):
        assert min(one[2], other[2]) <= max(one[0], other[0]) or min(one[3], other[3]) <= max(one[1], other[1])
    assert boxes[4] == (30, 20, 70, 60)


@pytest.mark.parametrize("settings", [(0, 0.5), (8, 0.0), (8, 1.1)])
def test_crops_of_no_size_are_refused(settings: tuple[int, float]):
    with pytest.raises(ConfigError, match=rf"but got {settings[0]}, {settings[1]}"):
        FiveCrop(*settings)


def test_every_sample_is_valid_throughout(crops: FiveCrops):
    assert len(crops) == CROPS * 4
    for index in range(len(crops)):
        sample = crops[index]
        assert sample["id"] == crops.records[index // CROPS].id
        assert sample["valid"].all()
        assert sample["valid"].shape == sample["pixels"].shape[-2:] == (16, 16)
        assert set(sample) == {"id", "pixels", "valid", "tags", "geometry"}


def test_seed_epoch_and_index_decide_a_pair(crops: FiveCrops):
    table = torch.arange(20)[None].repeat(20, 1)

    def boxes(seed: int, epoch: int) -> list[object]:
        pairs = CropPairs(crops, neighbours=table, seed=seed)
        samples = [pairs[epoch, index] for index in range(len(pairs))]
        return [(s["geometry"], s["neighbour"].sum().item()) for s in samples]

    first = boxes(0, 3)
    torch.manual_seed(99)
    assert boxes(0, 3) == first
    assert boxes(0, 4) != first
    assert boxes(1, 3) != first


def test_an_epoch_sees_all_five_places_of_every_image(crops: FiveCrops):
    pairs = CropPairs(crops)
    assert len(pairs) == 20
    found = [pairs[epoch, index] for epoch in (0, 7) for index in range(20)]
    expected = [(record.id, place) for _ in range(2) for record in crops.records for place in range(CROPS)]
    for sample, (name, place) in zip(found, expected, strict=True):
        height, width = sample["geometry"].size
        assert (sample["id"], sample["geometry"].source) == (name, FiveCrop(16).box((width, height), place))


def test_the_neighbour_belongs_to_the_crop_and_any_of_its_row_may_come(crops: FiveCrops):
    table = torch.tensor([[(index + 5) % 20, (index + 10) % 20] for index in range(20)])
    pairs = CropPairs(crops, neighbours=table)
    every = torch.stack([crops[index]["pixels"] for index in range(20)])
    distances = set()
    for epoch in range(40):
        sample = pairs[epoch, 2]
        own, other = ((every == pixels).all((1, 2, 3)).nonzero() for pixels in (sample["pixels"], sample["neighbour"]))
        assert len(own) == len(other) == 1
        distances.add((int(other) - int(own)) % 20)
    assert distances == {5, 10}
