import copy
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh
from dhr_lightning.config import TASK_NAMES
from dhr_lightning.errors import ConfigError, TagError
from dhr_lightning.provenance import identity
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.masks.mars.task import MARSTask
from dhr_lightning.methods.features.task import USSTask
from dhr_lightning.methods.segmenters.wss.task import WSSTask

CLASSES: dict[str, type[BaseTask]] = {task.__name__: task for task in (CAMTask, USSTask, WSSTask, MARSTask, DHRTask)}
SMALL: dict[str, dict[str, Any]] = {
    "CAMTask": {"backbone": "small32", "output_stride": 8, "refine": "none"},
    "USSTask": {"backbone": "patches", "head": "cluster_code"},
    "WSSTask": {"backbone": "small32", "output_stride": 8},
    "MARSTask": {"refine": "none"},
    "DHRTask": {"backbone": "small32", "output_stride": 8, "refine": "none"},
}
NAMES = sorted(CLASSES)


@pytest.fixture
def config(voc_copy: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": {"class_path": "dhr_lightning.methods.segmenters.wss.task.WSSTask", "init_args": {"lr": 0.1}},
        "data": {"dataset": "voc", "root": str(voc_copy), "workspace": str(tmp_path), "num_workers": 2},
        "trainer": {"max_epochs": 3},
        "seed_everything": 0,
    }


def describe(config: dict[str, Any], kind: str = "wss_mask", split: str = "train") -> Manifest:
    store = identity.dataset_of(config)[2]
    records = {name: identity.usable_records(config, name) for name in ("train", split)}
    return identity.describe_artifact(config, kind, split, records=records, store=store)


def seal(config: dict[str, Any], kind: str, **settings: Any) -> None:
    """Put a finished manifest without files."""
    store = identity.dataset_of(config)[2]
    folder = store.folder(kind, "train")
    folder.mkdir(parents=True, exist_ok=True)
    Manifest.create(kind, "voc", "train", ids=["a"], settings=settings).save(folder / "manifest.json")


def test_the_table_lists_every_task():
    assert set(identity.TASKS) == set(CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_written_kinds_are_those_of_the_task(name: str):
    assert identity.TASKS[name].writes == CLASSES[name].writes


@pytest.mark.parametrize("name", NAMES)
def test_read_kinds_have_the_defaults_of_the_signature(name: str):
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    for argument, default in identity.TASKS[name].reads.items():
        assert parameters[argument].default == default
    naming = {argument for argument in parameters if argument in ("masks", "source", "init_from")}
    assert naming == set(identity.TASKS[name].reads)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in NAMES),
        ("WSSTask", {"masks": "mars_mask", "init_from": None}),
        ("WSSTask", {"masks": "truth"}),
        ("MARSTask", {"source": "wss_mask"}),
        ("DHRTask", {"masks": "base_mask", "rebalance": {"uss": False}}),
        ("DHRTask", {"init_from": None, "rebalance": {"uss": True}}),
    ],
)
def test_read_kinds_are_what_the_task_asks_its_data_for(name: str, arguments: dict[str, Any]):
    task = CLASSES[name](["background", "cat", "dog"], **SMALL[name], **arguments)
    wanted = {task.needs.train_masks, task.needs.predict_masks, getattr(task.hparams, "init_from", None)}
    wanted -= {None, "truth", "dhr_mask"}
    if task.needs.train_features or task.needs.predict_features:
        wanted.add("uss")
    config = {"model": {"class_path": name, "init_args": arguments}}
    assert set(identity.read_kinds(config)) == wanted
    assert list(identity.read_kinds(config)) == sorted(wanted)
    written = identity.TASKS[name].writes
    assert tuple(written) == task.needs.predict_splits


@pytest.mark.parametrize("class_path", ["", "Other", "CAMTask.x", None])
def test_an_unknown_task_is_refused(class_path: str | None):
    with pytest.raises(ConfigError, match="one of CAMTask, USSTask, WSSTask, MARSTask, DHRTask"):
        identity.task_name({"model": {"class_path": class_path}})


def test_dataset_root_and_store_follow_the_configuration(config: dict[str, Any], voc_copy: Path, tmp_path: Path):
    info, root, store = identity.dataset_of(config)
    assert (info.name, root, store.root, store.dataset) == ("voc", voc_copy, tmp_path / "artifacts", "voc")
    info, root, store = identity.dataset_of({})
    assert (info.name, root, store.root) == ("microworld", info.root, Path("artifacts"))


def test_usable_records_follow_the_policy(config: dict[str, Any], voc_copy: Path):
    (voc_copy / "Annotations" / "2007_000003.xml").unlink()
    (voc_copy / "Annotations" / "2007_000005.xml").unlink()
    assert len(identity.usable_records(config, "train")) == 3
    config["data"]["untagged"] = "background"
    assert len(identity.usable_records(config, "train")) == 4
    config["data"]["untagged"] = "error"
    with pytest.raises(TagError, match="1 of 4"):
        identity.usable_records(config, "train")
    for policy in ("drop", "background", "error"):
        config["data"]["untagged"] = policy
        assert len(identity.usable_records(config, "val")) == 2


def test_nothing_changed_means_the_same_digest(config: dict[str, Any]):
    assert describe(config).digest == describe(copy.deepcopy(config)).digest


def test_a_changed_tag_changes_the_digest(config: dict[str, Any], voc_copy: Path):
    before = describe(config)
    path = voc_copy / "Annotations" / "2007_000001.xml"
    path.write_text(path.read_text().replace("cat", "dog"))
    after = describe(config)
    assert after.digest != before.digest
    assert after.inputs["data/train"] != before.inputs["data/train"]
    assert (after.ids, after.config) == (before.ids, before.config)


def test_a_changed_photo_changes_the_digest(config: dict[str, Any], voc_copy: Path):
    before = describe(config)
    with (voc_copy / "JPEGImages" / "2007_000002.jpg").open("ab") as file:
        file.write(b"x")
    assert describe(config).inputs["data/train"] != before.inputs["data/train"]


def test_a_removed_image_changes_ids_and_data(config: dict[str, Any], voc_copy: Path):
    before = describe(config)
    (voc_copy / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000001\n2007_000002\n2007_000003\n")
    after = describe(config)
    assert (before.count, after.count) == (4, 3)
    assert after.ids != before.ids
    assert after.inputs["data/train"] != before.inputs["data/train"]


def test_validation_images_count_for_validation_outputs_only(config: dict[str, Any], voc_copy: Path):
    before = {split: describe(config, "prediction_base", split).digest for split in ("train", "val")}
    (voc_copy / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000005\n")
    after = {split: describe(config, "prediction_base", split).digest for split in ("train", "val")}
    assert after["train"] == before["train"]
    assert after["val"] != before["val"]
    assert set(describe(config, "prediction_base", "val").inputs) >= {"data/train", "data/val"}


@pytest.mark.parametrize(
    ("section", "key", "value", "counts"),
    [
        ("model", "init_args", {"lr": 0.2}, True),
        ("data", "batch_size", 7, True),
        ("trainer", "max_epochs", 4, True),
        ("data", "num_workers", 0, False),
        ("trainer", "devices", 2, False),
    ],
)
def test_settings_count_if_they_can_change_the_output(
    config: dict[str, Any], section: str, key: str, value: object, counts: bool
):
    before = describe(config).digest
    config[section][key] = value
    assert (describe(config).digest != before) == counts


def test_inputs_are_named_by_their_digest(config: dict[str, Any]):
    absent = describe(config)
    assert absent.inputs["base_mask/train"] == absent.inputs["cam/train"] == "absent"
    seal(config, "base_mask", tau=0.8)
    first = describe(config)
    seal(config, "base_mask", tau=0.7)
    second = describe(config)
    assert len({absent.digest, first.digest, second.digest}) == 3
    store: ArtifactStore = identity.dataset_of(config)[2]
    manifest = store.manifest("base_mask", "train")
    assert manifest is not None
    assert second.inputs["base_mask/train"] == manifest.digest


def test_information_is_recorded_but_never_compared(config: dict[str, Any]):
    records = {"train": identity.usable_records(config, "train")}
    store = identity.dataset_of(config)[2]
    made = identity.describe_artifact(config, "wss_mask", "train", records=records, store=store, info={"note": "x"})
    assert made.info["note"] == "x"
    assert made.digest == describe(config).digest


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": 15, "callbacks": [{"class_path": "PseudoMaskRefresh", "init_args": {"every": 5}}]}, [0, 5, 10]),
        ({"max_epochs": 11, "callbacks": [{"class_path": "PseudoMaskRefresh", "init_args": {"every": 5}}]}, [0, 5, 10]),
        ({"max_epochs": 10, "callbacks": [{"class_path": "PseudoMaskRefresh", "init_args": {"every": 5}}]}, [0, 5]),
        ({"max_epochs": 3, "callbacks": [{"class_path": "x.y.PseudoMaskRefresh"}]}, [0, 1, 2]),
        ({"max_epochs": 2, "callbacks": {"class_path": "PseudoMaskRefresh", "init_args": None}}, [0, 1]),
        ({"callbacks": [{"class_path": "Other"}, {"class_path": "PseudoMaskRefresh"}]}, [0]),
        ({"max_epochs": 3, "callbacks": [{"class_path": "Other"}]}, []),
        ({"max_epochs": 3, "callbacks": None}, []),
        (None, []),
    ],
)
def test_refresh_epochs_are_every_so_many_below_the_last(trainer: dict[str, Any] | None, expected: list[int]):
    assert identity.refresh_epochs({"trainer": trainer}) == expected


def test_the_refresh_callback_has_the_name_and_default_assumed_here():
    assert PseudoMaskRefresh.__name__ == identity.REFRESH_CALLBACK
    assert inspect.signature(PseudoMaskRefresh.__init__).parameters["every"].default == 1


def test_provenance_does_not_import_torch():
    code = "import sys, dhr_lightning.provenance.identity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_overlays_know_the_same_tasks():
    assert set(TASK_NAMES) == set(identity.TASKS)
