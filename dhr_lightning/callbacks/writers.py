"""Write what a task predicts as artifacts, and seal them when complete."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.gate import Gate
from dhr_lightning.data.preparation.check import photos_digest
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ArtifactError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ranks import gathered

log = logging.getLogger("dhr_lightning")


def to_arrays(address: str, tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Tensors of one image in the types that its artifact kind stores."""
    plain = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
    return kind_of(address).codec.convert([tensor.numpy() for tensor in plain])


class ArtifactWriters(L.Callback):
    """Opens a writer for every artifact of the task, skips images that are done, seals at the end.

    With several ranks all write, then rank 0 seals.

    Args:
        checkpoint: the weights that will predict (Lightning tells callbacks only after their set-up).
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self._writers: dict[tuple[str, str], ArtifactWriter] = {}
        self._open = ExitStack()
        self._start = 0.0

    def setup(self, trainer: L.Trainer, pl_module: BaseTask, stage: str) -> None:
        """Lock the folders before any work and tell the datamodule which images are done."""
        if stage == "fit":
            _tell_replaced(trainer.datamodule)
        if stage != "predict":
            return
        datamodule: WSSSDataModule = trainer.datamodule
        if self.checkpoint is None and datamodule.spec.fits:
            raise ArtifactError("predict writes artifacts, so it must know the weights. Add --ckpt_path PATH.")
        self._start = time.monotonic()
        writes, demanded = datamodule.spec.writes, datamodule.splits
        kinds = {
            split: [kind for kind, write in writes.items() if split in write.covered(demanded) and not write.rounds]
            for split in datamodule.predict_splits
        }
        for split, names in kinds.items():
            for kind in names:
                identity = datamodule.run.describe(datamodule.output_address(kind), split, checkpoint=self.checkpoint)
                writer = datamodule.writer(identity, owner=trainer.is_global_zero)
                self._writers[kind, split] = self._open.enter_context(enter_together(trainer, writer))
        datamodule.written = frozenset(
            (split, record.id)
            for split, names in kinds.items()
            for record in datamodule.records(split)
            if all(self._writers[kind, split].done(record.id) for kind in names)
        )
        trainer.strategy.barrier("listed")  # before any rank writes: all share out the same list
        if datamodule.written:
            log.info("%s: continuing, %d images are already written", pl_module.step, len(datamodule.written))

    def on_predict_start(self, trainer: L.Trainer, pl_module: BaseTask) -> None:
        """Say which refinement runs, if any."""
        refiner = prediction_refiner(pl_module)
        if refiner is not None:
            log.info("%s: refinement: %s", pl_module.step, refiner.describe(trainer.strategy.root_device))

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: BaseTask,
        outputs: dict[str, list[Sequence[Tensor]]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the files of one batch."""
        split = trainer.datamodule.predict_splits[dataloader_idx]
        for kind, payloads in outputs.items():
            for image_id, tensors in zip(batch["id"], payloads, strict=True):
                self._writers[kind, split].write(image_id, *to_arrays(kind, tensors))

    def on_predict_end(self, trainer: L.Trainer, pl_module: BaseTask) -> None:
        """Seal every artifact once all ranks have written; a job that has a share of the images leaves it unsealed."""
        trainer.strategy.barrier("written")
        if hasattr(pl_module, "inference"):
            pl_module.inference.tiled = [name for names in gathered(pl_module.inference.tiled) for name in names]
        self._seal(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: BaseTask, stage: str) -> None:
        """Release the folders; seal here if every file was there already, for then nothing has been predicted."""
        if self._writers:
            self._seal(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: BaseTask, exception: BaseException) -> None:
        """Release the folders, so that the same process may try again."""
        self._close()

    def _seal(self, trainer: L.Trainer, task: BaseTask) -> None:
        seconds = time.monotonic() - self._start
        if trainer.is_global_zero and trainer.datamodule.shard is None:
            for (_, split), writer in self._writers.items():
                # not the device of the task, which has left it when nothing was left to predict
                info = inference_info(task, split, ids=writer.ids, device=trainer.strategy.root_device)
                store = trainer.datamodule.store
                photos = photos_digest(store.root / store.dataset, split, writer.ids)
                info |= {"photos": photos} if photos else {}
                _tell_gate(writer.seal(seconds=seconds, **info), writer.folder)
        self._close()

    def _close(self) -> None:
        self._open.close()
        self._writers = {}


@contextmanager
def enter_together(trainer: L.Trainer, writer: ArtifactWriter) -> Iterator[ArtifactWriter]:
    """Open a writer on every rank: rank 0 takes the lock and declares the artifact before the others look."""
    if not trainer.is_global_zero:
        trainer.strategy.barrier("declared")
    with writer:
        if trainer.is_global_zero:
            trainer.strategy.barrier("declared")
        yield writer


def _tell_replaced(datamodule: WSSSDataModule) -> None:
    """Warn if masks that the step names are harmful, so that it starts from others."""
    for port, address in datamodule.inputs.items():
        used = datamodule.input_address(port)
        gate = Gate.read(datamodule.store.manifest(address, "train")) if used != address else None
        if gate is not None:
            log.warning("%s: starts from %s, not from %s: %s", datamodule.step, used, address, gate.verdict())


def _tell_gate(manifest: Manifest, folder: Path) -> None:
    """Log what a step with a gate removed; a warning if that is harmful."""
    gate, name = Gate.read(manifest), f"{manifest.address}/{manifest.split}"
    if gate is not None and gate.harmful:
        log.warning("%s: %s. They stay in %s to look at", name, gate.verdict(), folder)
    elif gate is not None:
        log.info("%s: %s", name, gate.verdict())


def inference_info(task: BaseTask, split: str, *, ids: Sequence[str], device: torch.device) -> dict[str, Any]:
    """How an artifact was made, for its manifest: `refine`, and the test-time `protocol` of a segmenter's masks.

    Args:
        task: that has predicted.
        split: of the artifact.
        ids: of its images.
        device: that the task predicted on.
    """
    inference = getattr(task, "inference", None)
    if inference is None:
        refiner = prediction_refiner(task)
        return {"refine": refiner.resolve(device) if refiner else "none", **task.inference_info()}
    protocol = inference.protocol(split, device)
    tiled = sorted(set(ids).intersection(inference.tiled))
    more = {"tiled_out_of_memory": tiled} if tiled else {}
    return {"refine": protocol.backend or "none", "protocol": protocol.record(), **more}


def prediction_refiner(task: BaseTask) -> Refiner | None:
    """The refinement of what a task predicts, or None."""
    refiner: Refiner | None = getattr(getattr(task, "inference", task), "refiner", None)
    return refiner
