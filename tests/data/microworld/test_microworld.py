"""The built-in dataset: its statistics, its determinism, its files, and what it refuses to overwrite."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.artifacts.lock import native_lock
from dhr_lightning.data.microworld.generate import (
    MARKER,
    MICROWORLD_CLASSES,
    STUFF_NAMES,
    Scene,
    ensure,
    generate,
    render,
)
from dhr_lightning.errors import DataError

CAT, DOG, CAR, BUS, TRAIN, TABLE, BOTTLE, BIKE, RIDER, BOAT = range(1, 11)
RAILS, WATER = STUFF_NAMES.index("rails"), STUFF_NAMES.index("water")
FREQUENCY = {
    CAT: 0.500,
    DOG: 0.092,
    CAR: 0.333,
    BUS: 0.046,
    TRAIN: 0.089,
    TABLE: 0.333,
    BOTTLE: 0.152,
    BIKE: 0.128,
    RIDER: 0.065,
    BOAT: 0.065,
}


@lru_cache(maxsize=2)
def render_many(is_val: bool) -> tuple[Scene, ...]:
    return tuple(render(0, is_val, index) for index in range(300 if not is_val else 60))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_names_follow_the_mask_values():
    assert MICROWORLD_CLASSES == (
        "background", "cat", "dog", "car", "bus", "train", "table", "bottle", "bike", "rider", "boat",
    )  # fmt: skip
    assert STUFF_NAMES == ("wall", "sky", "carpet", "road", "grass", "rails", "water", "clutter")


def test_an_image_does_not_depend_on_the_order_of_rendering():
    forward = [render(3, False, index) for index in range(6)]
    backward = [render(3, False, index) for index in reversed(range(6))][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert first.image.tobytes() == second.image.tobytes()
        assert first.mask.tobytes() == second.mask.tobytes()
        assert first.stuff.tobytes() == second.stuff.tobytes()


def test_seed_split_and_index_each_change_the_image():
    images = {render(*key).image.tobytes() for key in ((0, False, 0), (1, False, 0), (0, True, 0), (0, False, 1))}
    assert len(images) == 4


@pytest.mark.parametrize("is_val", [False, True])
def test_every_scene_keeps_its_rules(is_val: bool):
    for scene in render_many(is_val):
        pixels = np.bincount(scene.mask.ravel(), minlength=11)
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == scene.mask.dtype == scene.stuff.dtype == np.uint8
        assert scene.tags == tuple(value for value in range(1, 11) if pixels[value])
        assert len(pixels) == 11
        assert 1 <= len(scene.tags) <= 4
        assert min(pixels[list(scene.tags)]) >= 40
        assert pixels[1:].sum() >= 300
        assert scene.stuff.max() < len(STUFF_NAMES)


@pytest.mark.parametrize(("thing", "carrier"), [(BOTTLE, TABLE), (RIDER, BIKE)])
def test_a_minor_class_always_touches_its_large_neighbour(thing: int, carrier: int):
    scenes = [scene for scene in render_many(False) if thing in scene.tags]
    assert len(scenes) > 10
    for scene in scenes:
        inside = np.pad(scene.mask == thing, 1)
        grown = inside[1:-1, 1:-1] | inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]
        assert carrier in scene.mask[grown]


@pytest.mark.parametrize(("thing", "stuff"), [(TRAIN, RAILS), (BOAT, WATER)])
def test_a_train_is_on_rails_and_a_boat_on_water_but_not_the_reverse(thing: int, stuff: int):
    with_stuff = [scene for scene in render_many(False) if np.any(scene.stuff == stuff)]
    with_thing = [scene for scene in render_many(False) if thing in scene.tags]
    for scene in with_thing:
        lowest = np.nonzero((scene.mask == thing).any(axis=1))[0].max()
        below = scene.stuff[lowest][scene.mask[lowest] == thing]
        assert set(below.tolist()) <= {stuff, STUFF_NAMES.index("clutter")}
    assert 0.6 < len(with_thing) / len(with_stuff) < 1.0


def test_class_frequencies_match_the_design():
    scenes = render_many(False)
    for value, expected in FREQUENCY.items():
        found = sum(value in scene.tags for scene in scenes) / len(scenes)
        deviation = np.sqrt(expected * (1.0 - expected) / len(scenes))
        assert abs(found - expected) < 3.5 * deviation, MICROWORLD_CLASSES[value]


def test_a_dog_usually_has_a_cat_beside_it():
    dogs = [scene for scene in render_many(False) if DOG in scene.tags]
    assert sum(CAT in scene.tags for scene in dogs) >= 0.5 * len(dogs)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1"):
        render(-1, False, 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "microworld"
    generate(root, seed=5, train=4, val=2)
    return root


def test_layout_is_that_of_voc(dataset: Path):
    ids = [f"train_{number:04d}" for number in range(1, 5)] + ["val_0001", "val_0002"]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("Annotations", "xml")):
        assert sorted(path.name for path in (dataset / folder).iterdir()) == [
            f"{image_id}.{suffix}" for image_id in ids
        ]
    lists = dataset / "ImageSets" / "Segmentation"
    assert (lists / "train.txt").read_text().split() == ids[:4]
    assert (lists / "val.txt").read_text().split() == ids[4:]
    assert (dataset / "Stuff" / "names.txt").read_text().split() == list(STUFF_NAMES)
    assert json.loads((dataset / MARKER).read_text()) == {"version": 1, "seed": 5, "train": 4, "val": 2}


def test_files_hold_what_was_rendered(dataset: Path):
    scene = render(5, True, 1)
    with Image.open(dataset / "SegmentationClass" / "val_0002.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        np.testing.assert_array_equal(np.asarray(mask), scene.mask)
    with Image.open(dataset / "Stuff" / "val_0002.png") as stuff:
        np.testing.assert_array_equal(np.asarray(stuff), scene.stuff)
    with Image.open(dataset / "JPEGImages" / "val_0002.jpg") as photo:
        difference = np.asarray(photo, dtype=np.int16) - scene.image
    assert np.abs(difference).mean() < 4.0


def test_annotation_has_one_box_per_tag(dataset: Path):
    scene = render(5, False, 0)
    tree = ElementTree.parse(dataset / "Annotations" / "train_0001.xml")
    assert [node.text for node in tree.iterfind("size/*")] == ["128", "128", "3"]
    objects = list(tree.iterfind("object"))
    assert [node.findtext("name") for node in objects] == [MICROWORLD_CLASSES[tag] for tag in scene.tags]
    for node, tag in zip(objects, scene.tags, strict=True):
        left, top, right, bottom = (
            int(node.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        rows, columns = np.nonzero(scene.mask == tag)
        assert (left, right) == (columns.min() + 1, columns.max() + 1)
        assert (top, bottom) == (rows.min() + 1, rows.max() + 1)


def test_generation_is_reproducible(dataset: Path, tmp_path: Path):
    generate(tmp_path / "again", seed=5, train=4, val=2)
    assert snapshot(tmp_path / "again") == snapshot(dataset)


def test_ensure_generates_only_when_something_changed(tmp_path: Path):
    root = tmp_path / "microworld"
    calls: list[tuple[int, int]] = []
    assert ensure(root, train=2, val=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert not ensure(root, train=2, val=1)
    assert ensure(root, train=1, val=1)
    assert [path.name for path in (root / "JPEGImages").iterdir() if "train" in path.name] == ["train_0001.jpg"]
    assert {path.name for path in tmp_path.iterdir()} == {"microworld", ".microworld.lock"}


def test_a_folder_without_marker_is_refused(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"photo\.jpg"):
        ensure(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_foreign_files_beside_the_marker_are_not_deleted(tmp_path: Path):
    root = tmp_path / "microworld"
    ensure(root, train=1, val=1)
    (root / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        ensure(root, seed=1, train=1, val=1)
    assert (root / "notes.txt").read_text() == "mine"
    assert not ensure(root, train=1, val=1)


def test_an_empty_folder_is_used_and_a_file_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert ensure(tmp_path / "empty", train=1, val=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        ensure(tmp_path / "file", train=1, val=1)


@pytest.mark.parametrize(("seed", "train", "val"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_sizes_out_of_range_are_refused(tmp_path: Path, seed: int, train: int, val: int):
    with pytest.raises(ValueError, match="Expected"):
        ensure(tmp_path / "microworld", seed=seed, train=train, val=val)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("earlier", [False, True])
def test_a_killed_generation_never_looks_complete(tmp_path: Path, earlier: bool):
    root = tmp_path / "microworld"
    if earlier:
        generate(root, seed=9, train=1, val=1)
    before = snapshot(root) if earlier else {}
    script = """
        import os, signal, sys
        from pathlib import Path
        from dhr_lightning.data.microworld.generate import ensure
        ensure(Path(sys.argv[1]), train=50, val=1,
               progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 5 else None)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(root)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".microworld.tmp-*"))
    assert root.exists() == earlier
    assert (snapshot(root) if earlier else {}) == before
    assert ensure(root, train=2, val=1)
    assert not list(tmp_path.glob(".microworld.tmp-*"))
    assert len(list((root / "JPEGImages").iterdir())) == 3


def test_who_comes_second_waits_for_the_generation_of_another(tmp_path: Path):
    root = tmp_path / "microworld"
    with native_lock(tmp_path / ".microworld.lock", wait=True):
        second = threading.Thread(target=ensure, args=(root,), kwargs={"train": 1, "val": 1})
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not root.exists()
    second.join(20)
    assert (root / MARKER).is_file()
