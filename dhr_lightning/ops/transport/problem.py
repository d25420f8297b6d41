"""What every solver of entropic transport is given, when it may leave the log domain and when it looks for the end."""

from typing import NamedTuple

import torch
from torch import Tensor

# With logarithms inside these bounds neither the kernel nor a product of scalings leaves the range of the type.
_LINEAR = {torch.float32: 25.0, torch.float64: 250.0}
# A host read stalls a GPU queue, and frozen problems make further iterations harmless.
_PERIOD_ON_DEVICE = 4


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

    def look(self, number: int) -> bool:
        """Whether to ask after iteration `number`, from 0, if all problems are done."""
        return self.kernel.device.type == "cpu" or number % _PERIOD_ON_DEVICE == _PERIOD_ON_DEVICE - 1


def log_sum(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials; 0 with gradient 0, not NaN, where all of `x` is -inf."""
    top = x.detach().amax(dim, keepdim=True)
    top = top.masked_fill(top.isinf(), 0.0)
    total = (x - top).exp().sum(dim)
    return torch.where(total > 0, total, 1.0).log() + top.squeeze(dim)
