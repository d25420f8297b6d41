"""Masks of all rows, computed on the same maps and features of a batch."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ladder_table import KIND, LABEL_SCORE, PRODUCT, ROWS, Row
from torch import Tensor

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.cam import labels_from_scores
from dhr_lightning.ops.profiles import RebalanceSettings, rebalance_settings
from dhr_lightning.ops.rebalance import rebalance
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.pipeline import Plan
from dhr_lightning.tasks import dhr
from dhr_lightning.methods.base import cut_masks, load_encoder
from dhr_lightning.methods.masks.dhr.task import DHRTask


class SharedRefiner:
    """Refinement that remembers the images of the current batch, because rows share seeds and most final maps.

    Args:
        refiner: does the work.

    Attributes:
        saved: seconds that remembered images had taken.
    """

    def __init__(self, refiner: Refiner) -> None:
        self.refiner, self.saved = refiner, 0.0
        self._memory: dict[tuple[int, bytes], tuple[Tensor, float]] = {}

    def forget(self) -> None:
        """Begin another batch."""
        self._memory.clear()

    def __call__(self, image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Refine as `Refiner` does, only the images that are new."""
        names = [(b, _digest(score[b], present[b])) for b in range(len(score))]
        new = [b for b, name in enumerate(names) if name not in self._memory]
        self.saved += sum(self._memory[name][1] for name in names if name in self._memory)
        if new:
            start = time.monotonic()
            refined = self.refiner(image[new], score[new], present[new], valid=None if valid is None else valid[new])
            each = (time.monotonic() - start) / len(new)
            self._memory.update({names[b]: (maps, each) for b, maps in zip(new, refined, strict=True)})
        return torch.stack([self._memory[name][0] for name in names])


def _digest(*tensors: Tensor) -> bytes:
    digest = blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy())
    return digest.digest()


@dataclass
class Ladder:
    """The task of stage 3 with the weights of stage 1, and its two refinements shared by all rows."""

    plan: Plan
    checkpoint: Path
    start: str

    def __post_init__(self) -> None:
        classes = self.plan.info.classes
        arguments = self.plan.config["model"]["init_args"]
        self.task = DHRTask(list(classes.names), classes.has_background, **arguments).eval()
        self.task.configure_model()
        load_encoder(self.task.network, self.checkpoint, classes, keys=("encoder", "classifier"))
        self.weak, self.strong = SharedRefiner(self.task.refine_seed), SharedRefiner(self.task.refine_final)

    def settings(self, row: Row) -> RebalanceSettings:
        """Those of the configuration, or of the row's profile, with the row's changes."""
        settings = self.task.rebalance_settings if row.profile is None else rebalance_settings(row.profile)
        return replace(settings, **row.changes)

    def identity(self, slug: str, ids: list[str]) -> Manifest:
        """What the masks of a row are made from."""
        row, store = ROWS[slug], self.plan.store
        inputs = {kind: store.manifest(kind, "train") for kind in ("cam", "uss", self._start_of(row))}
        return Manifest.create(
            KIND,
            store.dataset,
            "train",
            ids=ids,
            settings={
                "start": self._start_of(row),
                "relabel": LABEL_SCORE if row.relabel else None,
                **{
                    name: getattr(row, name)
                    for name in ("features", "rounds")
                    if getattr(row, name) != getattr(Row, name)
                },
                "rebalance": asdict(self.settings(row)),
                "seed_crf": asdict(self.weak.refiner.settings),
                "final_crf": asdict(self._final(row).refiner.settings),
                "backend": self.weak.refiner.resolve(self.task.device),
                "network": {name: self.task.hparams[name] for name in ("backbone", "output_stride", "cam_scales")},
            },
            inputs={f"{kind}/train": manifest.digest if manifest else "absent" for kind, manifest in inputs.items()},
            checkpoint=self.checkpoint,
        )

    def masks(self, batches: Mapping[str, Batch], slugs: list[str]) -> Iterator[tuple[str, list[Any], float]]:
        """Yield slug, masks and seconds of each row for one batch, as if the row were computed alone.

        Args:
            batches: the same images with the masks of each kind that rows start from.
            slugs: rows to compute.
        """
        for refiner in (self.weak, self.strong):
            refiner.forget()
        batch, start = batches[self.start], time.monotonic()
        call = record_call(self.task, batch)
        shared = time.monotonic() - start
        for slug in slugs:
            start, saved = time.monotonic(), self.weak.saved + self.strong.saved
            masks = self._row_masks(ROWS[slug], batches[self._start_of(ROWS[slug])]["mask"], call)
            saved = self.weak.saved + self.strong.saved - saved
            yield slug, [mask.numpy() for (mask,) in cut_masks(masks, batch)], shared + time.monotonic() - start + saved

    def check(self, batch: Batch, masks: list[Any]) -> None:
        """Compare the masks of the row with the configuration's own settings with what stage 3 makes.

        Raises:
            ConfigError: if they differ.
        """
        wanted = [mask.numpy() for (mask,) in cut_masks(self.task.pseudo_masks(batch).mask, batch)]
        if not all(np.array_equal(a, b) for a, b in zip(masks, wanted, strict=True)):
            raise ConfigError(f"The row {PRODUCT} differs from DHRTask.pseudo_masks. Adapt `record_call`.")

    def _start_of(self, row: Row) -> str:
        return self.start if row.start == "mars_mask" else row.start

    def _final(self, row: Row) -> SharedRefiner:
        return self.strong if row.strong else self.weak

    def _row_masks(self, row: Row, mask: Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        (image, _, cam, uss, wss), options = call
        own = {"settings": self.settings(row), "refine_seed": self.weak, "refine_final": self._final(row)}
        result = mask
        for _ in range(row.rounds):
            features = uss if row.features == "uss" else wss[0].float()
            result = rebalance(image, result, cam, features, wss, **{**options, **own}).mask
        if not row.relabel:
            return result
        keys, present = options["keys"], options["present"]
        hit = (result[:, None] == keys[:, :, None, None]) & present[:, :, None, None]  # (B, K, H, W)
        rest = (1 - LABEL_SCORE) / (present.sum(1) - 1).clamp(min=1)  # (B,)
        score = torch.where(hit, LABEL_SCORE, rest[:, None, None, None])
        refined = self.strong(image, score, present, valid=options["valid"])
        return labels_from_scores(refined, keys, present=present).masked_fill(~options["valid"], 255)


def record_call(task: DHRTask, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which the task calls `rebalance`: its maps and features, made once for all rows."""
    with mock.patch.object(dhr, "rebalance") as spy:
        task.pseudo_masks(batch)
    return spy.call_args.args, dict(spy.call_args.kwargs)
