"""Tiny transformers of timm with random weights, and what a tap means, written plainly."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIZE = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every number differs from zero and one, so that no part can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + (0.2 if parameter.ndim == 1 else 0)
    return model.eval().requires_grad_(False)


def tiny(kind: str, **options: Any) -> nn.Module:
    family, settings = KINDS[kind]
    return randomized(family(**{**SIZE, **settings, **options}))


DINOV3: dict[str, Any] = {
    "patch_size": 16,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_rotate_half": True,
    "rope_grid_offset": 0.5,
    "num_reg_tokens": 4,
    "init_values": 0.1,
    "qkv_bias": False,
    "scale_attn_inner": False,
}
KINDS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "dino": (VisionTransformer, {"patch_size": 8}),
    "dinov2": (
        VisionTransformer,
        {"img_size": 42, "patch_size": 14, "reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    ),
    "dinov3": (Eva, DINOV3),
    "mixed": (Eva, {**DINOV3, "rope_type": "mixed", "rope_rotate_half": False, "rope_grid_offset": 0.0}),
    "eva02": (
        Eva,
        {"patch_size": 8, "use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True, "scale_attn_inner": True},
    ),
    "eva": (Eva, {"patch_size": 8, "use_rot_pos_emb": True, "num_reg_tokens": 1}),
    "clip": (VisionTransformer, {"patch_size": 16, "pre_norm": True, "num_classes": 10}),
    "siglip": (VisionTransformer, {"patch_size": 16, "class_token": False, "global_pool": "map"}),
    "mae": (VisionTransformer, {"patch_size": 8, "global_pool": "avg"}),
    "normed": (VisionTransformer, {"patch_size": 8, "qk_norm": True, "scale_attn_norm": True}),
}


def image_for(model: nn.Module, rows: int, columns: int, *, count: int = 2) -> Tensor:
    patch = model.patch_embed.patch_size[0]
    return torch.randn(count, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(rows))


def as_map(tokens: Tensor, model: nn.Module, rows: int, columns: int) -> Tensor:
    """Tokens `(B, prefix + N, D)` cell by cell, row after row."""
    result = torch.zeros(len(tokens), tokens.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            result[:, :, row, column] = tokens[:, model.num_prefix_tokens + row * columns + column]
    return result


class LastBlock:
    """What timm's own forward pass shows the last block: its input, and the softmax of its attention."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        block, seen = model.blocks[-1], {}
        block.attn.fused_attn = False  # timm then writes the attention out
        handles = [
            block.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0])),
            block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.update(attention=inputs[0])),
        ]
        self.tokens = model.forward_features(image)
        for handle in handles:
            handle.remove()
        self.attn, self.attention = block.attn, seen["attention"]  # (B, heads, N, N)
        self.normed = block.norm1(seen["x"])  # (B, N, D)

    def _part(self, index: int, name: str) -> Tensor:
        """Rows of the weights that make queries (0), keys (1) or values (2)."""
        attn, width = self.attn, self.normed.shape[2]
        if attn.qkv is None:
            return getattr(attn, f"{name}_proj")(self.normed)
        rows = slice(index * width, (index + 1) * width)
        result = self.normed @ attn.qkv.weight[rows].T
        bias = attn.qkv.bias[rows] if attn.qkv.bias is not None else getattr(attn, f"{name}_bias", None)
        return result if bias is None else result + bias

    def _normed_heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        width = x.shape[2] // self.attn.num_heads
        return torch.cat([norm(x[..., i : i + width]) for i in range(0, x.shape[2], width)], dim=2)

    @property
    def queries(self) -> Tensor:
        return self._normed_heads(self._part(0, "q"), self.attn.q_norm)

    @property
    def keys(self) -> Tensor:
        return self._normed_heads(self._part(1, "k"), self.attn.k_norm)

    @property
    def values(self) -> Tensor:
        return self._part(2, "v")

    def self_attention(self, compared: Tensor) -> Tensor:
        """Each token of each head: mean of the values, weighted by how alike the `compared` of two tokens are."""
        width = compared.shape[2] // self.attn.num_heads
        result = torch.zeros_like(self.values)
        for b in range(len(compared)):
            for start in range(0, compared.shape[2], width):
                head = slice(start, start + width)
                likeness = compared[b, :, head] @ compared[b, :, head].T / math.sqrt(width)
                weights = likeness.exp() / likeness.exp().sum(1, keepdim=True)
                result[b, :, head] = weights @ self.values[b, :, head]
        return result

    def project(self, mixed: Tensor) -> Tensor:
        return self.attn.proj(self.attn.norm(mixed))

    @property
    def vv(self) -> Tensor:
        return self.project(self.self_attention(self.values))

    @property
    def qk(self) -> Tensor:
        return self.project((self.self_attention(self.queries) + self.self_attention(self.keys)) / 2)
