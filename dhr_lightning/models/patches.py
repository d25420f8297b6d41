"""Training-free image features: whitened colour patches, k-means, soft assignment."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.ops.kmeans import kmeans


def opponent_image(pixels: Tensor) -> Tensor:
    """Log luminance and two chromaticities: `(B, 3, H, W)` in 0..255 -> float32 of the same shape.

    Dividing the colour differences by luminance makes them insensitive to shading.
    """
    red, green, blue = (pixels.float() / 255 + 0.02).unbind(1)
    luminance = (red + green + blue) / 3
    return torch.stack(
        [luminance.log() * 0.5, (red - green) / luminance, ((red + green) / 2 - blue) / luminance], dim=1
    )


class PatchEncoder(nn.Module):
    """Features of whitened patches: distance to k-means centroids with a triangle activation.

    Args:
        centroids: number of k-means centroids D.
        size: side of a patch in pixels.
        stride: pixels between patches; the output grid has twice this stride.

    Source: Coates, Ng and Lee 2011, "An analysis of single-layer networks in unsupervised feature learning".
    Differs: opponent colours and a Gaussian blur before pooling, so that texture becomes an area property.
    """

    def __init__(self, centroids: int = 128, *, size: int = 6, stride: int = 2) -> None:
        super().__init__()
        self.size, self.stride, self.out_channels = size, stride, centroids
        self.cell = 2 * stride  # pixels per feature cell
        dimension = 3 * size * size
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("whitening", torch.eye(dimension))
        self.register_buffer("centroids", torch.zeros(centroids, dimension))
        self.register_buffer("fitted", torch.tensor(False))

    def sample_patches(self, pixels: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Random patches of each image: `(B, 3, H, W)` uint8 -> `(B * count, 3 * size**2)`."""
        unfolded = F.unfold(opponent_image(pixels), self.size)  # (B, 3 * size**2, positions)
        index = torch.randint(unfolded.shape[-1], (count,), generator=generator).to(pixels.device)
        return unfolded[:, :, index].transpose(1, 2).flatten(0, 1)

    def fit(self, patches: Tensor, *, iterations: int = 15, seed: int = 0) -> None:
        """Whiten and cluster patches `(N, 3 * size**2)`; eigenvalues below 1 % of the largest are floored."""
        self.mean.copy_(patches.mean(0))
        centred = patches - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
        floor = values.clamp(min=float(values.max()) * 0.01)
        self.whitening.copy_(vectors @ torch.diag(floor.rsqrt()) @ vectors.T)
        generator = torch.Generator().manual_seed(seed)
        self.centroids.copy_(
            kmeans(centred @ self.whitening, self.out_channels, iterations=iterations, generator=generator)
        )
        self.fitted.fill_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` in 0..255, sides divisible by `cell` -> `(B, D, H / 4, W / 4)` float32 by default."""
        pad = (self.size - self.stride) // 2
        image = F.pad(opponent_image(pixels), (pad, pad, pad, pad), mode="reflect")
        height, width = (length // self.stride for length in pixels.shape[-2:])
        patches = F.unfold(image, self.size, stride=self.stride).transpose(1, 2).flatten(0, 1)  # (B * h * w, patch)
        whitened = torch.addmm(-(self.mean @ self.whitening), patches, self.whitening)
        distance = torch.cdist(whitened, self.centroids)  # (B * h * w, D)
        activation = (distance.mean(1, keepdim=True) - distance).relu_()
        maps = activation.view(len(pixels), height, width, -1).permute(0, 3, 1, 2)  # channels last in memory
        return _blur(F.avg_pool2d(maps, 2), sigma=0.75)


def _blur(x: Tensor, *, sigma: float) -> Tensor:
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x.dtype)
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), rows, groups=channels)
    return F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), columns, groups=channels)
