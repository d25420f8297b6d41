"""Figures of masks against the ground truth, counted by the code that makes the report of the product."""

from collections.abc import Mapping, Sequence
from typing import Any

from frequent import frequent_miou, frequent_names
from ladder_pass import seconds_per_image
from ladder_setup import Bench
from ladder_table import KIND, ROWS, STAGE_ROWS

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.registry import get_dataset
from dhr_lightning.reporting.evaluate import evaluate_split
from dhr_lightning.reporting.figures import Figures, all_figures
from dhr_lightning.reporting.kinds import describe_kind
from dhr_lightning.reporting.truth import DatasetTruth, resolve_truth


class Judge:
    """Compares masks of one seed with its ground truth, which nothing else looks at.

    Args:
        bench: the seed.
    """

    def __init__(self, bench: Bench) -> None:
        info = get_dataset(bench.store.dataset)
        self.bench, self.truth = bench, DatasetTruth(info, bench.data)
        self.facts = resolve_truth(self.truth)

    def stage_rows(self) -> dict[str, dict[str, Any]]:
        """Rows of what the stages themselves have written; base masks are timed together with their CAMs."""
        found = self._figures(self.bench.store, list(self._stages()), "train", [one.id for one in self.bench.records()])
        rows = {}
        for kind, slug in self._stages().items():
            seconds = None if kind == "cam" else seconds_per_image(self.bench.store, kind)
            rows[slug] = {**self._row(slug, found[kind]), "seconds_per_image": seconds}
        return rows

    def all_rows(self, slugs: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Rows of the stages and of `slugs`, which must be computed, in this order."""
        rows, ids = self.stage_rows(), [one.id for one in self.bench.records()]
        for slug in slugs:
            store = self.bench.row_store(slug)
            figures = self._figures(store, [KIND], "train", ids)[KIND]
            rows[slug] = {**self._row(ROWS[slug].label, figures), "seconds_per_image": seconds_per_image(store, KIND)}
        return rows

    def prediction(self, label: str, store: ArtifactStore, kind: str) -> dict[str, Any]:
        """A row of predictions on the validation split."""
        return self._row(label, self._figures(store, [kind], "val", list(self.truth.ids("val")))[kind])

    def _figures(
        self, store: ArtifactStore, kinds: Sequence[str], split: str, ids: Sequence[str]
    ) -> dict[str, Figures]:
        found = evaluate_split(
            store, self.truth, self.facts, [describe_kind(store, kind, split, ids) for kind in kinds]
        )
        figures = all_figures([found], self.facts)
        return {kind: figures[f"{kind}/{split}"] for kind in kinds}

    def _stages(self) -> dict[str, str]:
        return {kind: slug for kind, slug in STAGE_ROWS.items() if kind != "mars_mask" or self.bench.start == kind}

    def _row(self, label: str, figures: Figures) -> dict[str, Any]:
        facts, iou = self.facts, figures["iou"]
        ends = {facts.names[value] for value in (*facts.head, *facts.tail)}
        middle = [value for name, value in iou.items() if name not in (*ends, "background") and value is not None]
        return {
            "label": label if self.bench.start == "mars_mask" else label.replace("mars +", "base +"),
            "miou": figures["miou"],
            "vanished": figures["vanished_tag_rate"],
            "vanished_adjacent": figures["vanished_adjacent_rate"],
            "rails_as_train": figures["background_rates"].get("rails->train"),
            "head": figures["head_miou"],
            "middle": sum(middle) / len(middle) if middle else None,
            "tail": figures["tail_miou"],
            "background": iou["background"],
            "frequent": self._frequent(iou),
            "iou": iou,
        }

    def _frequent(self, iou: Mapping[str, float | None]) -> float | None:
        """Mean over background and frequent classes; `None` if that is all of them."""
        names = frequent_names(self.facts)
        return None if 1 + len(names) == len(iou) else frequent_miou(iou, names)
