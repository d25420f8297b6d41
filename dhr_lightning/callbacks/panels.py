"""TensorBoard pictures: photo, CAM, masks of every step, prediction and truth, for the same few images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.artifacts.kinds import ArtifactKind, find_kind, round_address
from dhr_lightning.callbacks.average import averaged_weights
from dhr_lightning.callbacks.progress import planned_epochs
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.drawing import Pixels, heat, overlay, panel
from dhr_lightning.data.files import read_gt_mask, read_image
from dhr_lightning.methods.base import BaseTask


class Panels(L.Callback):
    """Log one panel of training images after some epochs, and keep the last one as `panel.png` of the run.

    Args:
        images: number of images; those with most tags come first.
        every: epochs between panels; the last epoch always has one.
    """

    def __init__(self, images: int = 6, every: int = 5) -> None:
        self.images, self.every = images, every

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: BaseTask) -> None:
        """Draw and log."""
        epoch = trainer.current_epoch + 1
        last = epoch == planned_epochs(trainer)
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero or not (last or epoch % self.every == 0):
            return
        with averaged_weights(trainer):
            picture = draw_panel(pl_module, trainer.datamodule, self.images)
        for board in boards:
            board.experiment.add_image("panel/train", picture, trainer.global_step, dataformats="HWC")
            if last:  # not `trainer.log_dir`: that is a collective call, and only rank 0 is here
                Image.fromarray(picture).save(Path(board.log_dir) / "panel.png")


def draw_panel(task: BaseTask, datamodule: WSSSDataModule, count: int) -> Pixels:
    """Panel of the `count` training images with most tags (ground truth is shown, never used)."""
    records = sorted(datamodule.records("train"), key=lambda record: (-len(record.tags), record.id))[:count]
    rows: list[dict[str, Pixels]] = []
    found: set[int] = set()
    for record in records:
        image = np.array(read_image(record.image))
        found |= set(record.tags)
        row = {"image": image, **_pictures(datamodule, record, image)}
        masks = _predicted(task, datamodule, record)
        row |= {title: overlay(image, mask, datamodule.classes) for title, mask in masks.items()}
        if (truth := read_gt_mask(record)) is not None:
            row["truth"] = overlay(image, truth, datamodule.classes)
        rows.append(row)
    titles = [title for title in rows[0] if all(title in row for row in rows)]
    names = [datamodule.classes.names[value] for value in sorted(found)]
    return panel([[row[title] for title in titles] for row in rows], titles, names, datamodule.classes)


def _inputs(datamodule: WSSSDataModule, image_id: str) -> Iterator[tuple[str, ArtifactKind, Path]]:
    """`(title, kind, file)` of everything that the running step reads of an image, and of its own current masks."""
    addresses = {port: datamodule.input_address(port) for port in datamodule.inputs}
    if datamodule.mask_round is not None:
        addresses["current masks"] = round_address(datamodule.output_address("mask"), datamodule.mask_round)
    for title, address in addresses.items():
        kind = find_kind(address) if address else None
        if kind is not None and address is not None:
            path = datamodule.store.path(address, "train", image_id)
            if path.is_file():
                yield title, kind, path


def _cam(path: Path, image: Pixels) -> Pixels:
    _, maps = read_cam(path)
    if not len(maps):
        return image
    score = torch.from_numpy(maps.astype(np.float32)).amax(0)[None, None]
    size = torch.nn.functional.interpolate(score, image.shape[:2], mode="bilinear", align_corners=False)
    return heat(image, size[0, 0].numpy())


def _pictures(datamodule: WSSSDataModule, record: Record, image: Pixels) -> dict[str, Pixels]:
    """What the running step reads, drawn on the photo."""
    pictures = {}
    for title, kind, path in _inputs(datamodule, record.id):
        if kind.role == "cam":
            pictures[title] = _cam(path, image)
        elif kind.is_mask:
            pictures[title] = overlay(image, read_mask(path), datamodule.classes)
    return pictures


@torch.no_grad()
def _predicted(task: BaseTask, datamodule: WSSSDataModule, record: Record) -> dict[str, Any]:
    """What the network says now, if it is one that segments."""
    if not hasattr(task, "probability"):
        return {}
    batch = datamodule.transfer_batch_to_device(datamodule.whole_batch([record]), task.device, 0)
    batch = datamodule.on_after_batch_transfer(batch, 0)
    training = task.training
    task.eval()
    probability: Tensor = task.probability(batch)
    task.train(training)
    height, width = batch["geometry"][0].size
    return {"prediction": probability.argmax(1)[0, :height, :width].to(torch.uint8).cpu().numpy()}
