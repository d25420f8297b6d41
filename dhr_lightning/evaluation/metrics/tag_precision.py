"""How well a classifier ranks images by each tag."""

import warnings

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAveragePrecision


class TagPrecision(nn.Module):
    """Average precision of the tags, the mean over the classes that some image shows.

    Args:
        num_tags: T, foreground classes; one is enough.
    """

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self._missing = max(0, 2 - num_tags)  # torchmetrics wants two labels: one that no image shows changes nothing
        self.metric = MultilabelAveragePrecision(num_tags + self._missing, average="none")

    def update(self, logits: Tensor, tags: Tensor) -> None:
        """Add images: logits `(B, T)`, multi-hot tags `(B, T)`."""
        # Probabilities: torchmetrics takes logits that happen to lie in [0, 1] for some, batch by batch.
        scores = logits.float().sigmoid()
        self.metric.update(F.pad(scores, (0, self._missing)), F.pad(tags.long(), (0, self._missing)))

    def compute(self) -> Tensor | None:
        """The mean in [0, 1] over the images since the last call; `None` if none of them has a tag."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")  # of a class that no image shows
            found: Tensor = self.metric.compute()  # (T,); such a class has 0, and no other
        self.metric.reset()
        return found[found > 0].mean() if bool((found > 0).any()) else None
