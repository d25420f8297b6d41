"""Regenerate DHR masks between epochs."""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.kinds import round_address
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.callbacks.overlap import finished_behind
from dhr_lightning.callbacks.writers import enter_together
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.evaluation.compare import compare_masks
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.memory import in_pieces
from dhr_lightning.methods.rebalancing import RebalancingTask
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.progress import duration
from dhr_lightning.ranks import align

log = logging.getLogger("dhr_lightning")


class PseudoMaskRefresh(L.Callback):
    """Writes round k of the DHR masks, seals it and moves the datamodule to it.

    Round 0 is made before the first epoch, round k at the end of epoch `k * every`, before that epoch's checkpoint.
    A round depends on weights, inputs and settings only: a resumed run finds a finished round or continues a partial
    one.

    Args:
        every: epochs between rounds, >= 1.
        parts: a round after the first makes every `parts`-th image again, each time others, and keeps the masks of
            the rest, so that all are new after `parts` rounds; 1 makes all.

    Source: the recursion of DHR (arXiv:2404.00380), Sec. 3.
    Differs: the published code rebuilds the mask of every crop at every step; here whole-image masks stay on disk.
    """

    def __init__(self, every: int = 1, parts: int = 1) -> None:
        for name, value in (("every", every), ("parts", parts)):
            if value < 1:
                raise ConfigError(f"Expected PseudoMaskRefresh.{name} >= 1, but got {value}.")
        self.every, self.parts = every, parts

    def on_fit_start(self, trainer: L.Trainer, pl_module: RebalancingTask) -> None:
        """Make round 0, unless a resumed run already trains on a later one."""
        self._first = trainer.datamodule.mask_round is None

    def on_train_start(self, trainer: L.Trainer, pl_module: RebalancingTask) -> None:
        """Make the first round now that the task has loaded its weights."""
        refiner, device = pl_module.refine_final, trainer.strategy.root_device
        log.info("%s: refinement: %s", pl_module.step, refiner.describe(device))
        if self._first:
            self.refresh(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: RebalancingTask) -> None:
        """Make the next round if one is due and another epoch will use it."""
        finished = trainer.current_epoch + 1
        if finished % self.every == 0 and finished < (trainer.max_epochs or 0):
            self.refresh(trainer, pl_module, finished // self.every)

    def refresh(self, trainer: L.Trainer, task: RebalancingTask, number: int) -> None:
        """Regenerate the masks of all training images with the current weights."""
        datamodule: WSSSDataModule = trainer.datamodule
        records = datamodule.records("train")
        align(task.buffers())  # all ranks make masks with the same network
        address, start = round_address(datamodule.output_address("mask"), number), time.monotonic()
        identity = self._identity(datamodule, address, weights_digest(task), number)
        ids = [record.id for record in records]
        if not datamodule.store.status(address, "train", expected=identity, ids=ids).fresh:
            with enter_together(trainer, datamodule.writer(identity, owner=trainer.is_global_zero)) as writer:
                missing = set(writer.missing())
                trainer.strategy.barrier("listed")  # a rank that writes must not shorten another's list
                if trainer.is_global_zero:
                    missing -= self._keep(datamodule, writer, sorted(missing), number)
                else:
                    missing &= set(self._due(records, number))
                mine = [record for record in records if record.id in missing][trainer.global_rank :: trainer.world_size]
                self._write(trainer, task, writer, mine, f"{datamodule.step}: mask round {number}")
                trainer.strategy.barrier("refreshed")
                if trainer.is_global_zero:
                    device = trainer.strategy.root_device
                    writer.seal(seconds=time.monotonic() - start, refine=task.refine_final.resolve(device))
        datamodule.set_mask_round(number)
        self._report(trainer, datamodule, number, time.monotonic() - start)

    def _due(self, records: list[Record], number: int) -> list[str]:
        """Ids of the images that a round makes again."""
        own = records if number == 0 else records[number % self.parts :: self.parts]
        return [record.id for record in own]

    def _keep(self, datamodule: WSSSDataModule, writer: ArtifactWriter, missing: list[str], number: int) -> set[str]:
        """Take over the masks of the round before for all images that are not due; returns their ids."""
        due = set(self._due(datamodule.records("train"), number))
        kept = {image_id for image_id in missing if image_id not in due}
        before = round_address(datamodule.output_address("mask"), number - 1) if number else ""
        for image_id in sorted(kept):
            writer.write(image_id, read_mask(datamodule.store.path(before, "train", image_id)))
        return kept

    def _identity(self, datamodule: WSSSDataModule, address: str, weights: str, number: int) -> Manifest:
        identity = datamodule.run.describe(address, "train")
        checkpoint = {"path": f"weights before round {number}", "sha256": weights}
        return replace(identity, checkpoint=checkpoint)

    def _write(
        self, trainer: L.Trainer, task: RebalancingTask, writer: ArtifactWriter, records: list[Record], what: str
    ) -> None:
        """Write the masks of some images: the network makes the maps of a batch while those before are rebalanced."""
        if not records:
            return
        training, mode = task.training, trainer.precision_plugin.forward_context
        task.eval()

        def maps(batch: Batch) -> RebalanceInputs:
            with torch.no_grad(), mode():
                return task.mask_inputs(batch)

        def begun() -> Iterator[tuple[Batch, RebalanceInputs]]:
            for batch in task.whole_batches(records, what, when="refresh"):
                yield from in_pieces(maps, batch)

        def finish(one: tuple[Batch, RebalanceInputs]) -> list[tuple[str, NDArray[np.uint8]]]:
            def masks(batch: Batch) -> list[tuple[Tensor]]:  # an image of those that do not fit is begun again
                result = task.rebalanced(one[1]) if batch is one[0] else task.pseudo_masks(batch)
                return cut_masks(result.mask, batch)

            found: list[tuple[str, NDArray[np.uint8]]] = []
            with torch.no_grad(), mode():
                for images, cut in in_pieces(masks, one[0]):
                    found += [(name, mask.numpy()) for name, (mask,) in zip(images["id"], cut, strict=True)]
            return found

        for masks in finished_behind(begun(), finish):
            for image_id, mask in masks:
                writer.write(image_id, np.ascontiguousarray(mask))
        task.train(training)

    def _report(self, trainer: L.Trainer, datamodule: WSSSDataModule, number: int, seconds: float) -> None:
        """Log how the masks changed; mIoU on the training split only where ground truth exists, for evaluation."""
        if not trainer.is_global_zero:
            return
        rounds = datamodule.output_address("mask")
        previous = round_address(rounds, number - 1) if number else str(datamodule.input_address("masks"))
        figures = compare_masks(
            datamodule.store, round_address(rounds, number), previous, datamodule.records("train"), datamodule.classes
        )
        for logger in trainer.loggers:
            logger.log_metrics({f"refresh/{name}": value for name, value in figures.items()}, step=trainer.global_step)
        text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        log.info("%s: mask round %d: %s (%s)", datamodule.step, number, text, duration(seconds))


def weights_digest(task: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(task.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
