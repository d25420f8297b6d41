"""What all tasks have in common: optimiser, schedule, class list, weights of an earlier step."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.crops import FiveCrop
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from dhr_lightning.models.cards import IMAGENET_CARD, WeightsCard
from dhr_lightning.models.checkpoints import check_finite_weights
from dhr_lightning.models.compiled import check_compile, compile_network
from dhr_lightning.models.freezing import frozen_parts
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.progress import track
from dhr_lightning.steps import StepSpec

log = logging.getLogger("dhr_lightning")


class BaseTask(L.LightningModule):
    """Base of every task; subclasses set `spec` and build `self.network`.

    Args:
        class_names: all classes, background first if there is one; taken from the data.
        has_background: whether class value 0 is background; taken from the data.
        optimizer: `sgd` or `adamw`.
        lr: learning rate of the encoder.
        head_lr_factor: the rest of the network learns this many times faster.
        momentum: of SGD, in [0, 1). The published optimiser of PSA, SEAM, IRNet and SFC hands its weight decay on as
            momentum, so that its real momentum is 1e-4; with 0.9 take a tenth of its rates.
        weight_decay: on all weights.
        power: of the polynomial decay, per iteration: `lr * (1 - k / K) ** power`.
        warmup: share of the iterations in which the rate rises linearly, in [0, 1).
        frozen_norm: what of the encoder's batch norms stays as it was loaded. `statistics`: mean and variance, while
            scale and shift learn (IRNet, SFC). `true`: all of it, for small batches, and for weights whose norms are
            fused into the convolutions.
        frozen_stages: the encoder's stem and its first stages, this many, do not learn; 0 for none. No gradient goes
            through them and their norms stay as loaded. ResNets and `small32` have 4 stages.
        frozen_encoder: train the rest of the network only.
        from_scratch: random weights are meant. On photos a step refuses to start from them otherwise, see
            `provenance.start_checks.check_weights`; nothing else reads this.
        compile: compile the network by `torch.compile` during a fit, see `models.compiled`: `true` (Inductor) or the
            name of a backend. Takes a minute or more at the start; changes results by rounding alone, like another
            device, so a finished fit is not repeated for it.

    Source: rates, decay and frozen parts of IRNet (arXiv:1904.05044): `frozen_norm: statistics`, `frozen_stages: 2`.
    """

    spec: ClassVar[StepSpec]
    augment: bool = True  # random crops in training batches; whole images otherwise
    five_crop: FiveCrop | None = None  # these crops instead, each with a crop of one of its nearest neighbours
    reads_truth: bool = False  # whether these crops come with their ground truth
    validates: bool = True  # whether it looks at the validation images during a fit
    collects: bool = False  # whether an epoch collects what no checkpoint holds, so that it cannot be continued
    network: nn.Module
    card: WeightsCard = IMAGENET_CARD  # how images are normalised for the backbone

    def __init__(
        self,
        class_names: list[str],
        has_background: bool = True,
        optimizer: str = "sgd",
        lr: float = 1e-3,
        head_lr_factor: float = 10.0,
        momentum: float = 0.9,
        weight_decay: float = 4e-5,
        power: float = 0.9,
        warmup: float = 0.0,
        frozen_norm: bool | Literal["statistics"] = False,
        frozen_stages: int = 0,
        frozen_encoder: bool = False,
        from_scratch: bool = False,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adamw"):
            raise ConfigError(f"Expected model.init_args.optimizer to be sgd or adamw, but got {optimizer!r}.")
        if not (lr > 0 and 0 <= warmup < 1):
            raise ConfigError(f"Expected lr > 0 and 0 <= warmup < 1, but got lr {lr} and warmup {warmup}.")
        if not 0 <= momentum < 1:
            raise ConfigError(f"Expected model.init_args.momentum in [0, 1), but got {momentum}.")
        if not isinstance(frozen_norm, bool) and frozen_norm != "statistics":
            raise ConfigError(
                f"Expected model.init_args.frozen_norm to be false, statistics or true, but got {frozen_norm!r}."
            )
        check_compile(compile)
        self.save_hyperparameters()  # of subclasses too, and what the caller left at its default
        self.classes = ClassSet(tuple(class_names), has_background)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the encoder, and all others."""
        encoder = {id(p) for p in self.network.encoder.parameters()} if hasattr(self.network, "encoder") else set()
        trained = [p for p in self.network.parameters() if p.requires_grad]
        return [p for p in trained if id(p) in encoder], [p for p in trained if id(p) not in encoder]

    def further_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimiser for what learns outside the network, such as probes."""
        return []

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimiser with two groups and `further_groups`; polynomial decay by iteration after a linear warm-up."""
        h = self.hparams
        encoder, head = self.parameter_groups()
        groups = [{"params": encoder, "lr": h.lr}, {"params": head, "lr": h.lr * h.head_lr_factor}]
        groups = [*(group for group in groups if group["params"]), *self.further_groups()]
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=h.lr, momentum=h.momentum, weight_decay=h.weight_decay)
            if h.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=h.lr, weight_decay=h.weight_decay)
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        rising = int(total * h.warmup)

        def rate(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return max(0.0, 1 - (step - rising) / max(1, total - rising)) ** h.power

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}

    def configure_model(self) -> None:
        """Channels-last weights, because convolutions are faster so; parts frozen or compiled, if asked."""
        if hasattr(self, "network"):
            self.network.to(memory_format=torch.channels_last)
            self._compile()
        without_gradient, in_evaluation = self._frozen()
        for module in without_gradient:
            module.requires_grad_(False)
        for module in in_evaluation:
            module.eval()  # Lightning starts to train without a call of `train`

    def _compile(self) -> None:
        backend = check_compile(self.hparams.compile)
        if backend is not None and self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            compile_network(self.network, backend, self._trainer.strategy.root_device)
            log.info("%s: its network is compiled by %s at the first batches", self.step, backend)

    def train(self, mode: bool = True) -> "BaseTask":
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen()[1]:
            module.eval()
        return self

    def _frozen(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Parts of the encoder without gradient, and parts in evaluation mode; see `frozen_parts`."""
        encoder = getattr(getattr(self, "network", None), "encoder", None)
        if encoder is None:
            return [], []
        h = self.hparams
        return frozen_parts(encoder, norm=h.frozen_norm, stages=h.frozen_stages, whole=h.frozen_encoder)

    def inference_info(self) -> dict[str, Any]:
        """What the manifests of this task's artifacts should know beside the settings."""
        return {}

    @property
    def step(self) -> str:
        """Name of the running step, for messages."""
        return (self._trainer and self._trainer.datamodule.step) or self.spec.name

    def tagged(self, batch: Batch) -> ImageClasses:
        """The tagged classes of a batch, which its CAMs are made of."""
        return ImageClasses.from_tags(
            batch["tags"], offset=self.classes.offset, include_background=False, valid=batch["valid"]
        )

    def image_classes(self, batch: Batch) -> ImageClasses:
        """The tagged classes of a batch, with the background where the class list has one."""
        return ImageClasses.from_tags(
            batch["tags"],
            offset=self.classes.offset,
            include_background=self.classes.has_background,
            valid=batch["valid"],
        )

    def whole_batches(
        self, records: Sequence[Record], what: str, *, when: Literal["predict", "refresh"] = "predict"
    ) -> Iterator[Batch]:
        """Batches of whole training images, with the inputs of prediction or of a mask refresh, on the device.

        Args:
            records: the images.
            what: shown with the progress.
            when: whose inputs they hold.
        """
        yield from self.batches(self.trainer.datamodule.whole_dataloader(records, when=when), what)

    def batches(self, loader: Iterable[Batch], what: str) -> Iterator[Batch]:
        """Batches on the device of this task, normalised; `what` is shown with the progress."""
        datamodule = self.trainer.datamodule
        for batch in track(loader, what):
            moved = datamodule.transfer_batch_to_device(batch, self.device, 0)
            yield datamodule.on_after_batch_transfer(moved, 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on seed, epoch and batch only, so that a resumed run repeats exactly.

        Once for each epoch is not enough: a resumed epoch starts its loaders, which draw a number, in another order.
        """
        torch.manual_seed(hash((self.trainer.datamodule.seed, self.current_epoch, batch_idx)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how images were normalised beside the weights."""
        checkpoint["card"] = asdict(self.card)

    def take_over_card(self, checkpoint: dict[str, Any]) -> None:
        """Normalise images as the weights of a checkpoint learnt them; older checkpoints say nothing."""
        if "card" in checkpoint:
            self.card = WeightsCard(**checkpoint["card"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another class list and those that are not finite; take over how images are normalised.

        Raises:
            CheckpointError: shows both lists, or names a tensor.
        """
        check_finite_weights(checkpoint.get("state_dict", {}), where=f"The checkpoint of {self.spec.name}")
        check_class_names(
            checkpoint.get("hyper_parameters", {}).get("class_names"), self.classes, where="The checkpoint"
        )
        self.take_over_card(checkpoint)

    def check_loss(self, loss: Tensor, batch: Batch, batch_idx: int) -> Tensor:
        """Pass a finite loss through.

        Raises:
            NonFiniteLossError: names epoch, step and the images of the batch.
        """
        if not torch.isfinite(loss.detach()):
            rates = ", ".join(f"{group['lr']:.2g}" for group in self.trainer.optimizers[0].param_groups)
            raise NonFiniteLossError(
                f"The loss is {float(loss.detach())} at epoch {self.current_epoch}, batch {batch_idx} "
                f"(images {', '.join(batch['id'])}; learning rates {rates}). "
                "Lower model.init_args.lr or look at these images; the last checkpoint is intact."
            )
        return loss


def planned_epochs(trainer: L.Trainer) -> int:
    """Epochs that a fit will run: `max_epochs`, or fewer if `max_steps` ends it sooner."""
    epochs = trainer.max_epochs or 0
    if trainer.max_steps < 0 or trainer.num_training_batches == float("inf"):
        return epochs
    by_steps = -(-trainer.max_steps // max(1, int(trainer.num_training_batches)))
    return by_steps if epochs < 0 else min(epochs, by_steps)


def check_class_names(found: list[str] | None, classes: ClassSet, *, where: str) -> None:
    """Compare the class list of a checkpoint with today's.

    Raises:
        CheckpointError: if they differ; shows both.
    """
    if found is not None and tuple(found) != classes.names:
        raise CheckpointError(
            f"{where} was trained on {len(found)} classes ({', '.join(found)}), but the data has {classes.num_classes} "
            f"({', '.join(classes.names)}). Use the data it was trained on, or train again."
        )


def cut_masks(masks: Tensor, batch: Batch) -> list[tuple[Tensor]]:
    """Cut the padding off `(B, H, W)` and give each mask as uint8 on the host."""
    host = masks.to(torch.uint8).cpu()
    return [(mask[: g.size[0], : g.size[1]],) for mask, g in zip(host, batch["geometry"], strict=True)]
