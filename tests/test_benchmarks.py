"""The table of a run on photos, and the plain mask step that the batched one is timed against."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dhr_lightning.evaluation.truth import TruthFacts
from dhr_lightning.ops.profiles import PROFILES
from dhr_lightning.pipeline.plan import make_plan

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_frequent_classes_are_averaged_with_the_background(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    facts = TruthFacts(
        names=("background", "cat", "dog", "sofa"),
        offset=1,
        ignore_index=255,
        adjacent=(),
        stuff_names=(),
        background_pairs=(),
        tag_counts=(0, 100, 89, 90),
        head=(),
        tail=(),
    )
    figures = {
        "iou": {"background": 0.9, "cat": 0.5, "dog": 0.0, "sofa": None},
        "miou": 0.4,
        "vanished_tag_rate": 0.125,
        "missing_tag_rate": None,
        "images": 7,
    }
    text = importlib.import_module("real_table").table(
        {"metrics": {"cam/train": figures}, "seconds": {"fit cam": 60.0}}, facts
    )
    assert "the 2 classes with 90 training photos or more (cat, sofa)" in text
    assert "| cam/train | 7 | 46.7 | 40.0 | 90.0 | 12.5 |  |" in text
    assert "fit cam 60 s; 1 min in all." in text


@pytest.mark.parametrize("profile", PROFILES)
def test_plain_mask_step_equals_the_batched_one(monkeypatch, profile):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("ratio_mask_step")
    batch = module.make_batch([1, 2, 3, 4], size=(60, 80), grid=(6, 8), deep=(5, 7), channels=(16, 32))
    heatmaps, labels = module.difference(batch, profile)
    assert heatmaps < 1e-3
    assert labels < 1e-3
    result = module.batched(batch, profile)
    assert result.recovered.any()
    assert result.groups.any()


def test_rows_of_a_gpu_are_made_on_any_device(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module, base = importlib.import_module("ratio_gpu"), importlib.import_module("ratio_base")
    setup = module.Setup(torch.device("cpu"), side=64, counts=(1, 2), batch=2, copied=1)
    rows = list(module.measure(setup, base.Options(repeats=1)))
    assert len({row.name for row in rows}) == len(rows) == 2 + 2
    assert all(row.value > 0 for row in rows)


def test_the_cost_of_dhr_training_is_measured_on_any_device(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module, base = importlib.import_module("ratio_training"), importlib.import_module("ratio_base")
    setup = module.Setup(torch.device("cpu"), side=64, batch=2, backbone="small32", strides=(8,))
    types = 1 + module.pays(setup.device)
    rows = list(module.measure(setup, base.Options(repeats=1)))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) == 3 * 4 + types * 3
    assert all(row.value > 0 for row in rows)
    overhead = {
        name: row.value for name, row in zip(names, rows, strict=True) if "every" in name and "CRF at 1" in name
    }
    every1, every2, every5, _ = overhead.values()
    assert every1 - 1 == pytest.approx(2 * (every2 - 1)) == pytest.approx(5 * (every5 - 1))
    assert "100.00 % of the labels as at full size" in rows[0].detail
    taken = [int(re.search(r"at most (\d+) MiB", row.detail)[1]) for row in rows if row.unit == "img/s"]
    assert len(taken) == 2 * types
    assert all(0 < one < 1000 for one in taken)


def test_a_refresh_is_timed_in_both_ways_with_equal_masks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module, base = importlib.import_module("ratio_refresh"), importlib.import_module("ratio_base")
    setup = module.Setup(torch.device("cpu"), side=32, batch=2, backbone="small32")
    row = module.measure(setup, base.Options(repeats=1))
    assert row.value > 0
    assert "equal masks" in row.detail


def test_seconds_in_checks_are_counted_wherever_they_are_imported_and_nested_ones_once(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("ratio_guards")
    recorded = importlib.import_module("dhr_lightning.provenance.recorded")
    runner = importlib.import_module("dhr_lightning.pipeline.runner")
    files = importlib.import_module("dhr_lightning.data.files")
    before = recorded.check_inputs
    clock = iter([0.0, 1.0, 3.0, 7.0])  # outer starts, inner starts and ends, outer ends
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(recorded, "check_inputs", lambda: files.check_mask())
    monkeypatch.setattr(runner, "check_inputs", recorded.check_inputs)
    monkeypatch.setattr(files, "check_mask", lambda: None)
    mine = runner.check_inputs
    with module.counted(("provenance.recorded.check_inputs", "data.files.check_mask")) as seconds:
        runner.check_inputs()
    assert seconds == {"provenance.recorded.check_inputs": 7.0, "data.files.check_mask": 0.0}
    assert runner.check_inputs is mine is not before


def test_the_table_of_methods_trains_all_seeds_alike_unless_told_otherwise(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    table = importlib.import_module("methods_table")
    monkeypatch.setattr("sys.argv", ["methods_table.py", "--workspace", "there", "--train", "400"])
    shipped = table.base_request(table._parse(), 2)
    cam, seam, sfc = (make_plan(replace(shipped, swaps={"cam": name}))["cam"] for name in ("cam", "seam", "sfc"))
    for section, names in (("data", ("crop_size", "scale", "options")), ("trainer", ("max_epochs",))):
        one, *others = [[step.identity.config[section][name] for name in names] for step in (cam, seam, sfc)]
        assert others == [one, one]
    assert (cam.identity.config["data"]["crop_size"], cam.identity.config["data"]["options"]["seed"]) == (128, 2)
    monkeypatch.setattr("sys.argv", ["methods_table.py", "--workspace", "there", "--cam.trainer.max_epochs=6"])
    assert make_plan(table.base_request(table._parse(), 2))["cam"].identity.config["trainer"]["max_epochs"] == 6


def test_the_table_of_methods_goes_further_on_the_built_in_data_alone(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    table = importlib.import_module("methods_table")
    one = {"miou": 0.5, "rails": 0.25, "seconds": 3.0}
    assert "rails" not in table.table({"cam + crf": [one]})
    assert "| rails as train |" in table.table({"cam + crf": [one], "cam + crf + mars": [one]})
    given = ["methods_table.py", "--workspace", "there", "--further", "--photos", "VOC", "--weights", "FILE"]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit):
        table._parse()
    assert "has no MARS" in capsys.readouterr().err
