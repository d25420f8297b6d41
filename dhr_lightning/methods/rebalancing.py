"""What tasks share that rebalance masks (DHR)."""

from abc import abstractmethod
from typing import Any

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.refinement import RefiningTask
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.profiles import rebalance_settings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import RebalanceResult, rebalance


class RebalancingTask(RefiningTask):
    """Base of the tasks that make masks by the mask step of DHR, see `ops.rebalancing.rebalance`.

    Args:
        rebalance: `profile` (`default` or `reference`) and what differs from it, see `ops.profiles.RebalanceSettings`.
        crf_seed: dense CRF settings of the seeds.
        crf_final: dense CRF settings of the final masks.
        **options: refinement of seeds and final masks, see `RefiningTask`; those of the next base class.
    """

    def __init__(
        self,
        *,
        rebalance: dict[str, Any] | None = None,
        crf_seed: dict[str, float] | None = None,
        crf_final: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rebalance_settings = rebalance_settings(**(rebalance or {}))
        self.refine_seed = self.build_refiner(CRFSettings(**(crf_seed or {})))
        # With equal kernels, both refinements of an image share a lattice.
        self.refine_final = self.build_refiner(CRFSettings(**(crf_final or {})), cache=self.refine_seed.cache)

    def pseudo_masks(self, batch: Batch) -> RebalanceResult:
        """Rebalance the masks of whole images.

        Args:
            batch: whole images with tags and the inputs of a mask refresh.

        Returns:
            The new masks `(B, H, W)` and all intermediate maps.
        """
        return self.rebalanced(self.mask_inputs(batch))

    def rebalanced(self, inputs: RebalanceInputs) -> RebalanceResult:
        """The mask step of DHR with the settings of this task."""
        return rebalance(
            inputs,
            settings=self.rebalance_settings,
            refine_seed=self.refine_seed,
            refine_final=self.refine_final,
        )

    @abstractmethod
    def mask_inputs(self, batch: Batch) -> RebalanceInputs:
        """Masks, CAMs and features of whole images, as `pseudo_masks` rebalances them."""
