"""What every segmenter shares: losses, validation, and the weights it starts from."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.evaluation.metrics import ConfusionMatrix, scores
from dhr_lightning.methods.base import BaseTask, check_class_names
from dhr_lightning.models.segmenter import SegmenterOutput

LOSS_SIZES = ("decoder", "full")


class SegmentationMixin:
    """Validation of a segmenter against ground truth: mIoU over the split."""

    def setup_metric(self) -> None:
        """Make the confusion matrix; call from the constructor."""
        self.confusion = ConfusionMatrix(self.classes.num_classes, ignore_index=self.classes.ignore_index)

    def update_metric(self, logits: Tensor, batch: Batch) -> None:
        """Count one batch, if it has ground truth."""
        if "gt_mask" in batch:
            self.confusion.update(logits.argmax(1), batch["gt_mask"])

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou` and one `val/iou/<class>` for each class that occurs."""
        if not int(self.confusion.compute().sum()):
            return
        result = scores(self.confusion.compute())
        self.log("val/miou", result.miou, prog_bar=True, sync_dist=True)
        for name, value in zip(self.classes.names, result.iou.tolist(), strict=True):
            if value == value:
                self.log(f"val/iou/{name}", value, sync_dist=True)
        self.confusion.reset()

    on_test_epoch_end = on_validation_epoch_end


def allowed_classes(tags: Tensor, offset: int) -> Tensor:
    """Tags `(B, T)` plus background, if there is one -> `(B, C)` bool."""
    return F.pad(tags > 0, (offset, 0), value=True)


def check_loss_size(size: str) -> None:
    """Refuse a size that `pixel_loss` does not know.

    Raises:
        ConfigError: names it.
    """
    if size not in LOSS_SIZES:
        raise ConfigError(f"Expected model.init_args.loss_size to be {' or '.join(LOSS_SIZES)}, but got {size!r}.")


def pixel_loss(output: SegmenterOutput, mask: Tensor, *, size: str, ignore_index: int) -> Tensor:
    """Cross entropy of a segmenter on masks of the image, see `segmentation_loss`.

    Args:
        output: of the network.
        mask: `(B, H, W)` int64 class values.
        size: `decoder` compares the logits where the decoder ends, stride 4 for DeepLabv3+, with the pixel in the
            middle of each of their cells; `full` interpolates the logits to every pixel.
        ignore_index: pixels without a label.

    Source: loss at the size of the decoder as in the published code of DHR (arXiv:2404.00380).
    Differs: there the top left pixel counts, which belongs to logits that are stretched with aligned corners. Ours are
        stretched cell by cell, so that it would move every prediction by 1.5 pixels to the right and down.
    """
    if size == "full":
        return segmentation_loss(output.logits, mask, ignore_index=ignore_index)
    height, width = mask.shape[-2:]
    rows, columns = (torch.arange(cells, device=mask.device) for cells in output.decoder_logits.shape[-2:])
    rows, columns = (cells * output.stride + output.stride // 2 for cells in (rows, columns))
    middle = mask[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)]  # (B, h, w)
    return segmentation_loss(output.decoder_logits, middle, ignore_index=ignore_index)


def segmentation_loss(logits: Tensor, mask: Tensor, *, ignore_index: int) -> Tensor:
    """Mean cross entropy over labelled pixels; zero, with a gradient of zero, when no pixel is labelled.

    Args:
        logits: `(B, C, H, W)`.
        mask: `(B, H, W)` int64 class values.
        ignore_index: pixels without a label.
    """
    total = F.cross_entropy(logits.float(), mask, ignore_index=ignore_index, reduction="sum")
    return total / (mask != ignore_index).sum().clamp(min=1)


def initialise(task: BaseTask, *, keys: tuple[str, ...]) -> None:
    """Fill parts of a task's network from the weights of the step it reads as `init`, unless a run is being resumed."""
    path = task.trainer.datamodule.weights("init") if task.trainer.ckpt_path is None else None
    if path is not None:
        load_encoder(task.network, path, task.classes, keys=keys)


def load_encoder(network: nn.Module, path: Path, classes: ClassSet, *, keys: tuple[str, ...]) -> None:
    """Copy parts of an earlier step's network, such as encoder and CAM classifier, from its checkpoint.

    Args:
        network: the network to fill.
        path: a Lightning checkpoint.
        classes: today's class list; the checkpoint must have the same.
        keys: names of the parts to copy.

    Raises:
        CheckpointError: if the file is absent, of other classes, or a tensor has another shape.
    """
    if not path.is_file():
        raise CheckpointError(
            f"Checkpoint {path} is missing. Run the step that made it again, or take `init` out of what this step "
            "reads."
        )
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    check_class_names(checkpoint.get("hyper_parameters", {}).get("class_names"), classes, where=f"Checkpoint {path}")
    prefix = "network."
    state = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    state = {k: v for k, v in state.items() if k.split(".")[0] in keys}
    own = network.state_dict()
    wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
    if wrong or not state:
        raise CheckpointError(
            f"{path} does not fit this network: {len(wrong)} of {len(state)} tensors differ, first {wrong[:1]}. "
            "Use the same backbone in both steps, or take `init` out of what this step reads."
        )
    network.load_state_dict({**own, **state})
