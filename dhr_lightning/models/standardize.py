"""Statistics of stored features as part of a network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.ops._checks import check_finite, check_shape, full_precision


class StandardizedModule(nn.Module):
    """A network whose input is shifted and scaled to mean 0 and deviation 1 for each channel.

    The buffers `mean` and `std`, `(D,)`, are part of the state; until `set_statistics` they change nothing.

    Args:
        channels: D, channels of the features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the statistics of the training features, see `ops.feature_statistics.FeatureStatistics`.

        Args:
            mean: `(D,)`.
            std: `(D,)` >= 0; a channel that never changes, at most 1e-6 of its mean, is only shifted.

        Raises:
            ValueError: if a shape does not fit or a value is not finite or negative.
        """
        for name, values in (("mean", mean), ("std", std)):
            check_shape(name, values, self.mean.shape, "D")
            check_finite(name, values)
        if bool((std < 0).any()):
            raise ValueError(f"Expected `std` >= 0, but got {float(std.min())}.")
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs(), std, 1.0))

    def project(self, features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A 1x1 convolution of the standardised features, which are never made: weight and bias take the scaling over.

        Args:
            features: `(B, D, h, w)` of any floating type; under autocast in the type of that, else in float32.
            weight: `(O, D)`.
            bias: `(O,)`.

        Returns:
            `(B, O, h, w)`, equal to the convolution of `standardize(features)` up to rounding.
        """
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        kernel = (weight / self.std).to(dtype)
        with full_precision(features):  # of the rounded kernel: what rounding changes then acts on centred features
            mean = kernel.to(weight.dtype) @ self.mean
        shift = -mean if bias is None else bias - mean
        kernel = kernel[..., None, None].contiguous(memory_format=torch.channels_last)
        return (F.conv2d(features.to(dtype), kernel) + shift[:, None, None]).to(dtype)

    def standardize(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` of any floating type -> the same shape in the precision of the statistics."""
        return (features.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]
