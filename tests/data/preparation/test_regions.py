import numpy as np
import pytest

from dhr_lightning.data.preparation.regions import fill_polygon, region_mask
from dhr_lightning.errors import DataError


def polygons(seed: int, count: int) -> list[tuple[list[float], int, int]]:
    """Wild polygons: crossing themselves, on the grid, outside of the image, with repeated corners."""
    rng = np.random.default_rng(seed)
    found = []
    for kind in range(count):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        corners = rng.uniform(-0.2, 1.2, (rng.integers(3, 12), 2)) * [width, height]
        if kind % 3 == 0:
            corners = np.round(np.clip(corners, 0, [width, height]))
        if kind % 3 == 1:
            corners = np.repeat(corners, 2, axis=0)
        found.append((corners.ravel().tolist(), height, width))
    return found


def test_a_polygon_covers_the_pixels_whose_middle_it_surrounds():
    mask = fill_polygon([1, 1, 4, 1, 4, 3, 1, 3], height=5, width=6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_polygons_and_run_lengths_are_those_of_pycocotools():
    reference = pytest.importorskip("pycocotools.mask")
    covered = 0
    for polygon, height, width in polygons(0, 60):
        encoded = reference.frPyObjects([polygon], height, width)[0]
        expected = reference.decode(encoded).astype(bool)
        np.testing.assert_array_equal(fill_polygon(polygon, height=height, width=width), expected)
        compressed = {"size": [height, width], "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(region_mask(compressed, height=height, width=width, where="x"), expected)
        covered += int(expected.sum())
    assert covered > 5_000


def test_plain_run_lengths_go_down_the_columns():
    mask = region_mask({"size": [2, 3], "counts": [1, 2, 3]}, height=2, width=3, where="x")
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


def test_parts_are_united_and_two_corners_cover_nothing():
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [3, 0, 5, 0, 5, 2, 3, 2], [0, 0, 5, 5]]
    mask = region_mask(parts, height=3, width=5, where="x")
    assert mask.sum() == 8
    assert not region_mask([], height=3, width=5, where="x").any()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [2, 3], "counts": [1, 2, 4]},
        {"size": [3, 2], "counts": [1, 2, 3]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "h" * 40},
        {"size": [2, 3], "counts": "\u00e9"},
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(segmentation: dict[str, object]):
    with pytest.raises(DataError, match=r"Run lengths of annotation 7 .* its image is 2x3"):
        region_mask(segmentation, height=2, width=3, where="annotation 7")


@pytest.mark.parametrize("segmentation", [None, "polygon", {}, [[0, 0, 1]], [1, 2, 3, 4, 5, 6]])
def test_what_is_no_region_is_refused(segmentation: object):
    with pytest.raises(DataError, match="of annotation 7"):
        region_mask(segmentation, height=2, width=3, where="annotation 7")
