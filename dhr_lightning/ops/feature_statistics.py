"""Mean and deviation of feature channels over many images."""

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_dims, check_finite, check_shape


class FeatureStatistics:
    """Mean and standard deviation of each channel over the valid cells of all images, without keeping any.

    Sums are float64 and each image is added by itself: it does not matter which images share a batch.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", pairwise update.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._square = torch.zeros(0, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def update(self, features: Tensor, valid: Tensor | None = None) -> None:
        """Add images.

        Args:
            features: `(B, D, h, w)`, any floating type, finite where cells are valid.
            valid: `(B, h, w)` bool, cells that count; `None` for all.

        Raises:
            ValueError: if a shape does not fit, D changes, or a valid value is not finite.
        """
        check_dims("features", features, "B D h w")
        if valid is not None:
            check_shape("valid", valid, (len(features), *features.shape[2:]), "B h w")
        if self.count:
            check_shape("features", features, (len(features), len(self._mean), *features.shape[2:]), "B D h w")
        for index, image in enumerate(features):
            cells = image.flatten(1) if valid is None else image[:, valid[index]]  # (D, n)
            if cells.shape[1]:
                self._add(cells)

    def _add(self, cells: Tensor) -> None:
        check_finite("features", cells, seen=cells.sum(dtype=torch.float64))
        cells = cells.double()
        number, mean = cells.shape[1], cells.mean(1)  # (D,)
        square = (cells - mean[:, None]).square().sum(1)
        if not self.count:
            self.count, self._mean, self._square = number, mean, square
            return
        total, step = self.count + number, mean - self._mean
        self._square = self._square + square + step.square() * (self.count * number / total)
        self._mean = self._mean + step * (number / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (divided by the number of cells), each `(D,)` float32.

        Raises:
            ValueError: if no valid cell was added.
        """
        if not self.count:
            raise ValueError("Expected features of a valid cell at least, but got none. Call `update` first.")
        return self._mean.float(), (self._square / self.count).sqrt().float()
