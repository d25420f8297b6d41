"""Every lossless format gives back every pixel; what others wrote, and what cannot be meant, is read or named."""

import base64
import io
import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import ConfigError, DependencyError, MaskError
from dhr_lightning.formats import labelstudio, yolo
from dhr_lightning.formats.base import id_of
from dhr_lightning.formats.table import FORMATS, get_format
from tests.formats.samples import CLASSES, SIZE, draw, mask_set

LOSSLESS = ["coco", "cvat", "voc", "labelme", "labelstudio", "yolo-sem", "png"]


def exported(folder: Path, name: str, **options: object) -> Path:
    target = folder / name
    target.mkdir()
    FORMATS[name].write(mask_set(folder, **options), target)
    return target


def read(source: Path, name: str, classes: ClassSet = CLASSES) -> dict[str, np.ndarray]:
    return dict(FORMATS[name].read(source, classes, lambda _: SIZE))


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("photos", [True, False])
def test_every_pixel_comes_back(tmp_path: Path, name: str, photos: bool):
    found = read(exported(tmp_path, name, photos=photos), name)
    expected = draw()
    if name == "cvat":
        del expected["empty"]  # and the note says so
    assert found.keys() == expected.keys()
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(found[image_id], mask, err_msg=image_id)


@pytest.mark.parametrize("name", LOSSLESS)
def test_another_order_of_the_classes_is_followed_by_name(tmp_path: Path, name: str):
    source = exported(tmp_path, name)
    turned = ClassSet(("background", *CLASSES.names[:0:-1]))
    if name == "png":
        with pytest.raises(MaskError, match="lists background, cat"):
            read(source, name, turned)
        return
    expected = draw()["holes"]
    found = read(source, name, turned)["holes"]
    for value, other in enumerate(CLASSES.names):
        np.testing.assert_array_equal(found == turned.names.index(other), expected == value)


@pytest.mark.parametrize("name", [*LOSSLESS, "yolo"])
def test_a_class_that_the_data_lack_is_named(tmp_path: Path, name: str):
    if name == "yolo":
        pytest.importorskip("cv2")
    source = exported(tmp_path, name)
    with pytest.raises(MaskError, match=r"犬|lists background"):
        read(source, name, ClassSet(CLASSES.names[:-1]))


def test_photos_lie_where_the_format_looks_for_them(tmp_path: Path):
    places = {"coco": "images", "voc": "JPEGImages", "labelme": "", "labelstudio": "images", "yolo-sem": "images"}
    for name, place in places.items():
        assert (exported(tmp_path, name) / place / "deep/er/ignored.jpg").is_file()


def test_run_lengths_of_label_studio_are_those_that_it_documents():
    """A reader of its own: bits by hand, run by run."""
    pixels = np.zeros((300, 301), bool)
    pixels[3, 4] = pixels[100:290] = True
    bits = "".join(format(one, "08b") for one in labelstudio.encode_rle(pixels))
    take = iter(bits)

    def number(count: int) -> int:
        return int("".join(next(take) for _ in range(count)), 2)

    assert number(32) == pixels.size * 4
    assert number(5) == 7
    sizes = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < pixels.size * 4:
        assert number(1) == 1
        length = number(sizes[number(2)]) + 1
        values += [number(8)] * length
    found = np.array(values, np.uint8).reshape(*pixels.shape, 4)
    for channel in range(4):
        np.testing.assert_array_equal(found[..., channel], 255 * pixels)


def test_bytes_that_are_no_runs_are_read_too():
    """What Label Studio writes where values change from byte to byte: literal values after a flag of 0."""
    values = [0, 0, 0, 255, 0, 0, 0, 0]  # two pixels of RGBA
    bits = format(8, "032b") + format(7, "05b") + "".join(format(one - 1, "04b") for one in (3, 4, 8, 16))
    bits += "0" + "00" + format(7, "03b") + "".join(format(one, "08b") for one in values)
    code = np.packbits(np.array([int(one) for one in bits], np.uint8)).tolist()
    assert labelstudio.decode_rle(code, (1, 2), where="x").tolist() == [[True, False]]
    with pytest.raises(MaskError, match="do not fit 3x1 pixels"):
        labelstudio.decode_rle(code, (1, 3), where="task 1")


def test_a_person_wins_over_a_prediction(tmp_path: Path):
    source = exported(tmp_path, "labelstudio")
    tasks = json.loads((source / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"was_cancelled": True, "result": []}]
    tasks[0]["annotations"].append({"result": tasks[-1]["predictions"][0]["result"]})
    (source / "tasks.json").write_text(json.dumps(tasks))
    found = read(source, "labelstudio")
    np.testing.assert_array_equal(found["holes"], draw()["full"])
    np.testing.assert_array_equal(found["noise"], draw()["noise"])


def test_labelme_by_hand(tmp_path: Path):
    content = json.loads((exported(tmp_path, "labelme") / "holes.json").read_text())
    assert (content["imageHeight"], content["imageWidth"], content["imagePath"]) == (*SIZE, "holes.jpg")
    mask = np.zeros(SIZE, np.uint8)
    for shape in content["shapes"]:
        assert shape["shape_type"] == "mask"
        (left, top), (right, bottom) = shape["points"]
        box = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        assert box.shape == (bottom - top + 1, right - left + 1)
        mask[top : bottom + 1, left : right + 1][box] = CLASSES.names.index(shape["label"])
    np.testing.assert_array_equal(mask, draw()["holes"])


def drawn_by_a_person(tmp_path: Path, *shapes: tuple[str, str, list[list[float]]]) -> Path:
    """A folder of LabelMe files in which somebody replaced the masks of `holes` by shapes `(class, type, points)`."""
    source = exported(tmp_path, "labelme")
    content = json.loads((source / "holes.json").read_text())
    content["shapes"] = [{"label": name, "shape_type": kind, "points": points} for name, kind, points in shapes]
    (source / "holes.json").write_text(json.dumps(content))
    return source


def test_labelme_outlines_are_filled_and_later_ones_lie_above(tmp_path: Path):
    source = drawn_by_a_person(
        tmp_path,
        (CLASSES.names[1], "polygon", [[2, 3], [30, 3], [2, 31]]),
        (CLASSES.names[2], "rectangle", [[12, 9], [4, 5]]),  # from the lower right corner
        (CLASSES.names[3], "circle", [[38, 20], [42, 20]]),
    )
    mask = read(source, "labelme")["holes"]
    rows, columns = np.indices(mask.shape)
    triangle = (columns >= 2) & (rows >= 3) & (columns + rows <= 33)
    box = (columns >= 4) & (columns <= 12) & (rows >= 5) & (rows <= 9)
    distance = np.hypot(columns - 38, rows - 20)
    expected = np.where(box, 2, np.where(triangle, 1, 0))
    decided = np.abs(distance - 4) > 0.7  # the border of a circle is the reader's choice
    np.testing.assert_array_equal(mask[decided], np.where(distance <= 4, 3, expected)[decided])


@pytest.mark.parametrize(
    ("kind", "points", "said"),
    [("line", [[1, 1], [5, 5]], "is a line, which covers no area"), ("polygon", [[1, 1], [5, 5]], "of 2 points")],
)
def test_a_shape_without_area_is_named(tmp_path: Path, kind: str, points: list[list[float]], said: str):
    source = drawn_by_a_person(
        tmp_path, (CLASSES.names[1], "polygon", [[2, 3], [9, 3], [2, 9]]), (CLASSES.names[1], kind, points)
    )
    with pytest.raises(MaskError, match=rf"holes\.json, shape 2 {said}|shape 2 is a {kind} {said}"):
        read(source, "labelme")


def test_cvat_has_all_colours_no_empty_mask_and_an_archive_of_the_same(tmp_path: Path):
    target = tmp_path / "cvat"
    target.mkdir()
    (note,) = FORMATS["cvat"].write(mask_set(tmp_path), target)
    assert note.startswith("1 images without any class are left out")
    table = dict(line.split(":")[:2] for line in (target / "labelmap.txt").read_text().splitlines()[1:])
    assert list(table) == [*CLASSES.names, "ignore"]
    assert len(set(table.values())) == len(table)
    listed = (target / "ImageSets/Segmentation/default.txt").read_text().split()
    with zipfile.ZipFile(target / "cvat.zip") as archive:
        names = archive.namelist()
    for kind in ("SegmentationClass", "SegmentationObject"):
        assert sorted(one for one in names if one.startswith(kind)) == sorted(f"{kind}/{one}.png" for one in listed)
    for image_id, mask in read(target / "cvat.zip", "cvat").items():
        np.testing.assert_array_equal(mask, draw()[image_id])


def test_a_colour_that_the_table_lacks_is_named(tmp_path: Path):
    source = exported(tmp_path, "voc")
    path = source / "SegmentationClass" / "holes.png"
    with Image.open(path) as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(path)
    with pytest.raises(
        MaskError, match=r"SegmentationClass/holes\.png .* the colour 1,2,3, which labelmap\.txt does not"
    ):
        read(source, "voc")
    (source / "labelmap.txt").unlink()
    with pytest.raises(MaskError, match=r"has no labelmap\.txt"):
        read(source, "voc")


def test_a_colon_in_a_name_is_refused_where_it_separates(tmp_path: Path):
    masks = mask_set(tmp_path)
    odd = type(masks)(masks.masks, {}, ClassSet(("background", "a:b", "c", "d", "e")))
    (tmp_path / "out").mkdir()
    with pytest.raises(MaskError, match="'a:b' holds a colon"):
        FORMATS["cvat"].write(odd, tmp_path / "out")


def test_values_outside_the_class_list_are_refused(tmp_path: Path):
    masks = mask_set(tmp_path)
    short = type(masks)(masks.masks, {}, ClassSet(("background", "cat")))
    (tmp_path / "out").mkdir()
    for form in FORMATS.values():
        with pytest.raises(MaskError, match=r"holds 2, which is no class: there are 2, from 0"):
            form.write(short, tmp_path / "out")


def test_coco_reads_polygons_and_uncompressed_runs(tmp_path: Path):
    content = {
        "images": [{"id": 7, "file_name": "images/sub/a.jpg", "height": 4, "width": 6}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "traffic light"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 3, 0, 3, 4, 0, 4]]},
            {"id": 2, "image_id": 7, "category_id": 9, "segmentation": {"size": [4, 6], "counts": [20, 4]}},
        ],
    }
    path = tmp_path / "made.json"
    path.write_text(json.dumps(content))
    mask = read(path, "coco")["sub/a"]
    assert mask[:, :3].tolist() == [[1, 1, 1]] * 4
    assert mask[:, 5].tolist() == [2] * 4
    assert mask[:, 3:5].tolist() == [[0, 0]] * 4
    path.write_text("{}")
    with pytest.raises(MaskError, match="has no 'images'"):
        read(path, "coco")


def test_polygons_say_what_they_lose(tmp_path: Path):
    pytest.importorskip("cv2")
    target = tmp_path / "yolo"
    target.mkdir()
    simple = mask_set(tmp_path, without=("noise", "stripes"))
    (note,) = FORMATS["yolo"].write(simple, target)
    found, expected = read(target, "yolo"), draw()
    lost = sum(int((found[one] != expected[one]).sum()) for one in simple.masks if one != "deep/er/ignored")
    again = found["deep/er/ignored"][expected["deep/er/ignored"] != 255]
    lost += int((again != expected["deep/er/ignored"][expected["deep/er/ignored"] != 255]).sum())
    assert f"{lost} pixels differ" in note
    assert lost > 0  # the hole
    np.testing.assert_array_equal(found["full"], expected["full"])
    assert found["holes"][0, 0] == found["holes"][-1, -1] == 3  # single pixels survive
    assert yaml.safe_load((target / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES.tag_names))


def test_polygons_without_opencv_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(DependencyError, match=r"dhr-lightning\[polygons\].*yolo-sem or coco"):
        yolo.outlines(np.ones((3, 3), bool))


def test_names_of_photos_become_ids():
    assert id_of("images/sub/a.b.jpg") == "sub/a.b"
    assert id_of("JPEGImages/a.png") == "a"
    assert id_of("sub\\a.png") == "sub/a"
    assert id_of("images.jpg") == "images"


def test_two_unicode_forms_of_a_name_are_one_name(tmp_path: Path):
    source = exported(tmp_path, "coco")
    content = json.loads((source / "annotations.json").read_text())
    for one in (*content["categories"], *content["images"]):
        for key in {"name", "file_name"} & one.keys():
            one[key] = unicodedata.normalize("NFD", one[key])
    (source / "annotations.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(read(source, "coco")["holes"], draw()["holes"])
    assert id_of(unicodedata.normalize("NFD", "Tür.jpg")) == "Tür"


def test_an_unknown_format_is_named():
    with pytest.raises(ConfigError, match=r"no format 'coc'\. Did you mean coco"):
        get_format("coc")
