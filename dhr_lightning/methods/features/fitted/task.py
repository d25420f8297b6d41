"""Fit a head to frozen features in one pass, without any label and without a gradient."""

from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.collecting import CollectingTask
from dhr_lightning.methods.features.fitted.spec import SPEC
from dhr_lightning.methods.features.images import equal_sizes
from dhr_lightning.models.fitted import FITTED


class FittedTask(CollectingTask):
    """Features of a frozen backbone through a head that is computed from them, not trained.

    Args:
        head: `principal_axes`, `whitening` or `cluster_code`, see `models.fitted`.
        cells: feature cells drawn for fitting, over the whole training set.
        **options: `backbone`, `pretrained`, `patches`, `dimension`, `scales`, `flip`, classes, see `CollectingTask`.

    Source: ours.
    """

    spec = SPEC
    collects = True

    def __init__(
        self,
        *,
        head: str = "principal_axes",
        cells: int = 60_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if head not in FITTED:
            raise ConfigError(f"Expected model.init_args.head to be one of {', '.join(FITTED)}, but got {head!r}.")
        self.network = self.network_with(head)
        self.augment = False

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def own_step(self, batch: Batch, batch_idx: int) -> None:
        """Draw feature cells."""
        generator = self.draw(batch_idx)
        for _, images in equal_sizes(batch, self.network.source):
            self.collected.append(self._cells(images, generator))

    @torch.no_grad()
    def _cells(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cells `(n, F)` of images without padding."""
        cells = self.network.features(images).flatten(2)  # (B, F, N)
        index = torch.randint(cells.shape[-1], (self.share(self.hparams.cells),), generator=generator).to(cells.device)
        return cells[:, :, index].transpose(1, 2).flatten(0, 1).float()
