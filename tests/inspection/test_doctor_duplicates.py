"""Images that occur twice are found, however they are spelt or saved; different ones are left alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dhr_lightning.data.catalog import Record
from dhr_lightning.inspection.duplicates import duplicate_findings, id_findings, look_alikes, plain_id
from dhr_lightning.inspection.finding import Finding
from dhr_lightning.inspection.scan import scan_records


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A smooth random picture: coarse colours, scaled up."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def record(image: Path, *tags: int) -> Record:
    return Record(image.stem, image, tags)


def records(*names: str) -> list[Record]:
    return [Record(name, Path(f"{place}.jpg"), (1,)) for place, name in enumerate(names)]


def by_code(found: list[Finding]) -> dict[str, Finding]:
    return {item.code: item for item in found}


@pytest.mark.parametrize(
    "spelling", ["Photo 1", "photo 1", "PHOTO 1.JPG", " photo  1", "photo 1.jpeg", "photo 1 ", "photo 1.png"]
)
def test_spellings_of_one_id_become_one(spelling: str):
    assert plain_id(spelling) == "photo 1"


@pytest.mark.parametrize("other", ["photo 10", "photo_1", "sub/photo 1", "photo 1.jpg.old", "photo.1"])
def test_different_ids_stay_apart(other: str):
    assert plain_id(other) != "photo 1"


def test_accents_may_be_encoded_in_two_ways():
    assert plain_id("caf\u00e9") == plain_id("cafe\u0301")


def test_similar_ids_are_grouped_over_splits():
    found = by_code(id_findings({"train": records("a", "B", "c"), "val": records("b", "d")}))
    assert list(found) == ["similar-id"]
    assert found["similar-id"].items == ("'B' = 'b'",)
    assert found["similar-id"].level == "warning"


def test_an_id_in_both_splits_and_an_id_that_leaves_its_folder_are_problems():
    found = by_code(id_findings({"train": records("a", "b", "../c"), "val": records("b")}))
    assert set(found) == {"shared-id", "bad-id"}
    assert found["shared-id"].items == ("b",)
    assert "'../c'" in found["bad-id"].items[0]
    assert {item.level for item in found.values()} == {"problem"}


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, list[Record]]:
    paths = []
    for seed in range(6):
        paths.append(tmp_path / f"{seed}.jpg")
        scene(seed).save(paths[-1], quality=95)
    return {"train": [record(path, 1) for path in paths[:4]], "val": [record(path, 1) for path in paths[4:]]}


def findings(photos: dict[str, list[Record]]) -> dict[str, Finding]:
    return by_code(duplicate_findings(scan_records(photos, workers=1)))


def test_different_photos_are_no_duplicates(photos: dict[str, list[Record]]):
    assert findings(photos) == {}


def test_the_same_bytes_in_train_and_val_are_a_leak(photos: dict[str, list[Record]], tmp_path: Path):
    photos["val"].append(record(Path(shutil.copy(tmp_path / "2.jpg", tmp_path / "copy.jpg")), 1))
    found = findings(photos)
    assert list(found) == ["leaked-file"]
    assert found["leaked-file"].items == ("train/2 = val/copy",)
    assert found["leaked-file"].level == "problem"


def test_the_same_bytes_twice_in_train_say_whether_the_tags_differ(photos: dict[str, list[Record]], tmp_path: Path):
    photos["train"].append(record(Path(shutil.copy(tmp_path / "0.jpg", tmp_path / "same.jpg")), 1))
    photos["train"].append(record(Path(shutil.copy(tmp_path / "1.jpg", tmp_path / "other.jpg")), 2))
    found = findings(photos)
    assert list(found) == ["duplicate-file"]
    assert found["duplicate-file"].items == ("train/0 = train/same", "train/1 = train/other (tags differ)")


def test_one_file_listed_in_both_splits_is_left_to_the_ids(photos: dict[str, list[Record]]):
    photos["val"].append(photos["train"][0])
    assert findings(photos) == {}


@pytest.mark.parametrize("change", ["smaller", "larger", "quality", "png", "brighter"])
def test_a_changed_copy_looks_alike(photos: dict[str, list[Record]], tmp_path: Path, change: str):
    original, path = scene(3), tmp_path / ("copy.png" if change == "png" else "copy.jpg")
    size = {"smaller": (70, 52), "larger": (301, 226)}.get(change, original.size)
    changed = ImageEnhance.Brightness(original).enhance(1.05 if change == "brighter" else 1.0)
    changed.resize(size).save(path, **({} if change == "png" else {"quality": 30 if change == "quality" else 90}))
    photos["val"].append(record(path, 1))
    found = findings(photos)
    assert list(found) == ["look-alike"]
    assert (
        found["look-alike"].items[0].startswith("train/3 ~ val/copy (0.99") or "(1.000)" in found["look-alike"].items[0]
    )
    assert found["look-alike"].level == "warning"


def test_look_alikes_agree_with_a_plain_loop_over_blocks():
    random = np.random.default_rng(0)
    train = random.integers(0, 256, (2100, 64)).astype(np.float32)
    val = random.integers(0, 256, (6, 64)).astype(np.float32)
    val[3], val[5] = train[2090] + 2, train[11] * 0.98
    val[2] = train[7] * 0.3 + 150  # the same pattern, but quite another brightness
    val[4] = np.clip(train[5] + random.normal(0, 60, 64), 0, 255)
    expected = []
    for a, left in enumerate(train):
        for b, right in enumerate(val):
            correlation = np.corrcoef(left, right)[0, 1] if abs(left - right).mean() <= 16 else 0
            if correlation >= 0.99:
                expected.append((a, b))
    assert expected == [(11, 5), (2090, 3)]
    assert [(a, b) for a, b, _ in look_alikes(train, val)] == expected


def test_pictures_without_a_pattern_have_no_look_alike():
    flat = np.full((3, 256), 128, np.float32)
    flat[1:, :9] += 1
    assert look_alikes(flat, flat) == []
    assert look_alikes(flat[:0], flat) == []
