"""Named dense feature maps of any frozen backbone on one grid."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.attention_taps import TransformerTaps
from dhr_lightning.models.backbones import is_encoder
from dhr_lightning.models.cards import WeightsCard, card_of, named_card
from dhr_lightning.models.cnn_taps import StageTaps
from dhr_lightning.models.weights import CLASSIFIER, create_timm, load_weights, source_of
from dhr_lightning.ops import bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TRANSFORMERS = ("vision_transformer", "eva", "deit")  # timm's modules of plain ones
VECTORS = ("class_token",)


class TapEncoder(nn.Module):
    """A frozen backbone that gives several of its feature maps, and runs no layer behind the last one asked for.

    Args:
        name: a timm name, with its tag where several weights exist, or a name of `build_encoder`. Vision transformers:
            DINO, DINOv2, DINOv3, CLIP, SigLIP and others of timm's classes `VisionTransformer` and `Eva`. All others:
            convolutional networks.
        taps: what to give, in this order. Of a vision transformer with N blocks:
            `block1`..`blockN`: tokens after a block, before the final norm; `tokens`: the last ones after it;
            `keys`, `queries`, `values`: of the last block's attention, heads side by side, before rotary positions;
            `vv`: output of that attention with values compared to values, projected, without residual and MLP;
            `qk`: the same with the mean of query-query and key-key attention, applied to the values;
            `projection`: `vv` after final norm and the head that CLIP and SigLIP share with texts;
            `attention`: of the class token in that block to each patch, mean over heads, one channel;
            `class_token`: a vector after the final norm, see `encode`.
            Of a convolutional network: `stage1`..`stage5`, of stride 2^k, brought to a grid of 16 pixels.
        pretrained: `False` (random), `True` (by name, fetched on first use) or a path, see `models.weights`.
        dtype: `float32`, or `bfloat16`, which takes about half the time and memory; not so on processors that only
            emulate it, see `settle`. Taps are float32 in both.

    Attributes:
        card: how images are normalised and resized for these weights, and where they come from.
        cell: pixels between two cells.
        channels: channels by tap, in their order; vectors are not among them.

    Raises:
        ConfigError: if backbone or tap is unknown; names the nearest ones.
        DependencyError: if weights by name cannot be fetched.
        CheckpointError: if the file of weights or its card does not fit.

    Source: `vv` of CLIP Surgery (arXiv:2304.05653), `qk` of SCLIP (arXiv:2312.01597), `projection` of single tokens of
        MaskCLIP (arXiv:2112.01071).
    Differs: SCLIP adds its two attentions, here their mean counts; SigLIP's pooling head sees each token alone.
        Position embeddings are resampled bicubically with anti-aliasing, as timm does.
    """

    def __init__(
        self, name: str, *, taps: Sequence[str], pretrained: bool | str = False, dtype: str = "float32"
    ) -> None:
        super().__init__()
        check_backbone(name)
        if not taps or len(set(taps)) != len(taps):
            raise ConfigError(f"Expected taps to be different names, at least one, but got {list(taps)}.")
        if dtype not in DTYPES:
            raise ConfigError(f"Expected dtype to be {' or '.join(DTYPES)}, but got {dtype!r}.")
        self.name, self.dtype, self.card = name, DTYPES[dtype], card_of(name, pretrained)
        self.body, network = _build(name, taps, pretrained, self.card)
        if isinstance(pretrained, str):
            unused = CLASSIFIER if isinstance(self.body, TransformerTaps) else None
            load_weights(network, Path(pretrained), what=repr(name), unused=unused, source=source_of(name))
        self.cell: int = self.body.cell
        self.channels: dict[str, int] = {tap: n for tap, n in self.body.sizes.items() if tap not in VECTORS}
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)
        self._cast(self.dtype)

    def _cast(self, dtype: torch.dtype) -> None:
        for module in self.modules():  # sums of blocks and norms stay float32: few cells would be far off otherwise
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)

    def settle(self, device: torch.device) -> torch.dtype:
        """Compute in float32, with the weights as they are, on a device that only emulates bfloat16.

        Returns:
            the number type from now on.
        """
        if self.dtype == torch.bfloat16 and not bfloat16.pays(device):
            self.dtype = torch.float32
            self._cast(self.dtype)
        return self.dtype

    def train(self, mode: bool = True) -> "TapEncoder":
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Every tap by name, vectors too.

        Args:
            image: `(B, 3, H, W)` normalised by `card`; sides are multiples of `cell`.

        Returns:
            `(B, D, H / cell, W / cell)` float32 by tap; `class_token` `(B, D)`.

        Raises:
            ValueError: if a side is no multiple of `cell`.
        """
        if image.ndim != 4 or not image.numel() or any(side % self.cell for side in image.shape[-2:]):
            raise ValueError(f"Expected (B, 3, H, W) with sides of whole {self.cell} px, but got {tuple(image.shape)}.")
        dtype = self.settle(image.device)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            found = self.body(image.float())
        return {tap: one.float() for tap, one in found.items()}

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` as in `encode` -> all maps, one after another `(B, sum of channels, H / cell, W / cell)`."""
        found = self.encode(image)
        if not self.channels:
            raise ConfigError(f"The taps of {self.name!r} ({', '.join(found)}) hold no map. Name one more.")
        return torch.cat([found[tap] for tap in self.channels], dim=1)


def check_backbone(name: str) -> None:
    """Refuse a name that neither timm nor `build_encoder` knows.

    Raises:
        ConfigError: names the nearest ones.
    """
    if is_backbone(name):
        return
    known = [*encoders, *timm.list_models(), *timm.list_pretrained()]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"The nearest: {', '.join(nearest)}." if nearest else "Look names up with timm.list_models('*dino*')."
    raise ConfigError(f"Unknown backbone {name!r}. {hint}")


def is_backbone(name: str) -> bool:
    """Whether timm or `build_encoder` knows a name."""
    return bool(name) and (is_encoder(name) or bool(timm.is_model(name.split(".")[0])))


def default_taps(name: str) -> tuple[str, ...]:
    """Layers of a backbone that light heads on its features do well with.

    Args:
        name: see `TapEncoder`.

    Returns:
        Of a vision transformer with N blocks: the tokens after two thirds of them and before the last one, and keys and
        `vv` of the last one; of others the last three stages.

    Raises:
        ConfigError: if the backbone is unknown.
    """
    check_backbone(name)
    if not is_transformer(name):
        return ("stage3", "stage4", "stage5")
    with torch.device("meta"):  # no memory, no time: only the number of blocks is looked at
        blocks = len(timm.create_model(name).blocks)
    return (f"block{max(1, blocks * 2 // 3)}", f"block{max(1, blocks - 1)}", "keys", "vv")


def is_transformer(name: str) -> bool:
    """Whether a backbone is a plain vision transformer of timm."""
    return not is_encoder(name) and bool(timm.models.is_model_in_modules(name.split(".")[0], _TRANSFORMERS))


def _build(
    name: str, taps: Sequence[str], pretrained: bool | str, card: WeightsCard
) -> tuple[TransformerTaps | StageTaps, nn.Module]:
    """The taps, and the network that weights are loaded into."""
    if not is_transformer(name):
        stages = StageTaps(name, taps=taps, pretrained=pretrained)
        return stages, stages.network
    with_text = "language" in (named_card(name)[0].supervision, card.supervision)  # of random weights the name says it
    asked = "projection" in taps
    options = {} if with_text and asked else {"num_classes": 0}
    kind = "vision transformer with a free image size"
    model = create_timm(name, pretrained=pretrained, kind=kind, dynamic_img_size=True, **options)
    if type(model).__name__ not in ("VisionTransformer", "Eva"):
        raise ConfigError(f"{name!r} is no plain vision transformer (timm builds {type(model).__name__}). Use one.")
    has_head = getattr(model, "attn_pool", None) is not None or isinstance(model.head, nn.Linear)
    return TransformerTaps(model, name, taps=taps, projects=with_text and (has_head or not asked)), model
