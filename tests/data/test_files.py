from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import check_mask, check_record, read_image, read_truth
from dhr_lightning.errors import DataError, MaskError

CLASSES = ClassSet(("background", "cat", "dog"))
PATH = Path("mask.png")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo `(6, 8)` whose left half is red."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def save_mask(folder: Path, mask: np.ndarray) -> Path:
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_photo_becomes_rgb(photo: Path, tmp_path: Path, mode: str):
    path = tmp_path / "other.tif"
    with Image.open(photo) as image:
        image.convert(mode).save(path)
    assert (read_image(path).mode, read_image(path).size) == ("RGB", (8, 6))


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (8, 6), np.s_[:, :4]),
        (3, (8, 6), np.s_[:, 4:]),
        (6, (6, 8), np.s_[:4, :]),
        (8, (6, 8), np.s_[4:, :]),
    ],
)
def test_photos_are_turned_upright(
    photo: Path, tmp_path: Path, orientation: int, size: tuple[int, int], red: tuple[slice, slice]
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photo) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == size
    found = np.array(upright)[..., 0] == 200
    expected = np.zeros_like(found)
    expected[red] = True
    np.testing.assert_array_equal(found, expected)


def test_a_mask_must_fit_the_upright_photo(photo: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    mask = save_mask(tmp_path, np.zeros((8, 6), np.uint8))
    check_record(Record("a", tmp_path / "turned.png", (1,), mask), CLASSES)
    with pytest.raises(MaskError, match="6x8 pixels, but its image is 8x6"):
        check_record(Record("a", photo, (1,), mask), CLASSES)


def test_a_missing_photo_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.jpg is missing"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_photo_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\{suffix} cannot be read"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_photo_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"page\.jpg cannot be read"):
        read_image(tmp_path / "page.jpg")


def test_palette_and_grey_masks_give_class_values(tiny_voc: Path, tmp_path: Path):
    from_palette = read_truth(tiny_voc / "SegmentationClass" / "2007_000001.png")
    assert from_palette.dtype == np.uint8
    assert np.unique(from_palette).tolist() == [0, 8, 255]
    assert (from_palette == 8).sum() == 18 * 18
    np.testing.assert_array_equal(read_truth(save_mask(tmp_path, from_palette)), from_palette)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("LA", 2)])
def test_a_mask_with_expanded_colours_is_refused(tiny_voc: Path, tmp_path: Path, mode: str, channels: int):
    with Image.open(tiny_voc / "SegmentationClass" / "2007_000001.png") as mask:
        mask.convert(mode).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=rf"mask\.png has {channels} channels: its palette was expanded"):
        read_truth(tmp_path / "mask.png")


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint16), np.zeros((4, 4), bool)], ids=["16 bit", "1 bit"])
def test_a_mask_of_another_depth_is_refused(tmp_path: Path, mask: np.ndarray):
    with pytest.raises(MaskError, match=f"holds {mask.dtype} values"):
        read_truth(save_mask(tmp_path, mask))


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nxxxx"])
def test_an_unreadable_mask_is_named(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(MaskError, match=r"mask\.png cannot be read"):
        read_truth(tmp_path / "mask.png")


def test_values_outside_the_classes_are_counted():
    mask = np.array([[0, 1, 2, 255], [3, 3, 219, 0]], np.uint8)
    with pytest.raises(
        MaskError, match=r"mask\.png holds values outside the 3 classes and 255: 3 \(2 px\), 219 \(1 px\)"
    ):
        check_mask(mask, path=PATH, size=(4, 2), classes=CLASSES)


def test_every_class_and_ignore_are_allowed():
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    assert check_mask(mask, path=PATH, size=(4, 1), classes=CLASSES) is mask


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(MaskError, match=r"mask\.png is 4x2 pixels, but its image is 2x4"):
        check_mask(np.zeros((2, 4), np.uint8), path=PATH, size=(2, 4), classes=CLASSES)


def test_a_record_without_mask_is_only_decoded(photo: Path):
    check_record(Record("a", photo, (1,)), CLASSES)
