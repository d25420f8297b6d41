"""Heads that are computed from frozen features and give unsupervised segmentation (USS) features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.kmeans import kmeans


class PrincipalAxes(nn.Module):
    """Features along their principal axes, without centring: cosines stay what they were but for what is cut off.

    Args:
        inputs: channels of the frozen features.
        dimension: channels kept D, at most `inputs`.

    Raises:
        ConfigError: if `dimension` exceeds `inputs`.
    """

    def __init__(self, inputs: int, dimension: int = 70) -> None:
        super().__init__()
        if dimension > inputs:
            raise ConfigError(f"Expected model.init_args.dimension <= {inputs} of these features, but got {dimension}.")
        self.register_buffer("projection", torch.zeros(inputs, dimension))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, cells: Tensor, *, seed: int = 0) -> None:
        """Fit the axes to feature cells `(N, F)`; nothing in it is random."""
        _, vectors = torch.linalg.eigh(cells.T @ cells / len(cells))
        self.projection.copy_(vectors[:, -self.projection.shape[1] :])
        self.fitted.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, F, h, w)` -> `(B, D, h, w)`."""
        return torch.einsum("bfhw,fd->bdhw", features.float(), self.projection)


class Whitening(PrincipalAxes):
    """Centred features along their principal axes, each divided by its standard deviation: every axis counts alike.

    Args:
        inputs: channels of the frozen features.
        dimension: channels kept D, at most `inputs`.
    """

    def __init__(self, inputs: int, dimension: int = 70) -> None:
        super().__init__(inputs, dimension)
        self.register_buffer("mean", torch.zeros(inputs))

    def fit(self, cells: Tensor, *, seed: int = 0) -> None:
        """Fit mean, axes and standard deviations to feature cells `(N, F)`; nothing in it is random."""
        self.mean.copy_(cells.mean(0))
        centred = cells - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(cells))
        count = self.projection.shape[1]
        self.projection.copy_(vectors[:, -count:] * values[-count:].clamp(min=1e-12).rsqrt())
        self.fitted.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, F, h, w)` -> `(B, D, h, w)`, over the cells that it was fitted to of mean 0 and variance 1."""
        return super().forward(features.float() - self.mean[:, None, None])


class ClusterCode(nn.Module):
    """Soft assignment to spherical k-means clusters of half-whitened principal components; fitted, not trained.

    Args:
        inputs: channels of the frozen features.
        clusters: number of clusters D.
        components: principal components kept.
        temperature: of the softmax over cosines, > 0.
        constant: length of the constant channel relative to the mean feature. Without it the centred background has
            no direction, and its cosine means nothing.

    Source: ours; stands where the cluster codes of STEGO (arXiv:2203.08414) and CAUSE (arXiv:2310.07379) stand.
    """

    def __init__(
        self, inputs: int, clusters: int = 96, *, components: int = 32, temperature: float = 0.1, constant: float = 0.7
    ) -> None:
        super().__init__()
        self.temperature, self.constant = temperature, constant
        components = min(components, inputs)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("projection", torch.zeros(inputs, components))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("clusters", torch.zeros(clusters, components + 1))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, cells: Tensor, *, iterations: int = 20, seed: int = 0) -> None:
        """Fit components and clusters to feature cells `(N, F)`."""
        self.mean.copy_(cells.mean(0))
        centred = cells - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(cells))
        count = self.projection.shape[1]
        spread = values[-count:].clamp(min=1e-12).sqrt()  # standard deviation along each component
        self.projection.copy_(vectors[:, -count:] * spread.rsqrt())
        self.offset.copy_(self.constant * (centred @ self.projection).norm(dim=1).mean())
        generator = torch.Generator().manual_seed(seed)
        points = self._embed(cells)
        self.clusters.copy_(
            kmeans(points, len(self.clusters), iterations=iterations, generator=generator, spherical=True)
        )
        self.fitted.fill_(True)

    def _embed(self, cells: Tensor) -> Tensor:
        components = (cells - self.mean) @ self.projection  # (N, components)
        constant = self.offset.expand(len(cells), 1)
        return F.normalize(torch.cat([components, constant], dim=1), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, F, h, w)` -> `(B, D, h, w)`, non-negative, sums to 1 over D."""
        batch, channels, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels)
        cosine = self._embed(cells.float()) @ F.normalize(self.clusters, dim=1).T
        return (cosine / self.temperature).softmax(1).view(batch, height, width, -1).permute(0, 3, 1, 2)


FITTED = {"principal_axes": PrincipalAxes, "whitening": Whitening, "cluster_code": ClusterCode}
