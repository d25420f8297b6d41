"""What every solver of entropic transport is given, and where it may leave the log domain."""

from typing import NamedTuple

import torch
from torch import Tensor

# With logarithms inside these bounds neither the kernel nor a product of scalings leaves the range of the type.
_LINEAR = {torch.float32: 25.0, torch.float64: 250.0}


class Problem(NamedTuple):
    """A batch of masked transport problems.

    Attributes:
        kernel: `(..., K, N)` log kernel, -inf where a class is absent or a pixel invalid.
        pixels: `(..., N)` bool, pixels that take part.
        classes: `(..., K)` bool, classes that take part.
        shares: `(..., K)` class marginals, > 0 and summing to 1 over the classes that take part.
        largest: largest magnitude in the live log kernel.
    """

    kernel: Tensor
    pixels: Tensor
    classes: Tensor
    shares: Tensor
    largest: float

    @property
    def linear(self) -> bool:
        """Whether the kernel itself can be used, rather than its logarithm."""
        return self.largest <= _LINEAR[self.kernel.dtype]


def log_sum(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials; 0 with gradient 0, not NaN, where all of `x` is -inf."""
    top = x.detach().amax(dim, keepdim=True)
    top = top.masked_fill(top.isinf(), 0.0)
    total = (x - top).exp().sum(dim)
    return torch.where(total > 0, total, 1.0).log() + top.squeeze(dim)
