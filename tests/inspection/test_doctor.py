"""Every fault that a dataset can have is found, named by its file, and nothing else is accused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.registry import get_dataset
from dhr_lightning.errors import DataError, TagError
from dhr_lightning.inspection import files as doctor_files
from dhr_lightning.inspection.doctor import Examination, examine
from dhr_lightning.inspection.finding import Finding
from dhr_lightning.inspection.scan import scan_records

PHOTO = "JPEGImages/2007_000001.jpg"  # 64 x 48, train, tag cat
MASK = "SegmentationClass/2007_000001.png"
# Six photos: few images of few classes, and bus and person in one photo only. Everything else must be silent.
ALWAYS = {"absent-class", "rare-class", "inseparable-classes"}


def look(root: Path, untagged: str = "drop") -> Examination:
    return examine(get_dataset("voc"), root, artifacts=root.parent / "artifacts", untagged=untagged, workers=2)


def complaints(result: Examination) -> dict[str, Finding]:
    return {item.code: item for item in result.findings if item.level != "fact" and item.code not in ALWAYS}


def only(root: Path, code: str) -> Finding:
    """The one complaint that there must be."""
    found = complaints(look(root))
    assert list(found) == [code]
    return found[code]


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_sound_dataset_has_no_complaints_and_is_not_changed(voc_copy: Path):
    before = {path: path.read_bytes() for path in voc_copy.rglob("*") if path.is_file()}
    result = look(voc_copy)
    assert complaints(result) == {}
    assert {path: path.read_bytes() for path in voc_copy.parent.rglob("*") if path.is_file()} == before
    facts = {item.code: item.text for item in result.findings}
    assert "40 to 64 pixels wide" in facts["image-size"]
    assert "48 to 64 high" in facts["image-size"]
    assert facts["mask-mode"] == "Masks that hold class values: 6 palette."
    assert facts["coverage-train"] == "train: 4 images, 1.50 tags per image, 4 masks."
    assert result.counts["train"][[7, 11, 14]].tolist() == [2, 1, 1]  # cat, dog, person


def test_problems_come_first_and_facts_last(voc_copy: Path):
    cut(voc_copy / PHOTO)
    levels = [item.level for item in look(voc_copy).findings]
    assert levels[0] == "problem"
    assert levels == sorted(levels, key=["problem", "warning", "fact"].index)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_photo(voc_copy: Path, share: float):
    cut(voc_copy / PHOTO, share)
    found = only(voc_copy, "unreadable-image")
    assert found.level == "problem"
    assert found.count == 1
    assert found.items[0].startswith(f"{voc_copy / PHOTO} (")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_mask(voc_copy: Path, share: float):
    cut(voc_copy / MASK, share)
    assert str(voc_copy / MASK) in only(voc_copy, "unreadable-mask").items[0]


def test_a_photo_larger_than_pillow_decodes(voc_copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1700)  # the error comes at twice as many: 64 x 64 only
    found = complaints(look(voc_copy))
    assert set(found) == {"unreadable-image", "unreadable-mask"}
    for item in found.values():
        assert item.count == 1
        assert "2007_000004." in item.items[0]
        assert "DecompressionBomb" in item.items[0]


def test_large_and_tiny_photos(voc_copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_files, "LARGE_PIXELS", 64 * 63)
    assert [Path(item.split()[0]).stem for item in only(voc_copy, "large-image").items] == ["2007_000004"]
    (voc_copy / MASK).unlink()
    Image.new("RGB", (1, 1)).save(voc_copy / PHOTO)
    assert complaints(look(voc_copy))["tiny-image"].items == (f"{voc_copy / PHOTO} (1x1)",)


def test_a_photo_of_16_bits_would_turn_white(voc_copy: Path):
    (voc_copy / PHOTO).unlink()
    path = (voc_copy / PHOTO).with_suffix(".png")
    Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 20).astype(np.uint16)).save(path)
    assert only(voc_copy, "deep-image").items == (f"{path} (I;16, 16 bits)",)


def test_transparent_and_converted_photos(voc_copy: Path):
    (voc_copy / PHOTO).unlink()
    Image.new("RGBA", (64, 48)).save((voc_copy / PHOTO).with_suffix(".png"))
    Image.new("CMYK", (48, 64)).save(voc_copy / "JPEGImages/2007_000002.jpg")
    Image.new("L", (40, 56)).save(voc_copy / "JPEGImages/2007_000003.jpg")
    result = look(voc_copy)
    assert list(complaints(result)) == ["transparent-image"]
    assert {item.code: item for item in result.findings}["converted-image"].items == ("CMYK: 1", "L: 1")


@pytest.mark.parametrize(("mode", "depth"), [("RGB", np.uint8), ("I;16", np.uint16)])
def test_a_mask_of_colours_or_of_16_bits(voc_copy: Path, mode: str, depth: type[np.generic]):
    shape = (48, 64, 3) if mode == "RGB" else (48, 64)
    Image.fromarray(np.zeros(shape, depth)).save(voc_copy / MASK)
    assert only(voc_copy, "colour-mask").items == (f"{voc_copy / MASK} ({mode})",)


def test_unknown_values_are_named_with_their_pixels(voc_copy: Path):
    values = np.zeros((48, 64), np.uint8)
    values[:2, :3], values[5, 5], values[9, :4], values[20:30] = 30, 21, 255, 8
    Image.fromarray(values).save(voc_copy / MASK)
    found = only(voc_copy, "unknown-value")
    assert found.items == (f"{voc_copy / MASK} (21: 1 px, 30: 6 px)",)
    assert "(values 21, 30)" in found.text


def test_a_mask_of_another_size(voc_copy: Path):
    values = np.zeros((47, 64), np.uint8)
    values[:9] = 8
    Image.fromarray(values).save(voc_copy / MASK)
    assert only(voc_copy, "mask-size").items == (f"{voc_copy / MASK} (64x47, photo 64x48)",)


def turn(path: Path, orientation: int) -> None:
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif, quality=95)


def test_exif_rotation_and_masks_of_the_unturned_photo(voc_copy: Path):
    turn(voc_copy / PHOTO, 6)
    found = complaints(look(voc_copy))
    assert set(found) == {"unturned-mask", "exif-rotation"}
    assert found["unturned-mask"].items == (f"{voc_copy / MASK} (64x48, photo 48x64)",)
    with Image.open(voc_copy / MASK) as mask:
        mask.transpose(Image.Transpose.ROTATE_270).save(voc_copy / MASK)
    assert only(voc_copy, "exif-rotation").items == (f"{voc_copy / PHOTO} (EXIF orientation 6)",)
    (voc_copy / MASK).unlink()
    assert complaints(look(voc_copy)) == {}


def test_an_upright_exif_tag_is_silent(voc_copy: Path):
    turn(voc_copy / PHOTO, 1)
    assert not any(item.code == "exif-rotation" for item in look(voc_copy).findings)


def test_one_split_that_cannot_be_read_is_a_problem_and_none_is_an_error(voc_copy: Path):
    lists = voc_copy / "ImageSets" / "Segmentation"
    (lists / "val.txt").unlink()
    result = look(voc_copy)
    assert list(complaints(result)) == ["unreadable-split"]
    assert "val.txt" in complaints(result)["unreadable-split"].items[0]
    assert [scan.split for scan in result.scans] == ["train"] * 4
    (lists / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train_aug\.txt"):
        look(voc_copy)


def test_an_unknown_tag_in_both_splits_stops_with_file_and_nearest_name(voc_copy: Path):
    for path in (voc_copy / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>cat<", "<name>catt<"))
    with pytest.raises(TagError, match=r"'catt' in .*Did you mean 'cat'"):
        look(voc_copy)


def test_photos_outside_the_lists_are_counted(voc_copy: Path):
    (voc_copy / "JPEGImages" / "spare.JPG").write_bytes(b"x")
    (voc_copy / "JPEGImages" / "notes.txt").write_bytes(b"x")
    found = {item.code: item for item in look(voc_copy).findings}["unlisted-image"]
    assert found.items == (str(voc_copy / "JPEGImages" / "spare.JPG"),)


def test_threads_keep_the_order_and_the_content(tiny_voc: Path):
    info = get_dataset("voc")
    records = {split: info.read(tiny_voc, split, info.classes) for split in ("train", "val")}
    one, four = (scan_records(records, workers=number) for number in (1, 4))
    assert [scan.record.id for scan in one] == [record.id for rows in records.values() for record in rows]
    assert [(a.record, a.digest, a.size, a.mask) for a in one] == [(b.record, b.digest, b.size, b.mask) for b in four]
    assert len({scan.digest for scan in one}) == len(one)
    digest = hashlib.blake2b(records["val"][0].image.read_bytes(), digest_size=16).hexdigest()
    assert one[4].digest == digest
    with Image.open(str(records["val"][0].gt_mask)) as mask:
        values, pixels = np.unique(np.array(mask), return_counts=True)
    assert one[4].mask is not None
    assert one[4].mask.pixels == dict(zip(values.tolist(), pixels.tolist(), strict=True))
    with pytest.raises(ValueError, match=r"`workers` >= 1, but got 0"):
        scan_records(records, workers=0)


def test_a_fourth_band_is_not_transparency(voc_copy: Path):
    paths = sorted((voc_copy / "JPEGImages").iterdir())[:3]
    pixels = [np.array(Image.open(path).convert("RGBA")) for path in paths]
    pixels[0][..., 3] = np.linspace(0, 255, pixels[0][..., 3].size).reshape(pixels[0].shape[:2])  # near-infrared
    pixels[1][: pixels[1].shape[0] // 2, :, 3] = 0  # half is hidden; the third is opaque
    for path, values in zip(paths, pixels, strict=True):
        path.unlink()
        Image.fromarray(values).save(path.with_suffix(".png"))
    result = complaints(look(voc_copy))
    assert [one.split(" ")[0] for one in result["other-band"].items] == [str(paths[0].with_suffix(".png"))]
    assert [one.split(" ")[0] for one in result["transparent-image"].items] == [str(paths[1].with_suffix(".png"))]
