"""Losses of CAUSE: modularity of a codebook, and contrast between tokens of one concept and of others."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def modularity_loss(tokens: Tensor, codes: Tensor, *, temperature: float = 0.1, chunk: int = 256) -> Tensor:
    """Minus the modularity of the tokens of each image, where tokens belong together as far as they share a code.

    With A = max(0, cos) between tokens and 0 on the diagonal, degrees d, their sum e, C = max(0, cos) between tokens
    and codes, and delta_pq = max_k tanh(C_pk C_qk / temperature): -sum_pq (A/e - d d^T / e^2)_pq delta_pq.

    Args:
        tokens: `(B, P, F)`; they get no gradient.
        codes: `(K, F)`.
        temperature: > 0; smaller ones count every shared code.
        chunk: codes taken at once, which bounds the memory and changes nothing.

    Returns:
        the mean over the images; 0 for an image without any similarity between its tokens.

    Source: CAUSE (arXiv:2310.07379), Eq. 2-4.
    Differs: the largest product is taken code by code before tanh, which is monotone, so that memory never holds
        `(B, K, P, P)`.
    """
    unit = F.normalize(tokens.detach().float(), dim=-1)
    between = (unit @ unit.transpose(1, 2)).clamp_min(0)  # (B, P, P)
    between = between * (1 - torch.eye(between.shape[-1], device=between.device))
    degree = between.sum(-1)
    total = degree.sum(-1)[:, None, None].clamp_min(1e-10)
    modular = between / total - degree[:, :, None] * degree[:, None, :] / total.square()
    share = (unit @ F.normalize(codes.float(), dim=-1).T).clamp_min(0)  # (B, P, K)
    best = torch.zeros_like(between)
    for part in torch.split(share, chunk, dim=-1):
        best = torch.maximum(best, (part[:, :, None, :] * part[:, None, :, :]).amax(-1))
    return -(modular * torch.tanh(best / temperature)).sum((1, 2)).mean()


class Contrast(NamedTuple):
    """What anchors are compared with.

    Args:
        vectors: `(M, D)` of the teacher, of any length; they get no gradient.
        codes: `(M,)` int64 code of each.
    """

    vectors: Tensor
    codes: Tensor


class ContrastSettings(NamedTuple):
    """Constants of the contrast.

    Args:
        positive: cosine of two codes above which their tokens are one concept.
        negative: cosine below which they are different ones; between the two they do not count.
        temperature: of the cosines of vectors.
    """

    positive: float = 0.3
    negative: float = 0.1
    temperature: float = 0.07


def contrast_loss(
    anchors: Tensor,
    codes: Tensor,
    others: Contrast,
    similarity: Tensor,
    *,
    settings: ContrastSettings,
    own: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tokens of one concept attract, those of different ones repel.

    For anchor i and a positive j: -l_ij + log sum_k exp(l_ik) over all positives and negatives k, with l the cosine of
    their vectors divided by the temperature; the mean over all such pairs of an image.

    Args:
        anchors: `(B, P, D)` vectors of the student.
        codes: `(B, P)` int64 code of each.
        others: what they are compared with.
        similarity: `(K, K)` cosines of the codes.
        settings: constants.
        own: `others` are the tokens of these very images in their order, so that each anchor meets itself, which does
            not count.

    Returns:
        `(B,)` loss of each image, 0 where no anchor has a positive, and `(B,)` bool, where one has.

    Source: CAUSE (arXiv:2310.07379), Eq. 6.
    Differs: an image without positives is left out; in the published code it makes the loss NaN.
    """
    batch = len(anchors)
    cosine = F.normalize(anchors.float(), dim=-1).flatten(0, 1) @ F.normalize(others.vectors.detach().float(), dim=-1).T
    logits = cosine / settings.temperature  # (B*P, M)
    likeness = similarity[codes.flatten()][:, others.codes]
    positive, negative = likeness > settings.positive, likeness < settings.negative
    if own:
        itself = torch.eye(len(positive), dtype=torch.bool, device=positive.device)
        positive, negative = positive & ~itself, negative & ~itself
    chosen = logits.masked_fill(~(positive | negative), float("-inf"))
    spread = torch.logsumexp(chosen, dim=1, keepdim=True)
    pairs = torch.where(positive, spread - logits, 0.0).view(batch, -1).sum(1)
    number = positive.view(batch, -1).sum(1)
    return pairs / number.clamp_min(1), number > 0


class ConceptBank(nn.Module):
    """The last vectors of the teacher for each code, as part of the checkpoint.

    Args:
        codes: number of codes K.
        capacity: vectors kept of each.
        dimension: of a vector D. The memory is K x capacity x D x 2 bytes: 0.8 GB for the published 2048, 100, 2048.

    Source: CAUSE (arXiv:2310.07379), published code.
    Differs: rings in half precision in place of lists; the newest vectors replace the oldest.
    """

    vectors: Tensor
    filled: Tensor
    place: Tensor

    def __init__(self, codes: int, capacity: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(codes, capacity, dimension, dtype=torch.bfloat16))
        self.register_buffer("filled", torch.zeros(codes, dtype=torch.long))  # slots in use
        self.register_buffer("place", torch.zeros(codes, dtype=torch.long))  # slot that is written next

    @torch.no_grad()
    def add(self, vectors: Tensor, codes: Tensor) -> None:
        """Put vectors `(M, D)` of codes `(M,)` in; of one code the last ones stay."""
        size, capacity = self.vectors.shape[:2]
        order = codes.argsort(stable=True)
        sorted_codes = codes[order]
        counts = torch.bincount(codes, minlength=size)
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(codes), device=codes.device) - first[sorted_codes]
        stays = rank >= (counts - capacity)[sorted_codes]  # no slot is written twice
        slot = (self.place[sorted_codes] + rank) % capacity
        unit = F.normalize(vectors.float(), dim=-1)[order].to(self.vectors.dtype)
        self.vectors[sorted_codes[stays], slot[stays]] = unit[stays]
        self.place.copy_((self.place + counts) % capacity)
        self.filled.copy_((self.filled + counts).clamp_max(capacity))

    def draw(self, most: int) -> Contrast | None:
        """At most `most` random vectors of the bank with their codes; `None` while it is empty."""
        capacity = self.vectors.shape[1]
        codes, slots = (torch.arange(capacity, device=self.filled.device) < self.filled[:, None]).nonzero(as_tuple=True)
        if len(codes) == 0:
            return None
        if len(codes) > most:
            kept = torch.randperm(len(codes))[:most].to(codes.device)
            codes, slots = codes[kept], slots[kept]
        return Contrast(self.vectors[codes, slots].float(), codes)
