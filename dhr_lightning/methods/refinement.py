"""What tasks share that refine maps along the edges of the image."""

from typing import Any

from dhr_lightning.methods.base import BaseTask
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.crf.lattice import LatticeCache
from dhr_lightning.ops.refine import Refiner


class RefiningTask(BaseTask):
    """Base of the tasks with a refinement; how it works is the same for all maps of a task, the CRF settings are not.

    Args:
        refine: `auto`, `lattice`, `pydensecrf`, `pamr` or `none`, see `ops.refine.Refiner`.
        workers: processes for pydensecrf.
        refine_scale: refine at this fraction of the image size, in (0, 1].
        **options: of the next base class.
    """

    def __init__(self, *, refine: str = "auto", workers: int = 2, refine_scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)

    def build_refiner(self, crf: CRFSettings, *, cache: LatticeCache | None = None) -> Refiner:
        """The refinement of some maps of this task.

        Args:
            crf: settings of the dense CRF.
            cache: that of another refiner, to build the lattice of an image once for both.
        """
        h = self.hparams
        cache = LatticeCache() if cache is None else cache
        return Refiner(h.refine, crf, workers=h.workers, scale=h.refine_scale, cache=cache)
