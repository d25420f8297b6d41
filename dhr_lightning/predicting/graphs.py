"""What a model is as one graph of tensors: uint8 RGB in, class scores out, for formats that run elsewhere."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dhr_lightning.data.frozen_features import FeatureReader
from dhr_lightning.errors import ConfigError
from dhr_lightning.models.cards import WeightsCard
from dhr_lightning.models.mask2former import Mask2Former
from dhr_lightning.models.taps import TapEncoder
from dhr_lightning.predicting.engines import Engine, LightEngine, NetworkEngine


@dataclass(frozen=True)
class Graph:
    """A model as a module.

    Args:
        module: `(B, 3, H, W)` uint8 RGB -> `(B, C, H', W')` float32.
        output: what comes out: `logits` at the size of the input, or `probability` on a coarser grid.
        cell: sides of the input are multiples of this many pixels.
        resize: how a photo becomes an input: long `side` and `cell` in pixels, `interpolation`; `None` if it is one.
    """

    module: nn.Module
    output: str
    cell: int = 1
    resize: dict[str, Any] | None = None


def graph_of(engine: Engine) -> Graph:
    """The graph of a model, in float32; test-time flip of the photo, other scales and the dense CRF are not in it.

    Raises:
        ConfigError: if the model reads features at several scales, is Mask2Former, or comes from such a graph.
    """
    if isinstance(engine, NetworkEngine):
        if isinstance(engine.task.network, Mask2Former):
            raise ConfigError(
                "A graph of Mask2Former holds the size of one photo: its layers count cells in Python. Export it with "
                "--to safetensors."
            )
        return Graph(_Logits(engine.task.network, engine.task.card).eval(), "logits")
    if not isinstance(engine, LightEngine):
        raise ConfigError("This model is an exported file already. Export from the recipe or checkpoint it came from.")
    settings = engine.reader.settings
    if len(settings.scales) > 1:
        raise ConfigError(
            f"The segmenter reads features averaged over the scales {list(settings.scales)}, which one graph cannot "
            "give. Run the recipe with a single scale of features to export it."
        )
    network = replace(settings, compute="float32").encoder()
    resize = {"side": engine.reader.sides[0], "cell": network.cell, "interpolation": network.card.interpolation}
    return Graph(_Probability(engine, network).eval(), "probability", network.cell, resize)


class _Pixels(nn.Module):
    """Normalises images as weights want them."""

    mean: Tensor
    std: Tensor

    def __init__(self, card: WeightsCard) -> None:
        super().__init__()
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Same shape, float32."""
        return (pixels.float() - self.mean) / self.std


class _Logits(nn.Module):
    """A network that sees the photo."""

    def __init__(self, network: nn.Module, card: WeightsCard) -> None:
        super().__init__()
        self.pixels, self.network = _Pixels(card), network

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` uint8 -> logits `(B, C, H, W)`."""
        logits: Tensor = self.network(self.pixels(pixels)).logits
        return logits


class _Probability(nn.Module):
    """A frozen backbone, the light segmenter on its features, and the gate by predicted tags if the model has one."""

    chosen: Tensor

    def __init__(self, engine: LightEngine, network: TapEncoder) -> None:
        super().__init__()
        self.pixels, self.network = _Pixels(network.card), network
        self.reader = FeatureReader(network, engine.reader.settings)
        self.head, self.gate = engine.task.network, engine.task.gate
        self.flip = engine.inference.settings.flip
        self.register_buffer("chosen", engine.chosen)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` uint8, sides of whole cells -> class probabilities `(B, C, s*h, s*w)`, gated."""
        features = self.reader.maps(self.pixels(pixels)).half().float()[:, self.chosen]  # as they are stored
        probability: Tensor = self.head(features).softmax(1)
        if self.flip:
            probability = (probability + self.head(features.flip(-1)).softmax(1).flip(-1)) / 2
        return probability if self.gate is None else probability * self.gate(features)[..., None, None]
