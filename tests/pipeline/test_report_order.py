"""The masks that a report judges are those of the deepest step, wherever its recipe names it."""

from types import SimpleNamespace
from typing import Any

import pytest

from dhr_lightning.pipeline.reports import by_depth


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
