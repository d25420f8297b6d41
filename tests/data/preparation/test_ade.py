from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.labels import ADE_CLASSES
from dhr_lightning.data.preparation.ade import prepare_ade
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError, DataError, MaskError
from tests.data.preparation.benchmark_layouts import SIZE, values_of, write_grey, write_photo

CLASSES = ClassSet(ADE_CLASSES, has_background=False)


def raw(*values: int) -> np.ndarray:
    """Official ids in stripes."""
    return np.resize(np.repeat(np.array(values, np.uint8), 4), (SIZE[1], SIZE[0]))


def write_ade(root: Path) -> Path:
    for folder, name, values in [
        ("training", "ADE_train_00000001", (0, 1, 150)),
        ("training", "ADE_train_00000002", (0, 0, 0)),
        ("validation", "ADE_val_00000001", (13, 13, 3)),
    ]:
        write_photo(root / "images" / folder / f"{name}.jpg")
        write_grey(root / "annotations" / folder / f"{name}.png", raw(*values))
    return root


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    return write_ade(tmp_path)


def test_there_are_150_classes_and_no_background():
    assert CLASSES.num_classes == CLASSES.num_tags == 150
    assert (CLASSES.names[0], CLASSES.names[12], CLASSES.names[149]) == ("wall", "person", "flag")


def test_values_move_down_by_one_and_other_is_ignored(ade: Path):
    prepare_ade(ade, CLASSES, {})
    mask = values_of(ade / "prepared" / "masks" / "train" / "ADE_train_00000001.png")
    official = raw(0, 1, 150)
    np.testing.assert_array_equal(mask[official == 0], 255)
    np.testing.assert_array_equal(mask[official == 1], 0)
    np.testing.assert_array_equal(mask[official == 150], 149)
    with Image.open(ade / "annotations" / "training" / "ADE_train_00000001.png") as untouched:
        np.testing.assert_array_equal(np.array(untouched), official)


def test_tags_are_the_classes_of_the_mask(ade: Path):
    prepare_ade(ade, CLASSES, {})
    assert [record.tags for record in read_records("ade", ade, "train")] == [(0, 149), ()]
    assert [record.tags for record in read_records("ade", ade, "val")] == [(2, 12)]
    assert "sky;person,mask" in (ade / "prepared" / "val.csv").read_text()


def test_a_value_above_150_names_file_and_value(ade: Path):
    write_grey(ade / "annotations" / "validation" / "ADE_val_00000001.png", raw(151, 3))
    with pytest.raises(MaskError, match=r"ADE_val_00000001\.png holds ids .*: 151 \(\d+ px\)"):
        prepare_ade(ade, CLASSES, {})


def test_coloured_masks_of_the_full_release_are_refused(ade: Path):
    Image.new("RGB", SIZE).save(ade / "annotations" / "training" / "ADE_train_00000001.png")
    with pytest.raises(MaskError, match=r"ADE_train_00000001\.png has 3 channels"):
        prepare_ade(ade, CLASSES, {})


def test_photos_without_mask_are_left_out_and_named(ade: Path, caplog: pytest.LogCaptureFixture):
    write_photo(ade / "images" / "training" / "ADE_train_00000003.jpg")
    prepare_ade(ade, CLASSES, {})
    assert len(read_records("ade", ade, "train")) == 2
    assert "3 photos and 2 masks, 2 of both; the others are left out, first ADE_train_00000003" in caplog.text


def test_without_any_pair_nothing_is_prepared(ade: Path):
    for mask in (ade / "annotations" / "validation").iterdir():
        mask.rename(mask.with_name("other.png"))
    with pytest.raises(DataError, match=r"val in .*: none of \d photos has one of \d masks of its name"):
        prepare_ade(ade, CLASSES, {})


def test_options_are_refused(ade: Path):
    with pytest.raises(ConfigError, match="'crowd'"):
        prepare_ade(ade, CLASSES, {"crowd": "class"})
