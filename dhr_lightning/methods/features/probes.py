"""Small readers of a code that say during a fit how well it tells classes apart; nothing learns from them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import ConfigError
from dhr_lightning.evaluation.metrics import ConfusionMatrix, Scores, scores
from dhr_lightning.evaluation.metrics.matching import check_matching, matched
from dhr_lightning.ops.resize import resize_maps

CLUSTER, LINEAR = "cluster", "linear"


class ClusterProbe(nn.Module):
    """Centroids in the space of a code, one for each class of the data, whose names nobody knows.

    Args:
        dimension: channels D of the code.
        count: centroids.

    Source: cluster probe of STEGO (arXiv:2203.08414), published code.
    """

    def __init__(self, dimension: int, count: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(count, dimension))

    def forward(self, code: Tensor) -> Tensor:
        """`(B, D, h, w)` -> cosine with every centroid, `(B, n, h, w)`."""
        return torch.einsum("bdhw,nd->bnhw", F.normalize(code, dim=1), F.normalize(self.centroids, dim=1))

    def loss(self, code: Tensor) -> Tensor:
        """Distance of the cells of `(B, D, h, w)` from the nearest centroid, which alone learns from a cell."""
        return -self(code).amax(1).mean()


class Probes(nn.Module):
    """Probes that learn beside a code, which gets no gradient from them, and are scored on whole images.

    Args:
        wanted: `cluster` (reads no label; is matched with the classes when it is scored), `linear` (reads the ground
            truth of training images).
        dimension: channels D of the code.
        classes: class list.

    Raises:
        ConfigError: for an unknown probe.
        DependencyError: if scipy is missing for the matching.
    """

    def __init__(self, wanted: Sequence[str], dimension: int, classes: ClassSet) -> None:
        super().__init__()
        for name in wanted:
            if name not in (CLUSTER, LINEAR):
                raise ConfigError(f"Expected model.init_args.probes of {CLUSTER} and {LINEAR}, but got {name!r}.")
        if CLUSTER in wanted:
            check_matching()
            self.cluster = ClusterProbe(dimension, classes.num_classes)
        if LINEAR in wanted:
            self.linear = nn.Conv2d(dimension, classes.num_classes, 1)
        self.ignore_index = classes.ignore_index
        count = {"num_classes": classes.num_classes, "ignore_index": classes.ignore_index}
        self.counts = nn.ModuleDict({name: ConfusionMatrix(**count) for name, _ in self.readers()})

    def readers(self) -> list[tuple[str, nn.Module]]:
        """The probes there are."""
        return [(name, getattr(self, name)) for name in (CLUSTER, LINEAR) if hasattr(self, name)]

    def losses(self, code: Tensor, truth: Tensor | None = None) -> dict[str, Tensor]:
        """Loss of each probe on a code that it cannot change.

        Args:
            code: `(B, D, h, w)`.
            truth: `(B, H, W)` int64, for the linear probe.
        """
        code, found = code.detach().float(), {}
        if hasattr(self, CLUSTER):
            found[CLUSTER] = self.cluster.loss(code)
        if hasattr(self, LINEAR):
            if truth is None:
                raise ValueError("Expected `truth` for the linear probe, but got None.")
            logits = F.interpolate(self.linear(code), truth.shape[-2:], mode="bilinear", align_corners=False)
            known = (truth != self.ignore_index).sum().clamp_min(1)  # images without truth teach nothing
            sums = F.cross_entropy(logits, truth, ignore_index=self.ignore_index, reduction="sum")
            found[LINEAR] = sums / known
        return found

    def count(self, code: Tensor, truth: Tensor) -> None:
        """Count what the probes say of images without padding against the truth.

        Args:
            code: `(B, D, h, w)`, cells evenly over the images.
            truth: `(B, H, W)` int64.
        """
        fine = resize_maps(code.float(), (truth.shape[-2], truth.shape[-1]))
        for name, probe in self.readers():
            self.counts[name].update(probe(fine).argmax(1), truth)

    def figures(self) -> dict[str, Scores]:
        """Scores of what was counted, by probe, and start again; none where there was no truth."""
        found = {}
        for name, _ in self.readers():
            matrix = self.counts[name].compute()
            if int(matrix.sum()):
                found[name] = scores(matched(matrix) if name == CLUSTER else matrix)
            self.counts[name].reset()
        return found
