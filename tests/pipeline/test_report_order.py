"""The masks that a report judges are those of the deepest step, wherever its recipe names it."""

from types import SimpleNamespace
from typing import Any

import pytest

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
