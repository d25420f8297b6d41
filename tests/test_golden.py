"""Results of the small run against kept figures, and what such a comparison notices."""

import importlib
import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest_plugins = ["tests.pipeline_fixtures"]

ROOT = Path(__file__).resolve().parent
HINT = "If this change is meant: `make golden ARGS='--chain debug --write'`, and the quick start likewise."


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT.parent / "tools")
    return importlib.import_module("golden")


@pytest.fixture
def kept() -> dict[str, Any]:
    return json.loads((ROOT / "golden" / "debug.json").read_text(encoding="utf-8"))


def test_masks_scores_and_weights_of_the_small_run_are_those_that_were_kept(golden, kept, finished_runs: Path):
    assert golden.differences(kept, golden.figures(finished_runs), golden.CHAINS["debug"]) == [], HINT


def test_equal_figures_have_no_differences(golden, kept):
    assert golden.differences(kept, deepcopy(kept), golden.CHAINS["debug"]) == []


@pytest.mark.parametrize("part", ["masks", "scores", "weights"])
def test_a_kind_that_is_gone_or_new_is_named(golden, kept, part: str):
    found = deepcopy(kept)
    name = next(iter(found[part]))
    found[part]["another"] = found[part].pop(name)
    wrong = golden.differences(kept, found, golden.CHAINS["debug"])
    assert wrong == sorted([f"{part} of {name}: gone", f"{part} of another: new"], key=lambda text: text.split(":")[0])


def test_masks_may_differ_on_few_pixels_only(golden):
    chain = golden.Chain((), pixels=0.995, score=0, weight=0, weights=0)
    mask = np.zeros((40, 40), np.int64)
    some, many = mask.copy(), mask.copy()
    some[0, :8], many[0, :9] = 3, 3  # 0.5 % of 1600 pixels, and one more
    kept, same, changed = ({"image": golden.shorten(one)} for one in (mask, some, many))
    assert golden.compare_masks(kept, same, chain) == ""
    assert "image 99.4%" in golden.compare_masks(kept, changed, chain)
    assert "size" in golden.compare_masks(kept, {"image": golden.shorten(mask[:, :20])}, chain)
    assert "other" in golden.compare_masks(kept, {"other": kept["image"]}, chain)


@pytest.mark.parametrize(
    ("kept", "found", "same"),
    [
        (0.5, 0.509, True),
        (0.5, 0.511, False),
        (0.5, 0.489, False),
        (None, None, True),
        (None, 0.0, False),
        (0.0, None, False),
    ],
)
def test_scores_may_differ_by_a_point(golden, kept: float | None, found: float | None, same: bool):
    chain = golden.Chain((), pixels=0, score=0.01, weight=0, weights=0)
    assert (golden.compare_scores({"miou": kept}, {"miou": found}, chain) == "") is same


def test_weights_may_differ_by_a_share_of_their_size(golden):
    chain = golden.Chain((), pixels=0, score=0, weight=0.02, weights=0.95)
    values = np.linspace(-1, 1, 41)
    kept = {"encoder": [2.0, *values]}
    assert golden.compare_weights(kept, {"encoder": [2.0, *(values + 0.039)]}, chain) == ""
    assert golden.compare_weights(kept, {"encoder": [2.0, *(values + 0.041)]}, chain) == "encoder"
    assert golden.compare_weights(kept, {"encoder": [2.0, 9.0, -9.0, *values[2:]]}, chain) == ""
    assert golden.compare_weights(kept, {"encoder": [2.0, 9.0, -9.0, 9.0, *values[3:]]}, chain) == "encoder"
    assert golden.compare_weights(kept, {"encoder": [2.0, *values[:-1]]}, chain) == "encoder"
    assert "decoder" in golden.compare_weights(kept, {"decoder": kept["encoder"]}, chain)


def test_a_label_map_survives_its_short_form(golden):
    mask = np.random.default_rng(0).integers(0, 3, (7, 5))
    assert np.array_equal(golden.expand(golden.shorten(mask)), mask)
    assert golden.shorten(np.array([[0, 0, 255], [255, 1, 1]])) == "3 0*2 255*2 1*2"
