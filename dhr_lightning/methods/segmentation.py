"""What every segmenter shares: its network, losses, validation, and the weights it starts from."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.methods.base import BaseTask, check_class_names
from dhr_lightning.methods.inference import Inference
from dhr_lightning.methods.scored import ScoredTask
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.checkpoints import read_checkpoint
from dhr_lightning.models.networks import build_segmenter
from dhr_lightning.models.segmenter import SegmenterConfig, SegmenterOutput

LOSS_SIZES = ("decoder", "full")


class SegmentationTask(ScoredTask):
    """Base of the tasks that train a segmenter on masks; subclasses add a `training_step` and a `predict_step`.

    Args:
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path.
        output_stride: 8 or 16.
        decoder: decoder name, see `models.segmenter.SegmenterConfig`.
        decoder_options: further arguments of the decoder; `null` takes back one that an earlier layer of the
            configuration sets.
        loss_size: `decoder` or `full`, see `models.segmenter.Segmenter.loss`.
        ema: decay of the average of the weights that validation and prediction use, see
            `callbacks.average.WeightAverage`; `null` for none. DHR masks come from the weights themselves.
        ema_warmup: let the first steps count more in that average.
        scales: relative image sizes at prediction, each with its mirror.
        test_crf: dense CRF on predicted masks, see `methods.inference.Inference`; `null` for none.
        force_masks: start from the masks named even if their gate calls them harmful.
        **options: classes, optimiser and schedule, see `BaseTask`.
    """

    cam_head: ClassVar[bool] = False  # whether the network also classifies the tags

    def __init__(
        self,
        *,
        backbone: str = SegmenterConfig.backbone,
        pretrained: bool | str = SegmenterConfig.pretrained,
        output_stride: int = SegmenterConfig.output_stride,
        decoder: str = SegmenterConfig.decoder,
        decoder_options: dict[str, Any] | None = SegmenterConfig.decoder_options,
        loss_size: str = "decoder",
        ema: float | None = 0.999,
        ema_warmup: bool = True,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0),
        test_crf: dict[str, Any] | None = None,
        force_masks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if loss_size not in LOSS_SIZES:
            raise ConfigError(
                f"Expected model.init_args.loss_size to be {' or '.join(LOSS_SIZES)}, but got {loss_size!r}."
            )
        self.card = card_of(backbone, pretrained)
        chosen = {name: value for name, value in (decoder_options or {}).items() if value is not None}
        config = SegmenterConfig(backbone, pretrained, output_stride, decoder, chosen)
        tags = self.classes.num_tags if self.cam_head else 0
        self.network = build_segmenter(config, self.classes.num_classes, num_tags=tags)
        self.inference = Inference(scales, test_crf=test_crf, ignore_index=self.classes.ignore_index)

    def take_over_weights(self) -> None:
        """Fill the encoder, and the CAM head if there is one, from the step read as `init`; see `initialise`."""
        initialise(self, keys=("encoder", "classifier") if self.cam_head else ("encoder",))

    def on_fit_start(self) -> None:
        """Start from the weights of an earlier step, unless a run is being resumed."""
        self.take_over_weights()

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised -> logits `(B, C, H, W)`."""
        return self.network(image).logits

    def probability(self, batch: Batch) -> Tensor:
        """Class probabilities `(B, C, H, W)` of whole images in a single pass."""
        return self(batch["image"]).softmax(1)

    def network_loss(self, output: SegmenterOutput, masks: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """Loss of the network on masks `(B, H, W)`, whose pixels may have a weight."""
        size, ignore_index = self.hparams.loss_size, self.classes.ignore_index
        return self.network.loss(output, masks, size=size, ignore_index=ignore_index, weight=weight)


def allowed_classes(tags: Tensor, offset: int) -> Tensor:
    """Tags `(B, T)` plus background, if there is one -> `(B, C)` bool."""
    return F.pad(tags > 0, (offset, 0), value=True)


def initialise(task: BaseTask, *, keys: tuple[str, ...]) -> None:
    """Fill parts of a task's network from the weights of the step it reads as `init`, unless a run is being resumed."""
    path = task.trainer.datamodule.weights("init") if task.trainer.ckpt_path is None else None
    if path is not None:
        checkpoint = load_encoder(task.network, path, task.classes, keys=keys)
        task.take_over_card(checkpoint)  # images are normalised as these weights learnt them


def load_encoder(network: nn.Module, path: Path, classes: ClassSet, *, keys: tuple[str, ...]) -> dict[str, Any]:
    """Copy parts of an earlier step's network, such as encoder and CAM classifier, from its checkpoint.

    Args:
        network: the network to fill.
        path: a Lightning checkpoint.
        classes: today's class list; the checkpoint must have the same.
        keys: names of the parts to copy.

    Returns:
        the checkpoint.

    Raises:
        CheckpointError: if the file is absent, of other classes, or a tensor has another shape.
    """
    if not path.is_file():
        raise CheckpointError(
            f"Checkpoint {path} is missing. Run the step that made it again, or take `init` out of what this step "
            "reads."
        )
    checkpoint: dict[str, Any] = read_checkpoint(path)
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
    return checkpoint
