"""Frozen vision transformers of timm as dense feature extractors."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.weights import CLASSIFIER, create_timm, load_weights, source_of
from dhr_lightning.ops.resize import resize_to_multiple


class FrozenViT(nn.Module):
    """Last-layer patch tokens of a vision transformer, without gradient.

    Args:
        name: timm model name, for example `vit_base_patch8_224.dino`.
        pretrained: `False` (random), `True` (downloads by name on first use), or a path, see `models.weights`.

    Raises:
        ConfigError: if timm does not know the name or the model has no patches.
        DependencyError: if the download fails.
        CheckpointError: if the file does not fit.

    Source: DINO (arXiv:2104.14294) features as used by STEGO (arXiv:2203.08414): the last block after the final norm,
        without class and register tokens.
    Differs: away from the native grid timm resamples position embeddings bicubically with anti-aliasing; the hub models
        of DINO and of DINOv2 without registers do so without it.
    """

    def __init__(self, name: str, *, pretrained: bool | str = False) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            raise ConfigError(
                f"timm knows no model {name!r}. Look names up with timm.list_models('*dino*', pretrained=True)."
            )
        kind = "vision transformer with a free image size"
        self.model: nn.Module = create_timm(
            name, pretrained=pretrained, kind=kind, num_classes=0, dynamic_img_size=True
        )
        if not hasattr(self.model, "num_prefix_tokens"):
            raise ConfigError(f"{name!r} is no plain vision transformer: it has no patch tokens. Use a `vit_` name.")
        if isinstance(pretrained, str):
            load_weights(self.model, Path(pretrained), what=repr(name), unused=CLASSIFIER, source=source_of(name))
        self.requires_grad_(False)
        self.eval()
        self.patch = self.cell = int(self.model.patch_embed.patch_size[0])
        self.out_channels = int(self.model.num_features)

    def train(self, mode: bool = True) -> "FrozenViT":
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised -> `(B, D, ceil(H / patch), ceil(W / patch))`; stretched to whole patches."""
        return self.tokens(image)

    def tokens(self, image: Tensor) -> Tensor:
        """As `forward`, with gradient where the weights have one."""
        image = resize_to_multiple(image, self.patch)
        tokens = self.model.forward_features(image)[:, self.model.num_prefix_tokens :]  # (B, N, D)
        return tokens.transpose(1, 2).unflatten(2, [length // self.patch for length in image.shape[-2:]])
