"""Between baseline and DHR: remove biased background from the masks with unsupervised features."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.data.gate import Gate, measure_removal
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, MaskError, run_command
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.mars.spec import SPEC
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.refinement import RefiningTask
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.mars import (
    centroid_sizes,
    debiased_centroids,
    foreground_mask,
    foreground_similarity,
    image_centroids,
    reject_biased,
)
from dhr_lightning.ops.resize import valid_cells
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold
from dhr_lightning.progress import track
from dhr_lightning.ranks import gathered

THRESHOLD_IMAGES = 128
log = logging.getLogger("dhr_lightning")


class MARSTask(RefiningTask):
    """Fit one debiased centroid per class; predict the masks without the pixels that look like background.

    Nothing is trained: one epoch collects k-means centroids of every class in every image, its end keeps those that are
    farthest from background.

    Args:
        k_fg: clusters of a foreground class in an image (target and bias).
        k_bg: clusters of the background in an image.
        alpha: share kept of a class, farthest from background first.
        weighting: whether `alpha` is a share of the class's `cells` (ours) or of its `centroids` (the paper).
        rejected: what a rejected pixel becomes: `background` or `ignore`.
        threshold: similarity to the debiased centroids that is as much foreground as background, in (0, 1), or `auto`:
            Otsu's threshold of the similarities in some training images, chosen once before prediction.
        crf: dense CRF settings of the refinement of the foreground map.
        max_lost_tags: the masks are harmful if more than this share of the tags with a pixel in the masks read has none
            left, in [0, 1]; the next step then reads the latter instead.
        max_rejected: the same if more than this share of the foreground pixels of the masks read is rejected.
        force_masks: start from the masks named even if they are harmful themselves.
        taps: layers of stored features to read; default all.
        **options: refinement, see `RefiningTask`; no optimiser is used.

    Source: MARS (arXiv:2304.09913), Eq. 1-4.
    Differs: rejected pixels become background or ignored; the EMA teacher that completes them is not part of this.
    """

    spec = SPEC
    collects = True
    augment = False
    canvas_divisor: ClassVar[int] = 1  # no network: nothing has to be padded

    def __init__(
        self,
        *,
        k_fg: int = 2,
        k_bg: int = 2,
        alpha: float = 0.4,
        weighting: str = "cells",
        rejected: str = "background",
        threshold: float | Literal["auto"] = 0.5,
        crf: dict[str, float] | None = None,
        max_lost_tags: float = 0.05,
        max_rejected: float = 0.45,
        force_masks: bool = False,
        taps: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not self.classes.has_background:
            raise ConfigError(
                f"MARS needs a background class, which this dataset lacks. Run `{run_command()}` with --drop mars."
            )
        if rejected not in ("background", "ignore"):
            raise ConfigError(f"Expected model.init_args.rejected to be background or ignore, but got {rejected!r}.")
        if weighting not in ("cells", "centroids"):
            raise ConfigError(f"Expected model.init_args.weighting to be cells or centroids, but got {weighting!r}.")
        if threshold != "auto" and (isinstance(threshold, str) or not 0 < threshold < 1):
            raise ConfigError(f"Expected model.init_args.threshold in (0, 1) or auto, but got {threshold!r}.")
        for name, limit in (("max_lost_tags", max_lost_tags), ("max_rejected", max_rejected)):
            if not 0 <= limit <= 1:
                raise ConfigError(f"Expected model.init_args.{name} in [0, 1], but got {limit}.")
        self.automatic_optimization = False
        self.taps = None if taps is None else tuple(taps)
        self.threshold = None if threshold == "auto" else threshold
        self.refiner = self.build_refiner(CRFSettings(**(crf or {})))
        self.register_buffer("centroids", torch.zeros(0))
        self.register_buffer("found", torch.zeros(0, dtype=torch.bool))
        self._collected: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the size of the centroids from the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self.centroids = torch.zeros_like(checkpoint["state_dict"]["centroids"])
        self.found = torch.zeros_like(checkpoint["state_dict"]["found"])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Cluster the features of every class in every image of the batch."""
        classes = ImageClasses.from_tags(
            batch["tags"], offset=self.classes.offset, include_background=True, valid=batch["valid"]
        )
        uss, mask, h = batch["inputs"]["features"], batch["inputs"]["masks"], self.hparams
        centroids, used = image_centroids(uss, mask, classes, k_fg=h.k_fg, k_bg=h.k_bg)
        sizes = centroid_sizes(uss, mask, classes, centroids, used)
        parts = (centroids[used], classes.keys[..., None].expand_as(used)[used], sizes[used])
        counts = used.flatten(1).sum(1).tolist()
        rows = zip(*(torch.split(part.cpu(), counts) for part in parts), strict=True)
        self._collected |= dict(zip(batch["id"], rows, strict=True))

    def on_train_epoch_end(self) -> None:
        """Keep, for each class, the mean of the centroids that are farthest from background."""
        together = {key: value for part in gathered(self._collected) for key, value in part.items()}
        ordered = (together[image_id] for image_id in sorted(together))  # whatever rank saw an image, and when
        centroids, classes, sizes = (torch.cat(parts).to(self.device) for parts in zip(*ordered, strict=True))
        self._collected = {}
        if not bool((classes == 0).any()):
            raise MaskError(
                "None of the masks has a cell of background, so MARS has nothing to compare with. Raise the background "
                f"score of the propagation (its setting `background`), or run `{run_command()}` with --drop mars."
            )
        self.centroids, self.found = debiased_centroids(
            centroids,
            classes,
            num_classes=self.classes.num_classes,
            alpha=self.hparams.alpha,
            sizes=sizes if self.hparams.weighting == "cells" else None,
        )

    def on_predict_start(self) -> None:
        """Choose the threshold if that was left to us: the same one for a run and for its continuation."""
        if self.threshold is None:
            self.eval()
            records = subsample_evenly(self.trainer.datamodule.records("train"), THRESHOLD_IMAGES)
            self.threshold = self.choose_threshold(self.whole_batches(records, "threshold"))
            log.info("threshold %.3f: Otsu's of the similarities in %d training images", self.threshold, len(records))

    @torch.no_grad()
    def choose_threshold(self, batches: Iterable[Batch]) -> float:
        """Otsu's threshold of the similarity over all cells of some images, in (0, 1).

        Ours; it reads images, tags and features only.
        """
        counts = torch.zeros(1, dtype=torch.int64, device=self.device)
        for batch in batches:
            similarity = self._similarity(batch)  # (B, h, w)
            inside = valid_cells(batch["valid"], (similarity.shape[1], similarity.shape[2]))
            counts = counts + foreground_histogram(similarity[:, None], valid=inside).sum(0)
        return float(otsu_threshold(counts))

    def inference_info(self) -> dict[str, Any]:
        """The threshold, and what the masks lost against their source, measured when all of them are on disk."""
        if self._trainer is None:
            return {}
        self.on_predict_start()  # a continued run may have had nothing left to predict
        h, data = self.hparams, self.trainer.datamodule
        source, masks = data.input_address("masks"), data.output_address("mask")
        lost, rejected = measure_removal(
            data.store, masks, data.records("train"), source=source, classes=self.classes, progress=track
        )
        gate = Gate(source, lost, rejected, h.max_lost_tags, h.max_rejected)
        return {"threshold": self.threshold, "gate": gate.record()}

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Reject foreground pixels that resemble no debiased centroid of the image's classes."""
        threshold = self.threshold
        if threshold is None:  # no run has chosen yet: judge by these images alone
            threshold = self.choose_threshold([batch])
        foreground = foreground_mask(
            batch["pixels"],
            self._similarity(batch),
            threshold=threshold,
            refine=self.refiner,
            valid=batch["valid"],
        )
        value = 0 if self.hparams.rejected == "background" else self.classes.ignore_index
        masks = reject_biased(batch["inputs"]["masks"], foreground, value=value)
        return {"mask": cut_masks(masks, batch)}

    def _similarity(self, batch: Batch) -> Tensor:
        """Similarity `(B, h, w)` of every cell to the nearest debiased centroid of the image's classes, in [0, 1]."""
        classes = ImageClasses.from_tags(batch["tags"], offset=self.classes.offset, include_background=False)
        return foreground_similarity(batch["inputs"]["features"], self.centroids, classes.keys)
