"""Figures of masks against the ground truth, counted by the code that makes the report of the product."""

from collections.abc import Sequence
from typing import Any

from ladder_pass import seconds_per_image
from ladder_rows import KIND, ROWS
from ladder_setup import Bench

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.registry import get_dataset
from dhr_lightning.reporting.evaluate import evaluate_split
from dhr_lightning.reporting.figures import Figures, all_figures
from dhr_lightning.reporting.kinds import MaskKind
from dhr_lightning.reporting.truth import DatasetTruth, resolve_truth

STAGE_ROWS = {"cam": "cam", "base_mask": "base", "mars_mask": "mars"}
ORDER = (
    "cam",
    "base",
    "base_seed_plain",
    "base_seed",
    "base_uss_wss",
    "mars",
    "mars_seed",
    "mars_seed_strong",
    "mars_uss",
    "mars_uss_wss",
    "mars_uss_wss_min_max",
    "mars_uss_wss_strong",
    "mars_uss_wss_strong_guard_heatmap",
    "mars_uss_wss_strong_guard_seed",
    "mars_uss_wss_strong_guard",
    "mars_uss_wss_transport",
)


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
        found = self._figures(self.bench.store, list(STAGE_ROWS), "train", [one.id for one in self.bench.records()])
        rows = {}
        for kind, slug in STAGE_ROWS.items():
            seconds = None if kind == "cam" else seconds_per_image(self.bench.store, kind)
            rows[slug] = {**self._row(slug, found[kind]), "seconds_per_image": seconds}
        return rows

    def all_rows(self) -> dict[str, dict[str, Any]]:
        """All rows of the ladder, in the order of the table."""
        rows, ids = self.stage_rows(), [one.id for one in self.bench.records()]
        for slug, row in ROWS.items():
            store = self.bench.row_store(slug)
            figures = self._figures(store, [KIND], "train", ids)[KIND]
            rows[slug] = {**self._row(row.label, figures), "seconds_per_image": seconds_per_image(store, KIND)}
        return {slug: rows[slug] for slug in ORDER}

    def prediction(self, label: str, store: ArtifactStore, kind: str) -> dict[str, Any]:
        """A row of predictions on the validation split."""
        return self._row(label, self._figures(store, [kind], "val", list(self.truth.ids("val")))[kind])

    def _figures(
        self, store: ArtifactStore, kinds: Sequence[str], split: str, ids: Sequence[str]
    ) -> dict[str, Figures]:
        found = evaluate_split(store, self.truth, self.facts, [MaskKind(kind, split, tuple(ids)) for kind in kinds])
        figures = all_figures([found], self.facts)
        return {kind: figures[f"{kind}/{split}"] for kind in kinds}

    def _row(self, label: str, figures: Figures) -> dict[str, Any]:
        facts, iou = self.facts, figures["iou"]
        ends = {facts.names[value] for value in (*facts.head, *facts.tail)}
        middle = [value for name, value in iou.items() if name not in (*ends, "background") and value is not None]
        return {
            "label": label,
            "miou": figures["miou"],
            "vanished": figures["vanished_tag_rate"],
            "vanished_adjacent": figures["vanished_adjacent_rate"],
            "rails_as_train": figures["background_rates"].get("rails->train"),
            "head": figures["head_miou"],
            "middle": sum(middle) / len(middle) if middle else None,
            "tail": figures["tail_miou"],
            "background": iou["background"],
            "iou": iou,
        }
