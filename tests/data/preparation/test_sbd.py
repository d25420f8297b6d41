from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.voc import read_voc
from dhr_lightning.data.preparation.sbd import build_train_aug, find_sbd, read_sbd_mask, train_aug_ids
from dhr_lightning.errors import DataError
from tests.data.preparation.benchmark_layouts import values_of

scipy_io = pytest.importorskip("scipy.io")
MASK = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write_mat(path: Path, mask: np.ndarray, field: str = "GTcls") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = np.unique(mask[mask > 0]).reshape(-1, 1)
    scipy_io.savemat(path, {field: {"Boundaries": [], "Segmentation": mask, "CategoriesPresent": categories}})


@pytest.fixture
def sbd(voc_copy: Path) -> Path:
    """SBD beside `VOC2012`: one photo of VOC train, one of VOC val, and two of its own, in its own splits."""
    folder = voc_copy / "sbd"
    (folder / "cls").mkdir(parents=True)
    (folder / "train.txt").write_text("2007_000001\n2008_000009\n")
    (folder / "val.txt").write_text("2007_000005\n2008_000007\n")
    for name in ("2007_000001", "2008_000009", "2007_000005", "2008_000007"):
        write_mat(folder / "cls" / f"{name}.mat", MASK)
        photo = voc_copy / "JPEGImages" / f"{name}.jpg"
        if not photo.is_file():
            photo.write_bytes((voc_copy / "JPEGImages" / "2007_000001.jpg").read_bytes())
            xml = "<annotation><object><name>dog</name></object></annotation>"
            (voc_copy / "Annotations" / f"{name}.xml").write_text(xml)
    return folder


def test_the_union_is_sbd_and_voc_train_without_voc_val(voc_copy: Path, sbd: Path):
    own = [f"2007_00000{n}" for n in (1, 2, 3, 4)]
    assert train_aug_ids(voc_copy, sbd) == [*own, "2008_000007", "2008_000009"]


def test_the_list_and_only_the_masks_that_voc_lacks_are_written(
    voc_copy: Path, sbd: Path, voc_classes: ClassSet, caplog: pytest.LogCaptureFixture
):
    assert build_train_aug(voc_copy, sbd, voc_classes) == 2
    assert "train_aug has 6 images here, 10582 in the published protocol" in caplog.text
    folder = voc_copy / "SegmentationClassAug"
    assert sorted(path.name for path in folder.iterdir()) == ["2008_000007.png", "2008_000009.png"]
    np.testing.assert_array_equal(values_of(folder / "2008_000009.png"), MASK)
    records = {record.id: record for record in read_voc(voc_copy, "train", voc_classes)}
    assert len(records) == 6
    assert records["2008_000007"].tags == (12,)
    assert records["2007_000001"].gt_mask == voc_copy / "SegmentationClass" / "2007_000001.png"
    assert records["2008_000007"].gt_mask == folder / "2008_000007.png"
    val = read_voc(voc_copy, "val", voc_classes)
    assert [record.gt_mask for record in val] == [voc_copy / "SegmentationClass" / f"{r.id}.png" for r in val]


def test_the_work_is_resumed_and_other_peoples_lists_are_kept(voc_copy: Path, sbd: Path, voc_classes: ClassSet):
    build_train_aug(voc_copy, sbd, voc_classes)
    (voc_copy / "SegmentationClassAug" / "2008_000009.png").unlink()
    path = voc_copy / "ImageSets" / "Segmentation" / "train_aug.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))
    assert build_train_aug(voc_copy, sbd, voc_classes) == 1
    assert path.read_text().split()[0] == "2008_000009"


def test_val_prefers_official_masks_to_augmented_ones(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "SegmentationClassAug").mkdir()
    for name in ("2007_000001", "2007_000005"):
        (voc_copy / "SegmentationClassAug" / f"{name}.png").write_bytes(b"x")
    assert read_voc(voc_copy, "train", voc_classes)[0].gt_mask.parent.name == "SegmentationClassAug"
    assert read_voc(voc_copy, "val", voc_classes)[0].gt_mask.parent.name == "SegmentationClass"
    (voc_copy / "SegmentationClass" / "2007_000005.png").unlink()
    assert read_voc(voc_copy, "val", voc_classes)[0].gt_mask.parent.name == "SegmentationClassAug"


@pytest.mark.parametrize("place", ["VOC2012/sbd", "../sbd", "../benchmark_RELEASE/dataset"])
def test_sbd_is_found_in_the_usual_places(tmp_path: Path, place: str):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    folder = tmp_path / "VOCdevkit" / place
    (folder / "cls").mkdir(parents=True)
    root.mkdir(parents=True, exist_ok=True)
    assert find_sbd(root) is None
    (folder / "train.txt").touch()
    assert find_sbd(root).resolve() == folder.resolve()


def test_a_missing_file_is_named(voc_copy: Path, sbd: Path, voc_classes: ClassSet):
    (sbd / "cls" / "2008_000007.mat").unlink()
    with pytest.raises(DataError, match=r"2008_000007\.mat is missing"):
        build_train_aug(voc_copy, sbd, voc_classes)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + b"\0" * 200, b"no matlab"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mat cannot be read"):
        read_sbd_mask(tmp_path / "a.mat")


def test_instance_files_and_other_values_are_refused(tmp_path: Path):
    write_mat(tmp_path / "inst.mat", MASK, field="GTinst")
    with pytest.raises(DataError, match=r"inst\.mat cannot be read"):
        read_sbd_mask(tmp_path / "inst.mat")
    write_mat(tmp_path / "high.mat", MASK + 10)
    with pytest.raises(DataError, match=r"high\.mat holds uint8 \(3, 4\) up to 21"):
        read_sbd_mask(tmp_path / "high.mat")


@pytest.mark.parametrize("image_id", ["../2007_000001", "/etc/passwd", "a\\b", ".hidden"])
def test_a_list_that_leads_out_of_the_folder_is_refused(voc_copy: Path, voc_classes: ClassSet, image_id: str):
    path = voc_copy / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text(f"2007_000005\n{image_id}\n")
    with pytest.raises(DataError, match=r"val\.txt, line 2: .* is no image id but a path"):
        read_voc(voc_copy, "val", voc_classes)
