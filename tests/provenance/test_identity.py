"""What manifests of a step say, which artifacts it makes and reads, and what is refused."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.callbacks.refresh import PseudoMaskRefresh
from dhr_lightning.errors import ConfigError, TagError
from dhr_lightning.provenance.identity import REFRESH_CALLBACK, StepIdentity, checked_inputs, refresh_epochs, spec_of
from dhr_lightning.provenance.views import DataView, DataViews
from dhr_lightning.steps import Read, StepSpec, methods
from tests.provenance.conftest import Make


@pytest.fixture
def data(voc_copy: Path, tmp_path: Path) -> dict[str, Any]:
    return {"dataset": "voc", "root": str(voc_copy), "workspace": str(tmp_path)}


def test_root_and_store_follow_the_configuration(data: dict[str, Any], voc_copy: Path, tmp_path: Path):
    view = DataView(data)
    assert (view.info.name, view.root) == ("voc", voc_copy)
    assert (view.store.root, view.store.dataset) == (tmp_path / "artifacts", "voc")
    assert view.splits == ("train", "val")
    plain = DataView({})
    assert (plain.info.name, plain.root, plain.store.root) == ("microworld", plain.info.root, Path("artifacts"))


def test_records_follow_the_policy(data: dict[str, Any], voc_copy: Path):
    for name in ("2007_000003", "2007_000005"):
        (voc_copy / "Annotations" / f"{name}.xml").unlink()
    for policy, count in (("drop", 3), ("background", 4), (None, 3)):
        view = DataView({**data, "untagged": policy})
        assert (len(view.records("train")), len(view.records("val"))) == (count, 2)
    strict = DataView({**data, "untagged": "error"})
    assert len(strict.records("val")) == 2
    with pytest.raises(TagError, match="1 of 4"):
        strict.records("train")


def test_a_plan_reads_a_dataset_once(data: dict[str, Any], voc_copy: Path, monkeypatch: pytest.MonkeyPatch):
    views = DataViews()
    steps = [StepIdentity({"data": {**data, "method": name, "num_workers": 1}}, views) for name in ("cam", "stego")]
    steps.append(StepIdentity({"data": {**data, "method": "wss", "inputs": {"masks": "mask"}, "seed": 3}}, views))
    assert len({id(step.data) for step in steps}) == 1
    digest = steps[0].data.digest("train")
    (voc_copy / "JPEGImages" / "2007_000001.jpg").write_bytes(b"changed while the plan is made")
    assert [step.data.digest("train") for step in steps] == [digest] * 3
    assert views.of({"data": {**data, "untagged": "error"}}) is not steps[0].data
    assert DataView(data).digest("train") != digest


def test_a_manifest_names_step_settings_and_inputs_and_holds_the_configuration(make: Make, seal):
    made = seal("crf/1a2b/mask", tau=0.8)
    step = make("wss", {"data.step": "baseline"})
    manifest = step.describe(step.address("mask"), "train", info={"note": "x"})
    assert manifest.address == f"wss/{step.output_key}/mask"
    assert (manifest.dataset, manifest.split, manifest.count) == ("voc", "train", 4)
    assert manifest.settings == step.settings
    assert set(manifest.inputs) == {"data/train", "crf/1a2b/mask/train", "weights cam/3c4d"}
    assert manifest.inputs["crf/1a2b/mask/train"] == made.digest
    assert manifest.inputs["weights cam/3c4d"] == "absent"
    assert (manifest.info["step"], manifest.info["note"]) == ("baseline", "x")
    again = StepIdentity(manifest.info["config"])
    assert again.describe(again.address("mask"), "train").digest == manifest.digest  # it can be judged by itself


def test_information_is_recorded_but_never_compared(make: Make):
    step = make("cam")
    plain = step.describe(step.address("cam"), "train")
    told = step.describe(step.address("cam"), "train", info={"note": "x"})
    assert told.digest == plain.digest
    assert told.changes_to(plain) == []


def digests(step: StepIdentity) -> tuple[str, str]:
    """Of the files, and of the fit."""
    return step.describe(step.address("mask"), "train").digest, step.fit_digest()


def test_remade_inputs_and_weights_make_a_step_stale_and_move_no_key(make: Make, seal, fitted):
    seen, keys = [digests(make("wss"))], make("wss").output_key
    for change in (
        lambda: seal("crf/1a2b/mask", tau=0.8),
        lambda: seal("crf/1a2b/mask", tau=0.7),
        lambda: fitted("cam/3c4d", b"weights"),
        lambda: fitted("cam/3c4d", b"other weights", "version_1"),
    ):
        change()
        seen.append(digests(make("wss")))
    assert len({one for one, _ in seen}) == len({other for _, other in seen}) == 5
    assert make("wss").output_key == keys


def test_what_prediction_alone_reads_does_not_make_the_fit_stale(make: Make, seal):
    before = digests(make("crf"))
    seal("cam/1a2b/cam", tau=0.8)
    after = digests(make("crf"))
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_changed_tag_photo_or_list_makes_a_step_stale_and_moves_no_key(make: Make, voc_copy: Path):
    seen, keys = [digests(make("wss"))], {make("wss").output_key}
    annotation, photo = voc_copy / "Annotations" / "2007_000001.xml", voc_copy / "JPEGImages" / "2007_000002.jpg"
    images = voc_copy / "ImageSets" / "Segmentation" / "train.txt"
    for change in (
        lambda: annotation.write_text(annotation.read_text().replace("cat", "dog")),
        lambda: photo.write_bytes(photo.read_bytes() + b"x"),
        lambda: images.write_text("2007_000001\n2007_000002\n2007_000003\n"),
    ):
        change()
        seen.append(digests(make("wss")))
        keys.add(make("wss").output_key)
    assert len({one for one, _ in seen}) == len({other for _, other in seen}) == 4
    assert len(keys) == 1


def test_validation_images_count_for_validation_outputs_only(make: Make, voc_copy: Path):
    def both() -> tuple[Any, str]:
        step = make("wss")
        return {split: step.describe("mask", split) for split in ("train", "val")}, step.fit_digest()

    before, fit = both()
    (voc_copy / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000005\n")
    after, fit_after = both()
    assert fit_after == fit
    assert after["train"].digest == before["train"].digest
    assert after["val"].digest != before["val"].digest
    assert set(after["val"].inputs) >= {"data/train", "data/val"}


def test_ground_truth_changes_nothing_that_tags_made(make: Make, voc_copy: Path):
    before = digests(make("wss"))
    for path in (voc_copy / "SegmentationClass").iterdir():
        path.unlink()
    assert digests(make("wss")) == before


def test_outputs_are_those_of_the_splits_and_rounds_that_there_are(make: Make):
    wss, dhr, crf = make("wss"), make("dhr"), make("crf")
    assert wss.outputs() == [(wss.address("mask"), "train"), (wss.address("prediction"), "val")]
    masks = dhr.address("mask")
    assert dhr.outputs() == [(f"{masks}/round_0{k}", "train") for k in range(3)] + [(dhr.address("prediction"), "val")]
    assert dhr.outputs_of_prediction() == [(dhr.address("prediction"), "val")]
    assert (dhr.final("mask"), dhr.final("prediction")) == (f"{masks}/round_02", dhr.address("prediction"))
    assert crf.outputs() == crf.outputs_of_prediction() == [(crf.final("mask"), "train")]


def test_the_ground_truth_is_no_artifact(make: Make):
    step = make("wss", masks="truth")
    assert step.used_inputs() == {}
    assert set(step.input_digests()) == {"data/train", "weights cam/3c4d"}
    assert step.fit_key != make("wss").fit_key


@pytest.mark.parametrize(
    ("method", "inputs", "message"),
    [
        ("wss", {"features": "a"}, r"base has no input 'features'\. It reads masks, init\."),
        ("cam", {"masks": "a"}, r"base has no input 'masks'\. It reads images and tags only\."),
        ("wss", {"masks": None}, r"base reads masks \(mask or label\), but nothing is named\. .*data\.inputs\.masks"),
        ("mars", {"masks": "truth"}, r"base cannot read the ground truth as masks: it is for evaluation only\."),
        ("dhr", {"init": "truth"}, "ground truth as init"),
    ],
)
def test_inputs_that_do_not_fit_the_method_are_refused(make: Make, method: str, inputs: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        _ = make(method, {"data.step": "base"}, **inputs).inputs


def test_weights_that_a_method_needs_are_called_so():
    with pytest.raises(ConfigError, match=r"last reads start \(weights\), but nothing is named"):
        checked_inputs(StepSpec("toy", "a.B", "", reads={"start": Read()}), {}, "last")


def test_a_method_is_named_or_the_first_of_its_task():
    for name, method in methods().items():
        assert spec_of({"data": {"method": name}, "model": {"class_path": "other"}}) is method.spec
        for class_path in (method.spec.task, method.spec.task_name):
            assert spec_of({"model": {"class_path": class_path}}).task == method.spec.task
    assert spec_of({"model": {"class_path": "PropagationTask"}}).name == "crf"


@pytest.mark.parametrize("class_path", ["", "Other", "CAMTask.x", None])
def test_an_unknown_task_is_refused(class_path: str | None):
    with pytest.raises(
        ConfigError, match=r"No method belongs to .*Set data\.method to one of (\w+, )*mars, (\w+, )*\w+\."
    ):
        spec_of({"model": {"class_path": class_path}})


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
    assert refresh_epochs({"trainer": trainer}) == expected


def test_the_refresh_callback_has_the_name_and_default_assumed_here():
    assert PseudoMaskRefresh.__name__ == REFRESH_CALLBACK
    assert inspect.signature(PseudoMaskRefresh.__init__).parameters["every"].default == 1


@pytest.mark.parametrize("module", ["provenance.recorded", "provenance.start_checks", "steps", "pipeline.command"])
def test_planning_does_not_import_torch(module: str):
    code = (
        f"import sys, dhr_lightning.{module}, dhr_lightning.steps as s; s.methods(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
