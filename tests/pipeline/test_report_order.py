"""The masks that a report judges are those of the deepest step, wherever its recipe names it."""

from types import SimpleNamespace
from typing import Any

import pytest

from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.pipeline.reports import by_depth, entries_of, graph_of


def steps(**reads: list[str]) -> list[Any]:
    return [
        SimpleNamespace(name=name, step=SimpleNamespace(sources=lambda found=found: [("port", one) for one in found]))
        for name, found in reads.items()
    ]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        (
            {"cam": [], "crf": ["cam"], "dhr": ["crf", "cam"], "final": ["dhr"], "baseline": ["crf"]},
            ["cam", "crf", "dhr", "baseline", "final"],
        ),
        ({"uss": [], "cam": ["uss"], "seg": ["cam"], "other": ["cam", "uss"]}, ["uss", "cam", "seg", "other"]),
        ({"masks": ["truth"], "seg": ["masks"]}, ["masks", "seg"]),
    ],
)
def test_the_longest_chain_comes_last_and_the_rest_keeps_its_order(reads: dict[str, list[str]], expected: list[str]):
    assert [step.name for step in by_depth(steps(**reads))] == expected


def test_artifacts_and_graph_of_a_report_end_with_the_deepest_step():
    """The last of them is pictured, and stands for its recipe beside others."""
    found = steps(cam=[], crf=["cam"], dhr=["crf"], final=["dhr"], baseline=["crf"])
    for step in found:
        step.outputs = lambda name=step.name: [(f"{name}/1a2b/prediction", "val")]
        step.identity, step.step.use, step.seconds = None, "toy", lambda: 1.0
    plan: Any = SimpleNamespace(steps=found, recipe=SimpleNamespace(name="toy"))
    entries = entries_of([plan])
    assert [entry.step for entry in entries] == ["cam", "crf", "dhr", "baseline", "final"]
    assert [step.name for step in graph_of(plan, entries, "toy").steps] == ["cam", "crf", "dhr", "baseline", "final"]


def test_steps_of_one_method_can_be_told_apart_by_their_labels():
    """Several outputs of one step keep one label; a second step of the same method makes both say which they are."""
    found = steps(cam=[], segmenter=["cam"], segmenter_crf=["cam"])
    for step, label in zip(found, ("CAM", "Light", "Light"), strict=True):
        step.outputs = lambda name=step.name: [(f"{name}/1a2b/mask", "train"), (f"{name}/1a2b/prediction", "val")]
        step.identity = SimpleNamespace(spec=SimpleNamespace(label=label, name="toy", about="a toy"))
    plan: Any = SimpleNamespace(steps=found, recipe=SimpleNamespace(name="toy"))
    labels = [entry.label for entry in entries_of([plan])]
    assert labels == ["CAM", "CAM", *["Light (segmenter)"] * 2, *["Light (segmenter_crf)"] * 2]
    kinds = [MaskKind("light/1a2b/prediction", "val", (), label_of_method=label) for label in (*labels[3:5], "DHR")]
    assert [kind.label for kind in kinds] == ["Light (segmenter)", "Light (segmenter_crf)", "DHR segmenter"]
