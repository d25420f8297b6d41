"""The mask step of DHR (arXiv:2404.00380) on stored features and CAMs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.rebalance_stored.spec import SPEC
from dhr_lightning.methods.refinement import RefiningTask
from dhr_lightning.methods.stored import StoredTask
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.profiles import rebalance_settings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import RebalanceResult, rebalance
from dhr_lightning.ops.resize import resize_maps


class RebalanceStoredTask(RefiningTask, StoredTask):
    """Predict rebalanced masks of the training images; no network takes part.

    Args:
        features: layers in place of the unsupervised features (`uss`) and of the supervised ones (`wss`); default:
            the keys of a vision transformer, or else the last layer stored, and the last two layers without the keys.
        standardise: scale every channel to mean 0 and deviation 1 over the training images first.
        rebalance: `profile` and what differs from it, see `ops.profiles.RebalanceSettings`.
        crf_seed: dense CRF settings of the seeds.
        crf_final: dense CRF settings of the final masks.
        **options: refinement, see `RefiningTask`; classes, see `BaseTask`.

    Source: DHR (arXiv:2404.00380), Sec. 3, with frozen features in both places.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        features: dict[str, Sequence[str]] | None = None,
        standardise: bool = True,
        rebalance: dict[str, Any] | None = None,
        crf_seed: dict[str, float] | None = None,
        crf_final: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        self.layers = _chosen(features)
        taps = None if self.layers is None else tuple(dict.fromkeys((*self.layers["uss"], *self.layers["wss"])))
        super().__init__(taps=taps, **options)
        self.rebalance_settings = rebalance_settings(**(rebalance or {}))
        self.refine_seed = self.build_refiner(CRFSettings(**(crf_seed or {})))
        self.refine_final = self.build_refiner(CRFSettings(**(crf_final or {})), cache=self.refine_seed.cache)
        self._statistics: tuple[Tensor, Tensor] | None = None

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def on_predict_start(self) -> None:
        """Statistics of the features, the same for a run and for its continuation."""
        if self.hparams.standardise:
            self._statistics = self.feature_statistics()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks of whole training images."""
        return {"mask": cut_masks(self.pseudo_masks(batch).mask, batch)}

    def pseudo_masks(self, batch: Batch) -> RebalanceResult:
        """Rebalance the masks of whole images.

        Args:
            batch: whole images with tags, `masks`, `features` and `cam`.
        """
        return rebalance(
            self.mask_inputs(batch),
            settings=self.rebalance_settings,
            refine_seed=self.refine_seed,
            refine_final=self.refine_final,
        )

    @torch.no_grad()
    def mask_inputs(self, batch: Batch) -> RebalanceInputs:
        """Masks, CAMs and layers of whole images, as `pseudo_masks` rebalances them."""
        offset, background = self.classes.offset, self.classes.has_background
        classes = ImageClasses.from_tags(
            batch["tags"], offset=offset, include_background=background, valid=batch["valid"]
        )
        taps = self._taps(batch["inputs"]["features"].float())
        layers = self.layers or default_layers(list(taps))
        grid = batch["inputs"]["features"].shape[-2:]
        cam = resize_maps(batch["inputs"]["cam"], (grid[0] * 2, grid[1] * 2))
        if background:  # CAMs are those of the tags; the background has none
            cam = torch.nn.functional.pad(cam, (0, 0, 0, 0, 1, 0))
        return RebalanceInputs(
            batch["pixels"],
            batch["inputs"]["masks"],
            cam,
            classes,
            uss=torch.cat([taps[name] for name in layers["uss"]], 1),
            wss=[taps[name] for name in layers["wss"]],
        )

    def _taps(self, features: Tensor) -> dict[str, Tensor]:
        if self._statistics is not None:
            mean, deviation = (one.view(1, -1, 1, 1) for one in self._statistics)
            features = (features - mean) / deviation
        channels = self.tap_channels()
        return dict(zip(channels, features.split(list(channels.values()), 1), strict=True))


def default_layers(taps: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers that stand for unsupervised and supervised features, see `RebalanceStoredTask`.

    Args:
        taps: names of the layers that are stored, in order.
    """
    others = [name for name in taps if name != "keys"] or list(taps)
    return {"uss": ("keys",) if "keys" in taps else (others[-1],), "wss": tuple(others[-2:])}


def _chosen(features: dict[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]] | None:
    if features is None:
        return None
    if set(features) != {"uss", "wss"} or not all(features.values()):
        raise ConfigError(f"Expected features to name layers for uss and for wss, but got {features}.")
    return {name: tuple(layers) for name, layers in features.items()}
