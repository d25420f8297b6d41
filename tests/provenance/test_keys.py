"""Which settings and inputs the keys of a step hold: those of its weights, those of its files, or neither."""

import re
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.steps import Read, StepSpec, Write, methods
from tests.provenance.conftest import INPUTS, Make

FIT = {
    "model.init_args.lr": 0.2,
    "model.init_args.force_masks": True,
    "model.init_args.backbone": "resnet18",
    "data.batch_size": 7,
    "data.crop_size": 64,
    "data.seed": 1,
    "data.untagged": "background",
    "data.flip": 0.0,
    "trainer.max_epochs": 4,
    "trainer.precision": "bf16-mixed",
    "trainer.callbacks": [],
    "seed_everything": 1,
}
NEITHER = {
    "model.init_args.workers": 3,
    "data.num_workers": 0,
    "data.predict_batch_size": 1,
    "data.pin_memory": True,
    "data.step": "another_name",
    "trainer.accelerator": "gpu",
    "trainer.devices": 2,
    "trainer.num_nodes": 2,
    "trainer.logger": False,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": False,
    "trainer.default_root_dir": "elsewhere",
    "trainer.num_sanity_val_steps": 0,
    "trainer.check_val_every_n_epoch": 2,
}
PREDICTION = [
    ("cam", "scales"), ("cam", "cam_stride"), ("patches", "scales"), ("patches", "flip"), ("wss", "scales"),
    ("wss", "test_crf"), ("dhr", "scales"), ("dhr", "test_crf"), ("mars", "refine"), ("mars", "crf"),
    ("mars", "rejected"), ("mars", "threshold"), ("mars", "max_lost_tags"), ("mars", "max_rejected"),
    ("mars", "refine_scale"),
]  # fmt: skip
TRAINED = sorted(set(INPUTS) - {"crf"})


@pytest.mark.parametrize("method", sorted(INPUTS))
def test_keys_are_short_names_of_folders_and_repeat(make: Make, method: str):
    one, other = make(method), make(method)
    assert (one.fit_key, one.output_key) == (other.fit_key, other.output_key)
    assert re.fullmatch(r"[0-9a-f]{10}", one.fit_key)
    assert re.fullmatch(r"[0-9a-f]{10}", one.output_key)
    assert one.fit_key != one.output_key
    assert one.run == f"{method}/{one.fit_key}"


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("name", FIT)
def test_settings_of_the_fit_change_weights_and_files(make: Make, method: str, name: str):
    before, after = make(method), make(method, {name: FIT[name]})
    assert after.fit_key != before.fit_key
    assert after.output_key != before.output_key
    assert after.fit_digest() != before.fit_digest()


@pytest.mark.parametrize("method", sorted(INPUTS))
@pytest.mark.parametrize("name", NEITHER)
def test_how_and_where_a_step_runs_changes_nothing(make: Make, method: str, name: str):
    before, after = make(method), make(method, {name: NEITHER[name]})
    assert (after.fit_key, after.output_key) == (before.fit_key, before.output_key)
    assert after.fit_digest() == before.fit_digest()
    kind = next(iter(before.spec.writes))
    assert after.describe(after.address(kind), "train").digest == before.describe(before.address(kind), "train").digest


def test_where_data_and_workspace_lie_changes_nothing(make: Make, tmp_path: Path, tiny_voc: Path):
    before = make("wss")
    after = make("wss", {"data.root": str(tiny_voc), "data.workspace": str(tmp_path / "elsewhere")})
    assert (after.fit_key, after.output_key) == (before.fit_key, before.output_key)
    assert after.run_folder == tmp_path / "elsewhere" / "runs" / "voc" / before.run
    assert after.store.root == tmp_path / "elsewhere" / "artifacts"


@pytest.mark.parametrize(("method", "name"), PREDICTION)
def test_settings_of_prediction_change_the_files_alone(make: Make, method: str, name: str):
    before, after = make(method), make(method, {f"model.init_args.{name}": 0.25})
    assert after.fit_key == before.fit_key
    assert after.fit_digest() == before.fit_digest()
    assert after.output_key != before.output_key


def test_the_list_of_prediction_settings_above_is_complete():
    fitted = {(name, setting) for name in TRAINED for setting in methods()[name].spec.predict_only}
    assert fitted == set(PREDICTION)


def test_masks_of_a_refresh_lie_under_the_key_of_the_fit_and_predictions_under_that_of_the_files(make: Make):
    before, after = make("dhr"), make("dhr", {"model.init_args.scales": [1.0]})
    assert after.address("mask") == before.address("mask") == f"dhr/{before.fit_key}/mask"
    assert before.address("prediction") == f"dhr/{before.output_key}/prediction"
    assert after.address("prediction") != before.address("prediction")


@pytest.mark.parametrize("name", ["background", "refine", "crf", "any_other"])
def test_a_method_without_fit_has_its_arguments_in_the_key_of_its_files(make: Make, name: str):
    before, after = make("crf"), make("crf", {f"model.init_args.{name}": 0.25})
    assert after.fit_key == before.fit_key
    assert after.output_key != before.output_key


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, value in FIT.items() if name.startswith(("trainer", "seed")) or name in (
        "data.batch_size", "data.crop_size", "data.seed", "data.flip")],
)  # fmt: skip
def test_a_method_without_fit_does_not_depend_on_how_others_are_fitted(make: Make, name: str, value: Any):
    before, after = make("crf"), make("crf", {name: value})
    assert (after.fit_key, after.output_key) == (before.fit_key, before.output_key)
    assert make("crf", {"data.untagged": "background"}).output_key != before.output_key


@pytest.mark.parametrize(
    ("method", "port", "in_fit"),
    [
        ("crf", "cam", False),  # read in prediction alone
        ("wss", "masks", True),
        ("wss", "init", True),
        ("mars", "features", True),
        ("dhr", "masks", True),  # by refreshes, which are part of the fit
        ("dhr", "features", True),
        ("dhr", "init", True),
    ],
)
def test_an_input_counts_by_its_address(make: Make, method: str, port: str, in_fit: bool):
    before = make(method)
    other = INPUTS[method][port].replace("1a2b", "9z8y").replace("3c4d", "9z8y")
    after = make(method, **{port: other})
    assert (after.fit_key != before.fit_key) == in_fit
    assert after.output_key != before.output_key


def test_the_step_that_an_input_comes_from_may_have_any_name_and_be_absent(make: Make, seal, fitted):
    before = make("dhr")
    keys = before.fit_key, before.output_key
    for address in ("mars/1a2b/mask", "patches/1a2b/features"):
        seal(address, tau=1)
    fitted("cam/3c4d", b"weights")
    after = make("dhr")
    assert (after.fit_key, after.output_key) == keys


def test_an_input_that_is_null_is_none(make: Make):
    without = make("dhr", features=None)
    assert set(without.inputs) == {"masks", "init"}
    assert without.fit_key != make("dhr").fit_key


def test_a_file_of_weights_counts_by_its_content(make: Make, tmp_path: Path):
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    name = "model.init_args.pretrained"
    keys = [make("cam", {name: value}).fit_key for value in (str(one), str(other), True, False)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    other.write_bytes(b"others")
    assert make("cam", {name: str(other)}).fit_key not in keys
    before = make("cam", {name: str(one)}).fit_key
    (tmp_path / "one.pth.json").write_text('{"mean": [0.5, 0.5, 0.5]}')
    assert make("cam", {name: str(one)}).fit_key != before  # how images are prepared for it
    other.unlink()
    assert make("cam", {name: str(other)}).fit_key not in keys  # what is not there counts by its name


def test_methods_of_one_task_have_keys_of_their_own(make: Make):
    assert make("crf").output_key != make("crf", {"data.method": "pamr"}).output_key
    assert make("patches").fit_key != make("patches", {"data.method": "fitted"}).fit_key


def test_equal_numbers_in_other_spellings_are_equal(make: Make):
    one = make("cam", {"model.init_args.lr": 1, "model.init_args.scales": [1, 2]})
    other = make("cam", {"model.init_args.lr": 1.0, "model.init_args.scales": (1.0, 2.0)})
    assert (one.fit_key, one.output_key) == (other.fit_key, other.output_key)


def test_data_of_an_own_folder_count_by_classes_and_not_by_how_files_are_found(make: Make, tmp_path: Path):
    from tests.data.datasets.folder_samples import write_folder

    root = write_folder(tmp_path / "photos", "image,tag\na,cat\nb,dog\n", ["a.jpg", "b.jpg"])
    own = {"data.dataset": "folder", "data.root": str(root)}
    before = make("cam", {**own, "data.options": {"holdout": 0}})
    assert make("cam", {**own, "data.options": {"holdout": 0.5, "unmatched": "ignore"}}).fit_key == before.fit_key
    more = make("cam", {**own, "data.options": {"classes": ["cat", "dog", "bus"]}})
    assert more.fit_key != before.fit_key
    assert before.address("cam") != more.address("cam")


def test_neutral_settings_of_a_method_are_its_own_to_say(make: Make, monkeypatch: pytest.MonkeyPatch):
    spec = StepSpec(
        "toy", "toy.Toy", "for tests", reads={"masks": Read(("mask",), predict=True)}, writes={"mask": Write()},
        predict_only=("late", "threads"), neutral=("threads",),
    )  # fmt: skip
    monkeypatch.setattr("dhr_lightning.provenance.identity.get_method", lambda name: type("M", (), {"spec": spec}))
    monkeypatch.setitem(INPUTS, "toy", {"masks": "crf/1a2b/mask"})
    plain = make("toy")
    for name, in_fit, in_files in (
        ("threads", False, False),
        ("compile", False, False),
        ("late", False, True),
        ("workers", True, True),
    ):
        changed = make("toy", {f"model.init_args.{name}": 5})
        assert (changed.fit_key != plain.fit_key) == in_fit, name
        assert (changed.output_key != plain.output_key) == in_files, name
