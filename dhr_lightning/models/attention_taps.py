"""Taps of vision transformers: tokens of any block, and what the attention of the last block is made of."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import apply_rot_embed_cat, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError

ATTENTION_TAPS = ("keys", "queries", "values", "vv", "qk", "projection", "attention")
_BLOCKS = ("Block", "EvaBlock")  # norm, attention, sum, norm, layers, sum
_ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")
_GRIDS = 8  # grids whose positions are kept


class Heads(NamedTuple):
    """What an attention layer makes of its tokens, each `(B, heads, N, D / heads)`; rotary positions not applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class TransformerTaps(nn.Module):
    """Taps of a vision transformer of timm (`VisionTransformer` or `Eva`), for sides that its patch divides.

    Args:
        model: the network, built with `dynamic_img_size=True`; with its head where `projection` is asked for.
        name: for messages.
        taps: names, see `models.taps.TapEncoder`.
        projects: whether its head projects into a space shared with texts.

    Attributes:
        cell: pixels of a patch.
        sizes: channels by tap; `class_token` is a vector.

    Raises:
        ConfigError: if the network does not have a tap.
    """

    def __init__(self, model: nn.Module, name: str, *, taps: Sequence[str], projects: bool) -> None:
        super().__init__()
        self.model, self.depth = model, len(model.blocks)
        height, width = model.patch_embed.patch_size
        if height != width:
            raise ConfigError(f"{name!r} has patches of {width}x{height} pixels. Use a network with square ones.")
        self.cell, self.prefix = int(height), int(model.num_prefix_tokens)
        available = tap_names(model, projects=projects)
        for tap in taps:
            if tap not in available:
                raise ConfigError(f"{name!r} has no tap {tap!r}{_why(tap, model)}. It has: {', '.join(available)}.")
        self.sizes = {tap: self._size(tap) for tap in taps}
        self.needed = max(_last_block(tap, self.depth) for tap in taps)
        self._positions: OrderedDict[tuple[object, ...], tuple[Tensor | None, Tensor | None]] = OrderedDict()

    def _size(self, tap: str) -> int:
        model = self.model
        if tap == "attention":
            return 1
        if tap in ("keys", "queries", "values"):
            return int(model.blocks[-1].attn.proj.in_features)
        if tap == "projection" and isinstance(model.head, nn.Linear):
            return int(model.head.out_features)
        return int(model.embed_dim)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`(B, 3, H, W)` normalised, sides multiples of `cell` -> `(B, D, H / cell, W / cell)` by tap, or `(B, D)`."""
        x = self.model.patch_embed(image)  # (B, h, w, D)
        grid = (x.shape[1], x.shape[2])
        positions, rotary = self._positions_of(grid)
        x = self.model.norm_pre(self._with_prefix(x.flatten(1, 2), positions))  # (B, prefix + N, D)
        found: dict[str, Tensor] = {}
        last = self.depth - 1
        for index, block in enumerate(self.model.blocks[: self.needed]):
            if index == last:
                found |= self._attention_taps(x, rotary)
            x = self._run(block, x, index, rotary)
            if f"block{index + 1}" in self.sizes:
                found[f"block{index + 1}"] = x
        if self.needed == last:  # the attention of the last block is wanted, but not what comes out of it
            found |= self._attention_taps(x, rotary)
        if "tokens" in self.sizes or "class_token" in self.sizes:
            tokens = self._final_norm(x)
            found |= {"tokens": tokens, "class_token": tokens[:, 0]}
        return {tap: self._as_map(found[tap], grid) for tap in self.sizes}

    def _as_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if tokens.ndim == 2:
            return tokens
        maps = tokens[:, self.prefix :].transpose(1, 2)  # (B, D, N)
        return maps.reshape(*maps.shape[:2], *grid)  # (B, D, h, w)

    def _run(self, block: nn.Module, x: Tensor, index: int, rotary: Tensor | None) -> Tensor:
        return block(x) if rotary is None else block(x, rope=self._rotary_of(index, rotary))

    def _rotary_of(self, index: int, rotary: Tensor) -> Tensor:
        return rotary[index] if getattr(self.model, "rope_mixed", False) else rotary  # one for each block, or for all

    def _positions_of(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Position embeddings `(1, N or prefix + N, D)` and rotary ones of a grid; those of the last grids are kept."""
        if torch.compiler.is_exporting():  # sizes are symbols, which no table can look up
            return self._resampled(grid)
        table, first = self.model.pos_embed, next(self.model.parameters())
        key = (grid, first.device, first.dtype, None if table is None else (id(table), table._version))
        if key not in self._positions:
            if len(self._positions) >= _GRIDS:
                self._positions.popitem(last=False)
            self._positions[key] = self._resampled(grid)
        self._positions.move_to_end(key)
        return self._positions[key]

    def _resampled(self, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        model, table = self.model, self.model.pos_embed
        prefix = 0 if model.no_embed_class else self.prefix
        old = model.patch_embed.grid_size
        resampled = None if table is None else resample_abs_pos_embed(
            table.float(), new_size=list(grid), old_size=list(old), num_prefix_tokens=prefix
        ).to(table.dtype)  # fmt: skip
        rope = getattr(model, "rope", None)
        return resampled, None if rope is None else rope.get_embed(shape=list(grid))

    def _with_prefix(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Patches `(B, N, D)` -> class token, registers and patches, with positions where the network has them."""
        model = self.model
        if model.no_embed_class and positions is not None:
            x = x + positions
        prefix = [token.expand(x.shape[0], -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        return x if model.no_embed_class or positions is None else x + positions

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.model.fc_norm(self.model.norm(x))  # one of them does nothing: timm norms before or after pooling

    def _attention_taps(self, x: Tensor, rotary: Tensor | None) -> dict[str, Tensor]:
        """Taps of the last block's attention that are asked for, from what enters the block `(B, prefix + N, D)`."""
        wanted = self.sizes.keys() & set(ATTENTION_TAPS)
        if not wanted:
            return {}
        block = self.model.blocks[-1]
        x = block.norm1(x)
        heads = heads_of(block.attn, x)
        found = {name: getattr(heads, name).transpose(1, 2).flatten(2) for name in wanted & set(Heads._fields)}
        if "attention" in wanted:
            turned = heads if rotary is None else rotated(heads, self._rotary_of(-1, rotary), block.attn)
            found["attention"] = class_attention(turned, block.attn.scale)[..., None]
        if wanted & {"vv", "projection"}:
            found["vv"] = mixed(block.attn, x, F.scaled_dot_product_attention(*[heads.values] * 3))
        if "projection" in wanted:
            found["projection"] = self._project(self._final_norm(found["vv"]))
        if "qk" in wanted:
            both = [F.scaled_dot_product_attention(one, one, heads.values) for one in (heads.queries, heads.keys)]
            found["qk"] = mixed(block.attn, x, (both[0] + both[1]) / 2)
        return found

    def _project(self, tokens: Tensor) -> Tensor:
        """What the head of the network makes of each token alone; a pooling head sees each as a sequence of one."""
        if getattr(self.model, "attn_pool", None) is not None:
            alone = tokens.flatten(0, 1)[:, None]  # (B (prefix + N), 1, D)
            tokens = self.model.attn_pool(alone).unflatten(0, tokens.shape[:2])
        return self.model.head(tokens)


def heads_of(attention: nn.Module, x: Tensor) -> Heads:
    """Queries, keys and values of normed tokens `(B, N, D)`, as the layer compares them but before rotary positions."""
    if attention.qkv is None:
        three = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    else:
        bias: Tensor | None = getattr(attention, "q_bias", None)
        whole: Tensor = attention.qkv(x)
        if bias is not None:
            separate: list[Any] = [bias, attention.k_bias, attention.v_bias]
            whole = whole + torch.cat(separate)
        three = list(whole.chunk(3, dim=-1))
    shape = (*x.shape[:2], int(attention.num_heads), -1)
    queries, keys, values = (one.view(shape).transpose(1, 2) for one in three)
    return Heads(attention.q_norm(queries), attention.k_norm(keys), values)


def rotated(heads: Heads, rotary: Tensor, attention: nn.Module) -> Heads:
    """Queries and keys with rotary positions `(N, 2 d)` or `(heads, N, 2 d)`; class token and registers have none."""
    prefix, half = attention.num_prefix_tokens, attention.rotate_half
    queries, keys = (
        torch.cat([one[:, :, :prefix], apply_rot_embed_cat(one[:, :, prefix:], rotary, half=half)], dim=2)
        for one in (heads.queries, heads.keys)
    )
    return Heads(queries, keys, heads.values)


def mixed(attention: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """What the layer makes of mixed values `(B, heads, N, d)`: heads side by side, norm and gate if any, projection."""
    joined = getattr(attention, "norm", nn.Identity())(values.transpose(1, 2).flatten(2))  # (B, N, D)
    gate = getattr(attention, "gate", None)
    return attention.proj(joined if gate is None else joined * gate(x).sigmoid())


def class_attention(heads: Heads, scale: float) -> Tensor:
    """Attention of the class token to every token, mean over heads: `(B, N)`, sums to 1."""
    scores = (heads.queries[:, :, :1] * scale) @ heads.keys.transpose(2, 3)  # (B, heads, 1, N)
    return scores.float().softmax(-1).mean(1)[:, 0]


def tap_names(model: nn.Module, *, projects: bool) -> list[str]:
    """Taps that a vision transformer of timm has, in the order of its layers."""
    block, has_class = model.blocks[-1], model.cls_token is not None
    names = [f"block{index + 1}" for index in range(len(model.blocks))] + ["tokens"]
    names += ["class_token"] if has_class else []
    if type(block).__name__ in _BLOCKS and type(block.attn).__name__ in _ATTENTIONS and _equal_heads(block.attn):
        names += ["keys", "queries", "values", "vv", "qk"]
        names += ["projection"] if projects else []
        names += ["attention"] if has_class else []
    return names


def _equal_heads(attention: nn.Module) -> bool:
    return getattr(attention, "num_kv_heads", attention.num_heads) == attention.num_heads


def _why(tap: str, model: nn.Module) -> str:
    if tap == "projection":
        return " (no head that projects into a space shared with texts)"
    if tap in ("attention", "class_token") and model.cls_token is None:
        return " (no class token)"
    return ""


def _last_block(tap: str, depth: int) -> int:
    """Number of blocks that have to run for a tap."""
    if tap.startswith("block"):
        return int(tap[len("block") :])
    return depth if tap in ("tokens", "class_token") else depth - 1
