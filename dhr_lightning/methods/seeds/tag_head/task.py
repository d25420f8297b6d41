"""A light classifier on stored features whose maps are the CAMs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.catalog import images_of_each_class
from dhr_lightning.data.sample import Batch
from dhr_lightning.data.stored import GridCrop
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.seeds.tag_head.spec import SPEC
from dhr_lightning.methods.stored import StoredTask
from dhr_lightning.models.tag_head import TagHead
from dhr_lightning.ops._checks import full_precision
from dhr_lightning.ops.cam import gather_classes, normalize_cam, somewhere
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.learnt_background import (
    ConfidentCells,
    apply_background,
    fit_background,
    foreground_probability,
)
from dhr_lightning.ops.smoothing import smooth_maps
from dhr_lightning.ops.tag_pooling import pool_tags, tag_pooling

BACKGROUND_IMAGES = 25  # of each class
TAP_CHANNELS = "tap_channels"  # key of the checkpoint: what the head reads


class TagHeadTask(StoredTask):
    """Train a light head on stored features and tags; predict CAMs of the training images on their grid.

    Args:
        hidden: channels of a hidden layer; none for a linear head.
        pooling: how the map of a class becomes its logit: `name` (`mean`, `topk`, `logsumexp` or `generalised_mean`)
            and its constant, see `ops.tag_pooling.TagPooling`.
        background: `scores` leaves the background to the propagation, by a threshold of the CAM; `learnt` also fits,
            after the last epoch, for each class a classifier of its own cells against the background, to the cells
            about which the CAM is sure, and multiplies the CAM by its probability: a threshold of 0.5 is then meant.
            Without a background class there is nothing to learn.
        background_cells: `high` and `low`, the CAM values beyond which a cell is sure.
        background_l2: penalty of these classifiers, see `ops.learnt_background.fit_background`. They have as many
            weights as the features have channels: a small penalty leaves holes in objects.
        present_share: share of the cells in which a tagged class is active at least: where fewer of its logits are
            positive, its map starts at a lower logit. Without that (0), a rare class that the head never believes in
            has no CAM at all.
        smooth: 3x3 means that class maps and foreground probability pass through, see `ops.smoothing.smooth_maps`.
        **options: layers, see `StoredTask`; classes, optimiser and schedule, see `BaseTask`.

    Source: CAM (arXiv:1512.04150) on frozen features; pooling by log-sum-exp of Pinheiro and Collobert
        (arXiv:1411.6228). The learnt background is ours.
    """

    spec = SPEC
    grid_crop = GridCrop()

    def __init__(
        self,
        *,
        hidden: int | None = None,
        pooling: dict[str, Any] | None = None,
        background: str = "scores",
        background_cells: dict[str, float] | None = None,
        background_l2: float = 1.0,
        present_share: float = 0.05,
        smooth: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if background not in ("scores", "learnt"):
            raise ConfigError(f"Expected model.init_args.background to be scores or learnt, but got {background!r}.")
        self.pooling = tag_pooling(**{"name": "logsumexp", **(pooling or {})})
        self.cells = _cell_limits(background_cells or {})
        self.learns_background = background == "learnt" and self.classes.has_background
        self.average_precision = TagPrecision(self.classes.num_tags)

    def configure_model(self) -> None:
        """Build the head once the number of channels is known."""
        if not hasattr(self, "network"):
            channels = sum(self.tap_channels().values())
            self.network = TagHead(channels, self.classes.num_tags, hidden=self.hparams.hidden)
            self.register_buffer("background_weight", torch.zeros(self.classes.num_tags, channels))
            self.register_buffer("background_bias", torch.zeros(self.classes.num_tags))
        super().configure_model()

    def on_fit_start(self) -> None:
        """Standardise the features, unless a run is being resumed."""
        if self.trainer.ckpt_path is None:
            self.network.set_statistics(*self.feature_statistics())

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` stored features -> logits `(B, T, h, w)`."""
        logits: Tensor = self.network(features)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Multi-label soft margin loss on the pooled maps."""
        logits = pool_tags(self(batch["inputs"]["features"]), batch["valid"], self.pooling)  # (B, T)
        loss = F.multilabel_soft_margin_loss(logits, batch["tags"])
        self.log("train/loss_cls", loss, prog_bar=True, batch_size=len(logits))
        return self.check_loss(loss, batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which layers the head reads beside its weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[TAP_CHANNELS] = self.tap_channels()

    def on_train_epoch_end(self) -> None:
        """Fit the background to the finished head."""
        finished = self.trainer.global_step >= self.trainer.estimated_stepping_batches
        if self.learns_background and finished:
            self._fit_background()

    @torch.no_grad()
    def _fit_background(self) -> None:
        cells = ConfidentCells(self.classes.num_tags, **self.cells)
        records = images_of_each_class(self.trainer.datamodule.records("train"), BACKGROUND_IMAGES)
        for batch in self.stored_batches(records, "background"):
            features, classes = batch["inputs"]["features"], self._classes(batch["tags"])
            cam = self._normalised(features, classes, batch["valid"])
            keys = (classes.keys - classes.offset).clamp_min(-1)
            cells.update(self.network.standardize(features), cam, keys, batch["id"], valid=batch["valid"])
        try:
            self.background_weight, self.background_bias = fit_background(cells, l2=self.hparams.background_l2)
        except ValueError as error:
            raise DataError(
                f"{self.step}: {error} The limits are in background_cells; longer training (trainer.max_epochs, lr) "
                f"makes more cells sure. To go on without: --{self.step}.background scores."
            ) from error

    def _classes(self, tags: Tensor) -> ImageClasses:
        return self.tagged({"tags": tags, "valid": None})  # type: ignore[typeddict-item]

    def _normalised(self, features: Tensor, classes: ImageClasses, valid: Tensor | None = None) -> Tensor:
        with full_precision(features):
            maps = smooth_maps(gather_classes(self(features), classes), self.hparams.smooth, valid=valid)
            return normalize_cam(maps - somewhere(maps, self.hparams.present_share, valid=valid), valid=valid)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Tag loss and average precision; the ground truth is not used, and an image without tags shows no class."""
        maps = self(batch["inputs"]["features"])
        inside = torch.ones(len(maps), *maps.shape[-2:], dtype=torch.bool, device=maps.device)
        logits = pool_tags(maps, inside, self.pooling).float()
        self.average_precision.update(logits, batch["tags"])
        self.log("val/loss_cls", F.multilabel_soft_margin_loss(logits, batch["tags"]), batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        """Log `val/tag_map`, the mean over the classes that some image shows; nothing where no image has a tag."""
        found = self.average_precision.compute()
        if found is not None:
            self.log("val/tag_map", found, prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """CAMs `(keys, maps)` of a batch of whole images, on the grid of their features."""
        features, classes = batch["inputs"]["features"], self.tagged(batch)
        cam = self._normalised(features, classes)
        if self.learns_background:
            standardized = self.network.standardize(features)
            probability = foreground_probability(standardized, self.background_weight, self.background_bias)
            own = smooth_maps(gather_classes(probability, classes), self.hparams.smooth)
            cam = apply_background(cam, own)
        named = zip(classes.keys.cpu(), classes.present.cpu(), cam.cpu(), strict=True)
        return {"cam": [(keys[present], maps[present]) for keys, present, maps in named]}


def _cell_limits(chosen: dict[str, float]) -> dict[str, float]:
    """CAM values beyond which a cell is sure.

    Raises:
        ConfigError: if one has another name or is out of range.
    """
    limits = {"high": 0.7, "low": 0.15, **chosen}
    try:
        ConfidentCells(1, **limits)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init_args.background_cells is {limits}: {error}") from error
    return limits
