"""Head of STEGO."""

from torch import Tensor, nn


class StegoHead(nn.Module):
    """Linear plus non-linear 1x1 projection to a low-dimensional code.

    Args:
        inputs: channels of the frozen features.
        dimension: channels of the code D.
        dropout: share of whole feature channels dropped in training.

    Source: STEGO (arXiv:2203.08414), segmentation head.
    """

    def __init__(self, inputs: int, dimension: int = 70, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Conv2d(inputs, dimension, 1)
        self.nonlinear = nn.Sequential(nn.Conv2d(inputs, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, dimension, 1))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, F, h, w)` -> code `(B, D, h, w)`, not normalised."""
        return self.linear(self.dropout(features)) + self.nonlinear(self.dropout(features))
