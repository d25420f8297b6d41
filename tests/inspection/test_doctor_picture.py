"""The contact sheet shows photos, tags and the true lengths of the bars."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.inspection.picture import choose, draw_sheet, save_sheet, shorten, wrap
from dhr_lightning.inspection.scan import Scan, scan_record


class Monospace:
    """A font of one pixel per letter."""

    def getlength(self, text: str) -> float:
        return len(text)


def named(rows: list[tuple[int, ...]]) -> list[Scan]:
    return [Scan("train", Record(f"{row}", Path(f"{row}"), tags)) for row, tags in enumerate(rows)]


def test_every_class_is_shown_before_any_is_repeated():
    classes = ClassSet(tuple("abcdef"), has_background=False)
    rows = [*[(0,)] * 30, (1, 2), (3,), (0, 4), (5,)]
    shown = choose(named(rows), classes, 5)
    assert {tag for scan in shown for tag in scan.record.tags} == set(range(6))
    assert shown == choose(named(rows), classes, 5)
    assert len({scan.record.id for scan in choose(named(rows), classes, 20)}) == 20
    assert len(choose(named(rows), classes, 99)) == 34


def bar_length(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(-1).sum(1).max())


def test_photos_are_on_the_sheet_and_bars_are_as_long_as_the_counts(tiny_voc: Path):
    classes = ClassSet(VOC_CLASSES)
    scans = [
        scan_record("train", Record(path.stem, path, (8,))) for path in sorted((tiny_voc / "JPEGImages").iterdir())
    ]
    broken = Scan("train", Record("broken", Path("nowhere.jpg"), (8,)), error="cut off")
    counts = {name: np.zeros(20, np.int64) for name in ("train", "val")}
    counts["train"][[7, 11, 14]] = 40, 20, 10  # cat, dog, person
    counts["val"][7] = 20
    sheet = draw_sheet([*scans, broken], counts, classes, title="tiny")
    colours = {
        name: tuple(int(c) for c in classes.palette[VOC_CLASSES.index(name)]) for name in ("cat", "dog", "person")
    }
    lengths = {name: bar_length(sheet, colour) for name, colour in colours.items()}
    assert lengths["cat"] > 50
    assert lengths["cat"] == pytest.approx(2 * lengths["dog"], abs=3)
    assert lengths["cat"] == pytest.approx(4 * lengths["person"], abs=4)
    light = tuple(round(0.4 * c + 0.6 * 255) for c in colours["cat"])
    assert bar_length(sheet, light) == pytest.approx(lengths["dog"], abs=3)
    with Image.open(scans[0].record.image) as photo:
        pixel = np.asarray(photo)[16, 16]  # inside the cat's square
    assert (np.abs(np.asarray(sheet).astype(int) - pixel).sum(-1) < 8).sum() > 300


def test_a_dataset_of_171_classes_and_one_of_untagged_images_can_be_drawn(tmp_path: Path):
    classes = ClassSet(tuple(f"class number {tag}" for tag in range(171)), has_background=False)
    path = tmp_path / "photo.png"
    Image.new("RGB", (900, 20), "red").save(path)
    counts = {"train": np.arange(171), "val": np.zeros(171, np.int64)}
    for tags in ((), tuple(range(171))):
        sheet = draw_sheet([scan_record("train", Record("photo", path, tags))], counts, classes, title="many")
        assert sheet.height > 57 * 20
    save_sheet(sheet, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as saved:
        assert saved.size == sheet.size


def test_texts_are_cut_and_wrapped_to_their_width():
    font = Monospace()
    assert shorten("abcdef", font, 6) == "abcdef"
    assert shorten("abcdefg", font, 6) == "abc..."
    assert wrap(["cat", "dog"], font, 8) == ["cat, dog"]
    assert wrap(["cat", "dog", "sheep"], font, 9) == ["cat, dog,", "sheep"]
    assert wrap(["cat", "dog", "sheep", "horse"], font, 9) == ["cat, dog,", "sheep,..."]
    assert wrap(["pottedplant", "cat"], font, 8) == ["potte..."]
