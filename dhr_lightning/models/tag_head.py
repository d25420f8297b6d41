"""Multi-label classifier on the cells of stored features."""

from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.standardize import StandardizedModule
from dhr_lightning.ops._checks import check_positive

_BIAS = -2.0  # most classes are absent from most images


class TagHead(StandardizedModule):
    """One logit for each cell and class, from standardised features.

    Args:
        channels: D, channels of the features.
        tags: T, foreground classes.
        hidden: width of a hidden layer with GELU; `None` for a linear classifier.

    Raises:
        ValueError: if a size is not positive.

    Source: linear classifier of CAM (arXiv:1512.04150) as a 1x1 convolution.
    Differs: it has a bias, which pooling of the largest logits needs: the largest of many is positive by chance.
    """

    def __init__(self, channels: int, tags: int, hidden: int | None = None) -> None:
        for name, size in (("channels", channels), ("tags", tags), ("hidden", 1 if hidden is None else hidden)):
            check_positive(name, size)
        super().__init__(channels)
        self.hidden = None if hidden is None else nn.Conv2d(channels, hidden, 1)
        self.classifier = nn.Conv2d(channels if hidden is None else hidden, tags, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.constant_(self.classifier.bias, _BIAS)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` -> logits `(B, T, h, w)`."""
        first = self.classifier if self.hidden is None else self.hidden
        maps = self.project(features, first.weight[:, :, 0, 0], first.bias)
        return maps if self.hidden is None else self.classifier(F.gelu(maps))

    def class_maps(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` -> logits without their bias `(B, T, h, w)`, `w_c · f` of CAM; raw, any range."""
        return self(features) - self.classifier.bias[:, None, None]
