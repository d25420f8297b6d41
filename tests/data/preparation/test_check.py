import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datasets.voc import read_voc
from dhr_lightning.data.preparation import check
from dhr_lightning.errors import ArtifactError, DataError, MaskError


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids whose files were really decoded."""
    seen: list[str] = []
    original = check.check_record

    def spy(record: Record, classes: ClassSet) -> bool:
        shows_a_class = original(record, classes)
        seen.append(record.id)
        return shows_a_class

    monkeypatch.setattr(check, "check_record", spy)
    return seen


@pytest.fixture
def records(voc_copy: Path, voc_classes: ClassSet) -> Mapping[str, Sequence[Record]]:
    return {split: read_voc(voc_copy, split, voc_classes) for split in ("train", "val")}


def test_files_are_decoded_once(
    tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet, looked_at: list[str]
):
    check.check_dataset(tmp_path / "new" / "folder", records, voc_classes)
    assert looked_at == [f"2007_00000{number}" for number in range(1, 7)]
    check.check_dataset(tmp_path / "new" / "folder", records, voc_classes)
    assert len(looked_at) == 6


@pytest.mark.parametrize("kind", ["image", "gt_mask"])
def test_only_a_changed_file_is_decoded_again(
    tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet, looked_at: list[str], kind: str
):
    check.check_dataset(tmp_path, records, voc_classes)
    looked_at.clear()
    path = getattr(records["train"][1], kind)
    os.utime(path, ns=(0, 1))
    check.check_dataset(tmp_path, records, voc_classes)
    assert looked_at == ["2007_000002"]


def test_a_file_that_broke_since_the_last_check_is_found(
    tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet
):
    check.check_dataset(tmp_path, records, voc_classes)
    image = records["val"][0].image
    image.write_bytes(image.read_bytes()[:-200])
    for _ in range(2):
        with pytest.raises(DataError, match=r"2007_000005\.jpg cannot be read"):
            check.check_dataset(tmp_path, records, voc_classes)


def test_another_class_list_checks_everything_again(
    tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet, looked_at: list[str]
):
    check.check_dataset(tmp_path, records, voc_classes)
    looked_at.clear()
    with pytest.raises(MaskError, match=r"2007_000001\.png holds values outside the 3 classes"):
        check.check_dataset(tmp_path, records, ClassSet(("background", "cat", "dog")))
    check.check_dataset(tmp_path, records, voc_classes)
    assert looked_at == []


def test_a_mask_of_another_size_is_found(
    tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet
):
    mask = records["train"][2].gt_mask
    assert mask is not None
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(mask)
    with pytest.raises(MaskError, match="56x40 pixels, but its image is 40x56"):
        check.check_dataset(tmp_path, records, voc_classes)
    assert not (tmp_path / "checked.json").exists()


def test_a_damaged_memory_is_named(tmp_path: Path, records: Mapping[str, Sequence[Record]], voc_classes: ClassSet):
    (tmp_path / "checked.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"checked\.json"):
        check.check_dataset(tmp_path, records, voc_classes)
