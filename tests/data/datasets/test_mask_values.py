"""True masks whose values are not those of the class list: mapped where the user says so, named where nobody did."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.dataset import GT_MASK, SegmentationDataset
from dhr_lightning.data.files import TruthAgreement, read_gt_mask
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.evaluation.truth import DatasetTruth
from dhr_lightning.inspection.doctor import examine
from tests.data.datasets.folder_samples import read, resolve, write_folder

MASK = np.zeros((16, 24), np.uint8)
MASK[2:10, 2:10] = 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos of cats with masks of 0 and 255, and one of a dog with its class value."""
    rows = "".join(f"{k}.jpg,cat\n" for k in range(6))
    table = f"image,tag\n{rows}dog.jpg,dog\n"
    root = write_folder(tmp_path / "photos", table, [f"{k}.jpg" for k in (*range(6), "dog")])
    (root / "masks").mkdir()
    for k in range(6):
        Image.fromarray(MASK).save(root / "masks" / f"{k}.png")
    Image.fromarray(np.where(MASK > 0, 2, 0).astype(np.uint8)).save(root / "masks" / "dog.png")
    return root


def found(root: Path, **options: object) -> dict[str, str]:
    info = resolve(root, **options)
    result = examine(info, root, artifacts=root.parent / "artifacts", untagged="drop")
    return {item.code: item.advice for item in result.findings if item.level == "problem"}


def test_a_class_that_is_only_ever_ignored_is_a_problem_with_its_remedy(folder: Path):
    assert "mask_values: {255: NAME}" in found(folder)["ignored-class"]
    assert "ignored-class" not in found(folder, mask_values={255: "cat"})
    contours = np.where(MASK > 0, 1, 0).astype(np.uint8)
    contours[2, 2:10] = 255  # as VOC draws them: ignored pixels beside the object are no fault
    for k in range(6):
        Image.fromarray(contours).save(folder / "masks" / f"{k}.png")
    assert "ignored-class" not in found(folder)


def test_mapped_values_are_read_alike_everywhere(folder: Path):
    options = {"mask_values": {255: "cat", 2: "ignore"}}
    info, records = resolve(folder, **options), read(folder, **options)
    expected = np.where(MASK > 0, 1, 0)
    np.testing.assert_array_equal(read_gt_mask(records["3"]), expected)
    np.testing.assert_array_equal(DatasetTruth(info, folder).mask("train", "3"), expected)
    assert set(np.unique(read_gt_mask(records["dog"]))) == {0, 255}
    rows = list(records.values())
    sample = SegmentationDataset(rows, info.classes, gt_mask=True)[[one.id for one in rows].index("3")]
    np.testing.assert_array_equal(sample[GT_MASK], expected)
    assert read_gt_mask(read(folder)["3"]).max() == 255


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({255: "cta"}, r"mask_values: 255 is 'cta', which is no class\. Did you mean 'cat'\?"),
        ({256: "cat"}, r"in 0\.\.255, but got 256"),
        ({"x": "cat"}, r"in 0\.\.255, but got 'x'"),
        ({-1: "cat"}, r"in 0\.\.255, but got -1"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(folder: Path, values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        read(folder, mask_values=values)


def test_another_mapping_is_checked_again(folder: Path, tmp_path: Path):
    info = resolve(folder)
    check_dataset(tmp_path / "kept", {"train": list(read(folder).values())}, info.classes)
    mapped = {"train": list(read(folder, mask_values={0: "ignore", 2: "ignore", 255: "ignore"}).values())}
    with pytest.raises(MaskError, match="None of the 7 true masks of train shows any of the 2 classes"):
        check_dataset(tmp_path / "kept", mapped, info.classes)


@pytest.mark.parametrize(("agreeing", "fails"), [(3, True), (4, False)])
def test_masks_of_another_class_list_are_no_truth(agreeing: int, fails: bool):
    agreement = TruthAgreement()
    for k in range(20):
        agreement.add([1], {0, 1 if k < agreeing else 2}, offset=1)
    if not fails:
        agreement.check(split="val", tags=2, ignore_index=255)
        return
    with pytest.raises(MaskError, match=r"Only 3 of 20 tags of val have a pixel of their class.*mask_values"):
        agreement.check(split="val", tags=2, ignore_index=255)
