from typing import Any, cast

import pytest

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.gate import Gate
from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.evaluation.kinds import MaskKind, find_kinds
from dhr_lightning.evaluation.truth import GroundTruth
from dhr_lightning.reporting.tables import ladder
from dhr_lightning.reporting.verdict import _milestones
from tests.reporting.conftest import entries_in


def test_masks_of_the_baseline_are_no_step_before_the_next():
    names = ("crf/mask", "wss/mask", "mars/mask")
    kinds = [MaskKind(name, "train", (), is_branch=name == "wss/mask") for name in names]
    scores: dict[str, Any] = {kind.key: {"miou": miou} for kind, miou in zip(kinds, (0.6, 0.5, 0.7), strict=True)}
    bars = ladder(kinds, cast("dict[str, Figures]", scores), chained=True, scored=True)
    assert [bar.change for bar in bars] == ["", "−10.0", "+10.0"]


@pytest.mark.parametrize(
    ("inputs", "branches"),
    [
        (("mars/mask/train", "cam/cam/train"), ["wss/mask"]),
        (("crf/mask/train", "cam/cam/train"), ["mars/mask", "wss/mask"]),
        (("wss/mask/train", "mars/mask/train"), []),
    ],
)
def test_masks_that_no_later_ones_were_made_from_are_branches(store, truth, put, inputs, branches):
    for kind in ("crf/mask", "wss/mask", "mars/mask"):
        put(kind, "train", truth.draw, inputs=[] if kind == "crf/mask" else ["crf/mask/train"])
    put("dhr/mask/round_00", "train", truth.draw, inputs=inputs)
    kinds, _ = find_kinds(store, entries_in(store), {"train": truth.ids("train")}, splits=["train"])
    assert sorted(kind.address for kind in kinds if kind.is_branch) == branches
    steps = [kind.address for kind in _milestones(kinds, "train")]
    assert ("mars/mask" in steps) == ("mars/mask" not in branches)


@pytest.mark.parametrize("harmful", [False, True])
def test_harmful_masks_are_beside_the_way(store: ArtifactStore, truth: GroundTruth, put: Any, harmful: bool):
    put("crf/mask", "train", lambda name: truth.mask("train", name))
    put("mars/mask", "train", lambda name: truth.mask("train", name))
    manifest = store.manifest("mars/mask", "train").with_info(gate=Gate("crf/mask", 0.5 * harmful, 0, 0.1, 1).record())
    manifest.save(store.folder("mars/mask", "train") / "manifest.json")
    kinds, _ = find_kinds(store, entries_in(store), {"train": truth.ids("train")}, splits=["train"])
    assert [(kind.address, kind.is_branch) for kind in kinds] == [("crf/mask", False), ("mars/mask", harmful)]
