"""Network of CAUSE: a codebook, a decoder from the nearest codes to features, and its average."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.stego import StegoHead
from dhr_lightning.models.uss import USSNetwork

DECODERS = ("transformer", "mlp")
_FEEDFORWARD, _DROPOUT = 2048, 0.1


class CauseHead(nn.Module):
    """From frozen tokens to the features that DHR reads.

    Each token asks, by its nearest code, the tokens of its image; the answer is added to the token, and a linear and a
    non-linear projection make the features. `mlp` has the projections alone.

    Args:
        inputs: channels of the tokens F.
        dimension: channels of the features D.
        decoder: `transformer` or `mlp`.
        side: side of the grid that the positions are learnt on; they are resampled to other grids.

    Source: CAUSE (arXiv:2310.07379), published code: TR and MLP.
    Differs: positions are resampled in two dimensions, bicubically; the code of DHR stretches the list of them, so that
        on other grids no row is where it was.
    """

    def __init__(self, inputs: int, dimension: int, *, decoder: str, side: int) -> None:
        super().__init__()
        self.decoder = _ConceptDecoder(inputs, side) if decoder == "transformer" else None
        self.project = StegoHead(inputs, dimension, dropout=_DROPOUT)
        self.project.dropout = nn.Dropout(_DROPOUT)  # type: ignore[assignment] # of single values, as published

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """`(B, F, h, w)` and codes `(K, F)` -> `(B, D, h, w)`, not normalised."""
        if self.decoder is not None:
            features = self.decoder(features, codes)
        return self.project(features)


class _ConceptDecoder(nn.Module):
    """One layer of a transformer decoder whose queries are the nearest codes."""

    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, inputs, side, side))
        self.own, self.across = (nn.MultiheadAttention(inputs, 1, dropout=_DROPOUT, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(inputs) for _ in range(3))
        self.feedforward = nn.Sequential(
            nn.Linear(inputs, _FEEDFORWARD), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_FEEDFORWARD, inputs)
        )

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        grid = features.shape[-2:]
        tokens = features.flatten(2).transpose(1, 2)  # (B, P, F)
        position: Tensor = self.position
        if position.shape[-2:] != grid:
            position = F.interpolate(position, grid, mode="bicubic", align_corners=False)
        place = position.flatten(2).transpose(1, 2)
        asked = codes.detach()[nearest_codes(tokens, codes)]
        query = asked + place
        answer = self.norms[0](asked + self.own(query, query, asked, need_weights=False)[0])
        answer = self.norms[1](answer + self.across(answer + place, tokens, tokens, need_weights=False)[0])
        answer = self.norms[2](answer + self.feedforward(answer))
        return (tokens + answer).transpose(1, 2).unflatten(2, grid)


def nearest_codes(tokens: Tensor, codes: Tensor) -> Tensor:
    """`(..., F)` and `(K, F)` -> `(...)` int64, the code of the largest cosine."""
    with torch.no_grad():
        nearest: Tensor = (tokens.float() @ F.normalize(codes.float(), dim=-1).T).argmax(-1)
    return nearest


class CauseNetwork(USSNetwork):
    """Frozen backbone, codebook, and student and teacher of the head; features are those of the teacher.

    Args:
        backbone: see `USSNetwork`; published with DINO and DINOv2.
        pretrained: see `USSNetwork`.
        dimension: channels D of the features.
        codes: number of codes K.
        projection: channels that student and teacher are compared in.
        decoder: see `CauseHead`.
        crop_size: side of the crops that positions are learnt on, in pixels.
    """

    def __init__(
        self,
        backbone: str,
        *,
        pretrained: bool | str,
        dimension: int,
        codes: int,
        projection: int,
        decoder: str,
        crop_size: int,
    ) -> None:
        super().__init__(backbone, "none", pretrained=pretrained, dimension=dimension)
        inputs = self.backbone.out_channels
        self.codes = nn.Parameter(torch.empty(codes, inputs).uniform_(-1 / codes, 1 / codes))
        side = max(1, crop_size // self.cell)
        self.student = CauseHead(inputs, dimension, decoder=decoder, side=side)
        self.project = nn.Conv2d(dimension, projection, 1)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_project = copy.deepcopy(self.project).requires_grad_(False)

    def code(self, features: Tensor) -> Tensor:
        """See `USSNetwork`: of the teacher."""
        with torch.autocast(features.device.type, enabled=False):
            return self.teacher(features.float(), self.codes)

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """`teacher <- d teacher + (1 - d) student`."""
        for teacher, student in ((self.teacher, self.student), (self.teacher_project, self.project)):
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
