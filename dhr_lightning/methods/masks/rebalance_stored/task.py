"""The mask step of DHR (arXiv:2404.00380) on stored features and CAMs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.rebalance_stored.spec import SPEC
from dhr_lightning.methods.masks.stored_layers import chosen_layers, stored_inputs
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.rebalancing import RebalancingTask
from dhr_lightning.methods.stored import StoredTask
from dhr_lightning.models.standardize import StandardizedModule
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs


class RebalanceStoredTask(RebalancingTask, StoredTask):
    """Predict rebalanced masks of the training images; no network takes part.

    Args:
        features: layers in place of the unsupervised features (`uss`) and of the supervised ones (`wss`); default see
            `masks.stored_layers.default_layers`. A step that is read as `uss`, such as STEGO, takes the place of the
            former, as it is.
        standardize: scale every channel to mean 0 and deviation 1 over the training images first.
        **options: mask step, see `RebalancingTask`; classes, see `BaseTask`.

    Source: DHR (arXiv:2404.00380), Sec. 3, with frozen features in both places.
    """

    spec = SPEC

    def __init__(
        self, *, features: dict[str, Sequence[str]] | None = None, standardize: bool = True, **options: Any
    ) -> None:
        self.layers = chosen_layers(features)
        taps = None if self.layers is None else tuple(dict.fromkeys((*self.layers["uss"], *self.layers["wss"])))
        super().__init__(taps=taps, **options)

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def configure_model(self) -> None:
        """Make room for the statistics once the number of channels is known."""
        if not hasattr(self, "statistics"):
            self.statistics = StandardizedModule(sum(self.tap_channels().values()))

    def on_predict_start(self) -> None:
        """Statistics of the features, the same for a run and for its continuation."""
        if self.hparams.standardize:
            self.statistics.set_statistics(*self.feature_statistics())

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks of whole training images."""
        return {"mask": cut_masks(self.pseudo_masks(batch).mask, batch)}

    @torch.no_grad()
    def mask_inputs(self, batch: Batch) -> RebalanceInputs:
        """Masks, CAMs and layers of whole images, as `pseudo_masks` rebalances them."""
        taps = self.split_taps(self.statistics.standardize(batch["inputs"]["features"]))
        inputs = stored_inputs(batch, self.image_classes(batch), batch["inputs"]["cam"], taps, self.layers)
        return replace(inputs, uss=batch["inputs"].get("uss", inputs.uss))
