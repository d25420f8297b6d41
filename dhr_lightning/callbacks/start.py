"""What is said, and refused, when a step begins."""

import logging
from pathlib import Path

import lightning as L

from dhr_lightning.artifacts.manifest import digest_ids
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ArtifactError
from dhr_lightning.methods.base import BaseTask, planned_epochs
from dhr_lightning.models.cards import IMAGENET_CARD
from dhr_lightning.provenance.identity import StepIdentity

log = logging.getLogger("dhr_lightning")


class StepStart(L.Callback):
    """Says what begins, since the first lines of progress come late where images are large; must come first.

    Args:
        identity: of the step, if it has all its inputs.
        checkpoint: the weights that will predict.
        in_recipe: whether a recipe runs it, whose artifacts it may replace.
    """

    def __init__(self, identity: StepIdentity | None, checkpoint: Path | None, *, in_recipe: bool) -> None:
        self.identity, self.checkpoint, self.in_recipe = identity, checkpoint, in_recipe

    def setup(self, trainer: L.Trainer, pl_module: BaseTask, stage: str) -> None:
        """Say images, epochs, backbone, where its weights come from, and the device.

        Raises:
            ArtifactError: if the predictions of a recipe for other images would be replaced.
        """
        data: WSSSDataModule = trainer.datamodule
        if stage == "fit":
            what = f"fits {len(data.records('train'))} images, {planned_epochs(trainer)} epochs"
        elif stage == "predict":
            if self.identity is not None and not self.in_recipe:
                refuse_replacing(self.identity, data)
            images = sum(len(data.own_share(data.records(split))) for split in data.predict_splits)
            what = f"predicts {images} images of {', '.join(data.predict_splits)}"
        else:
            return
        if trainer.is_global_zero:
            network = describe_network(pl_module, data, fitted=self.checkpoint is not None)
            log.info("%s: %s%s on %s", data.step, what, network, trainer.strategy.root_device)


def describe_network(task: BaseTask, data: WSSSDataModule, *, fitted: bool) -> str:
    """Backbone of a task and where its weights come from, as `, backbone NAME with WEIGHTS`; empty without a backbone.

    Args:
        task: with its arguments in `hparams`.
        data: knows the runs whose weights a task starts from.
        fitted: whether a checkpoint of its own is used.
    """
    name, given = task.hparams.get("backbone"), task.hparams.get("pretrained")
    if not name:
        return ""
    if fitted:
        return f", backbone {name}, as fitted"
    runs = [str(data.inputs[port]) for port, read in data.spec.reads.items() if read.weights and port in data.inputs]
    if runs:
        weights = f"the weights of {runs[0]}"
    elif isinstance(given, str):
        weights = f"weights of {given}"
    else:
        weights = "pretrained weights" if given else "random weights"
    card = getattr(task, "card", None)
    supervised = f" ({card.words})" if card not in (None, IMAGENET_CARD) and given and not runs else ""
    return f", backbone {name} with {weights}{supervised}"


def refuse_replacing(identity: StepIdentity, data: WSSSDataModule) -> None:
    """Keep what a recipe predicted for its own images when somebody predicts others.

    Args:
        identity: of the step.
        data: the images now.

    Raises:
        ArtifactError: names the folder and what to do.
    """
    for address, split in identity.outputs_of_prediction():
        kept = identity.store.manifest(address, split)
        if kept is not None and kept.ids != digest_ids([record.id for record in data.records(split)]):
            raise ArtifactError(
                f"{identity.store.folder(address, split)} holds predictions of {kept.count} other images, which would "
                "be lost. Give another --data.workspace for these images, or delete that folder first."
            )
