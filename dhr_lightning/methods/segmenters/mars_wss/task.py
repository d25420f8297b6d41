"""A segmenter on masks whose rejected pixels are labelled by the average of its own weights."""

import copy
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.segmenters.mars_wss.spec import SPEC
from dhr_lightning.methods.segmenters.wss.task import WSSTask
from dhr_lightning.models.mask2former import Mask2Former
from dhr_lightning.ops.cam import labels_from_scores
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.refine import Refiner


class MARSSegmenterTask(WSSTask):
    """Train a segmenter on masks and what MARS left of them.

    A pixel of `masks` is rejected where it is foreground and `debiased` says otherwise. There the teacher, an average
    of the weights, gives label and certainty; all other pixels keep their label of `masks`.

    Args:
        teacher_decay: of the teacher, in [0, 1).
        refine: refinement of the teacher's probabilities, see `ops.refine.Refiner`: `pamr`, `none`, or a dense CRF.
        crf: settings of that CRF.
        workers: processes for pydensecrf.
        **options: see `SegmentationTask`.

    Source: MARS (arXiv:2304.09913), Eq. 5-7.
    Differs: the paper does not give the decay of the teacher (here 0.999 as in DHR), its refinement in training (PAMR
        in place of a CRF for every crop) and the reduction of the loss (the mean over labelled pixels, so that
        uncertain ones lower it). The teacher votes for background and tags only.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        teacher_decay: float = 0.999,
        refine: str = "pamr",
        crf: dict[str, float] | None = None,
        workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not self.classes.has_background:
            raise ConfigError("The segmenter of MARS needs a background class, which this dataset lacks. Use wss.")
        if isinstance(self.network, Mask2Former):
            raise ConfigError(
                "The segmenter of MARS weights pixels, which Mask2Former's losses cannot. Train it afterwards, as a "
                "step that reads this one's masks."
            )
        if not 0 <= teacher_decay < 1:
            raise ConfigError(f"Expected model.init_args.teacher_decay in [0, 1), but got {teacher_decay}.")
        self.refiner = Refiner(refine, CRFSettings(**(crf or {})), workers=workers)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "MARSSegmenterTask":
        """Set the mode of all but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def on_fit_start(self) -> None:
        """Start from the weights of an earlier step, the teacher too, unless a run is being resumed."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None:
            self.teacher.load_state_dict(self.network.state_dict())

    def optimizer_step(self, *given: Any, **options: Any) -> None:
        """Move the teacher after each step of the optimiser, before anything is saved."""
        super().optimizer_step(*given, **options)
        self.update_teacher()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """`teacher <- d teacher + (1 - d) weights`; statistics of norms likewise, counters as they are."""
        own = self.network.state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(own[name].to(value.dtype), 1 - self.hparams.teacher_decay)
            else:
                value.copy_(own[name])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted pixel cross entropy on the completed masks."""
        labels, certainty = self.completed(batch)
        loss = self.network_loss(self.network(batch["image"]), labels, weight=certainty)
        self.log("train/loss_seg", loss, prog_bar=True, batch_size=len(labels))
        return self.check_loss(loss, batch, batch_idx)

    @torch.no_grad()
    def completed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labels `(B, H, W)` of a batch and how certain they are, in [0, 1]; 1 but for rejected pixels."""
        masks, classes = batch["inputs"]["masks"], self.image_classes(batch)
        rejected = rejected_pixels(masks, batch["inputs"]["debiased"], ignore_index=self.classes.ignore_index)
        probability = self.teacher(batch["image"]).logits.float().softmax(1)
        votes = probability.gather(1, _channels(classes, probability))  # (B, K, H, W)
        votes = votes * classes.present[..., None, None]
        refined = self.refiner(batch["pixels"], votes, classes.present, valid=batch["valid"])
        guesses = labels_from_scores(refined, classes.keys, present=classes.present)
        certainty = votes[:, 1:].amax(1) if votes.shape[1] > 1 else torch.zeros_like(votes[:, 0])
        return torch.where(rejected, guesses, masks), torch.where(rejected, certainty, 1.0)


def rejected_pixels(masks: Tensor, debiased: Tensor, *, ignore_index: int) -> Tensor:
    """Pixels of masks `(B, H, W)` whose foreground label is not that of the debiased masks."""
    return (masks > 0) & (masks != ignore_index) & (debiased != masks)


def _channels(classes: ImageClasses, probability: Tensor) -> Tensor:
    return classes.keys.clamp_min(0)[..., None, None].expand(-1, -1, *probability.shape[-2:])
