"""Recursive learning on stored features: DHR (arXiv:2404.00380) whose only trained part is light."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.masks.light_dhr.spec import SPEC
from dhr_lightning.methods.masks.stored_layers import chosen_layers, stored_inputs
from dhr_lightning.methods.rebalancing import RebalancingTask
from dhr_lightning.methods.segmenters.light.task import LightTask
from dhr_lightning.ops.cam import gather_classes, normalize_cam
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs


class LightDHRTask(RebalancingTask, LightTask):
    """Train a light segmenter on masks that its own probabilities and features rebalance between epochs.

    The refresh callback makes the masks by `pseudo_masks`: those of round 0 from the CAMs and layers that are read,
    those of later rounds from the segmenter's class probabilities in place of the CAMs, with its last feature map as
    one more supervised layer.

    Args:
        features: layers in place of the unsupervised features (`uss`) and of the supervised ones (`wss`); default see
            `masks.stored_layers.default_layers`. The segmenter itself reads all.
        **options: mask step, see `RebalancingTask`; segmenter, see `LightTask`.

    Source: the recursion of DHR (arXiv:2404.00380), Sec. 3.
    Differs: the features are frozen, so only masks, class maps and the last feature map recur.
    """

    spec = SPEC

    def __init__(self, *, features: dict[str, Sequence[str]] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.layers = chosen_layers(features)

    @torch.no_grad()
    def mask_inputs(self, batch: Batch) -> RebalanceInputs:
        """Masks, class maps and layers of whole images, as `pseudo_masks` rebalances them."""
        features, classes = batch["inputs"]["features"], self.image_classes(batch)
        taps = self.split_taps(self.network.standardize(features))
        if self.trainer.datamodule.mask_round is None:  # nothing has been learnt yet
            return stored_inputs(batch, classes, batch["inputs"]["cam"], taps, self.layers)
        encoded = self.network.encode(features).float()
        inputs = stored_inputs(batch, classes, self._class_maps(encoded, batch), taps, self.layers)
        return RebalanceInputs(
            inputs.image, inputs.mask, inputs.cam, classes, uss=inputs.uss, wss=[*inputs.wss, encoded]
        )

    def _class_maps(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Probabilities of the tagged classes `(B, K, h, w)`, each with a maximum of 1."""
        probability = self.network.classify(encoded).softmax(1)[:, self.classes.offset :]
        return normalize_cam(gather_classes(probability, self.tagged(batch)))
