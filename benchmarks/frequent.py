"""The frequent classes of a dataset, over which figures on photos are averaged: rare ones are noise on a subset."""

from collections.abc import Mapping, Sequence

from dhr_lightning.evaluation.truth import TruthFacts

FREQUENT = 90


def frequent_names(facts: TruthFacts) -> list[str]:
    """Classes with at least `FREQUENT` tagged training photos."""
    return [name for name, count in zip(facts.names, facts.tag_counts, strict=True) if count >= FREQUENT]


def frequent_miou(iou: Mapping[str, float | None], names: Sequence[str]) -> float:
    """Mean IoU of the background and of `names`; a class that is neither there nor predicted counts as 0."""
    values = [iou[name] or 0.0 for name in ("background", *names)]
    return sum(values) / len(values)
