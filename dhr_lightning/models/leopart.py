"""Network of Leopart: a transformer that is tuned, prototypes of its cells, and the average of both."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.attention_taps import class_attention, heads_of
from dhr_lightning.models.uss import USSNetwork
from dhr_lightning.models.vit import FrozenViT


class PrototypeHead(nn.Module):
    """Cells of a transformer -> cosines with prototypes.

    Args:
        inputs: channels of the cells F.
        hidden: channels of the two hidden layers.
        outputs: channels in which cells and prototypes are compared.
        prototypes: how many K.

    Source: Leopart (arXiv:2204.13101), published code: three layers with GELU.
    """

    def __init__(self, inputs: int, *, hidden: int, outputs: int, prototypes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, hidden, 1), nn.GELU(),
            nn.Conv2d(hidden, outputs, 1),
        )  # fmt: skip
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, outputs), dim=1))

    def embed(self, maps: Tensor) -> Tensor:
        """`(B, F, h, w)` -> unit vectors `(B, D, h, w)`."""
        return F.normalize(self.project(maps), dim=1)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Unit vectors `(B, D, ...)` -> cosines `(B, K, ...)`."""
        return torch.einsum("bd...,kd->bk...", vectors, F.normalize(self.prototypes, dim=1))

    def forward(self, maps: Tensor) -> Tensor:
        """`(B, F, h, w)` -> cosines `(B, K, h, w)`."""
        return self.cosines(self.embed(maps))


class Seen(NamedTuple):
    """What the teacher sees in images.

    Args:
        vectors: `(B, D, h, w)` unit vectors of cells.
        attention: `(B, h, w)` of the class token, mean over heads.
    """

    vectors: Tensor
    attention: Tensor


class LeopartNetwork(USSNetwork):
    """Student and teacher, each a transformer with a head of prototypes; features are the student's cells.

    Args:
        backbone: a timm vision transformer with a class token, learnt positions and patches.
        pretrained: see `USSNetwork`.
        hidden: see `PrototypeHead`.
        outputs: see `PrototypeHead`.
        prototypes: see `PrototypeHead`.

    Raises:
        ConfigError: if the backbone has no attention of a class token.
    """

    backbone: FrozenViT

    def __init__(self, backbone: str, *, pretrained: bool | str, hidden: int, outputs: int, prototypes: int) -> None:
        super().__init__(backbone, "none", pretrained=pretrained, dimension=0)
        model = getattr(self.backbone, "model", None)
        if not isinstance(self.backbone, FrozenViT) or model.cls_token is None or getattr(model, "rope", None):
            raise ConfigError(
                f"Leopart tunes a vision transformer with a class token and learnt positions, but {backbone!r} is none."
                " Take a DINO or DINOv2 name of timm, or swap the step."
            )
        self.backbone.requires_grad_(True)
        self.head = PrototypeHead(self.backbone.out_channels, hidden=hidden, outputs=outputs, prototypes=prototypes)
        self.teacher = copy.deepcopy(nn.ModuleList([self.backbone, self.head])).requires_grad_(False)

    @property
    def encoder(self) -> FrozenViT:
        """The part that learns at the lower rate."""
        return self.backbone

    def code(self, features: Tensor) -> Tensor:
        """Features are used as they are, `(B, F, h, w)` float32."""
        return features.float()

    def cosines(self, views: Tensor) -> Tensor:
        """Views `(B, 3, S, S)` normalised -> cosines with the prototypes `(B, K, h, w)`, with gradient."""
        cosines: Tensor = self.head(self.backbone.tokens(views))
        return cosines

    @torch.no_grad()
    def seen(self, views: Tensor) -> Seen:
        """What the teacher sees in views `(B, 3, S, S)` normalised."""
        backbone, head = self.teacher
        entered: list[Tensor] = []
        last = backbone.model.blocks[-1]
        handle = last.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
        try:
            maps = backbone.tokens(views)
        finally:
            handle.remove()
        attention = class_attention(heads_of(last.attn, last.norm1(entered[0])), last.attn.scale)
        cells = attention[:, backbone.model.num_prefix_tokens :].view(len(views), *maps.shape[-2:])
        return Seen(head.embed(maps), cells)

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """`teacher <- d teacher + (1 - d) student`."""
        for teacher, student in zip(self.teacher, (self.backbone, self.head), strict=True):
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
