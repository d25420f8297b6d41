"""From pixels to class probabilities: one engine for each kind of model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dhr_lightning.data.canvas import CANVAS_DIVISOR
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.frozen_features import FeatureReader
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.run_inputs import chosen_taps
from dhr_lightning.data.sample import Batch, Geometry, GridMaps, Sample, collate
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.methods.features.frozen.task import frozen_settings
from dhr_lightning.methods.inference import Inference
from dhr_lightning.methods.segmentation import SegmentationTask
from dhr_lightning.methods.segmenters.light.gate import TagGate
from dhr_lightning.methods.segmenters.light.task import LightTask
from dhr_lightning.models.cards import WeightsCard
from dhr_lightning.models.light import LightSegmenter
from dhr_lightning.models.segmenter import multi_scale_probability

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Engine(Protocol):
    """A model that knows its classes and its way to predict.

    `divisor` is what sides of a canvas are padded to, `about` names the supervision and licence of its weights.
    """

    classes: ClassSet
    inference: Inference
    divisor: int
    about: dict[str, str]

    def probability(self, batch: Batch) -> Tensor:
        """Class probabilities `(B, C, H, W)` of whole images on their canvas."""
        ...

    def sample(self, pixels: Pixels, name: str) -> Sample:
        """One image `(H, W, 3)` uint8 RGB as the engine takes it."""
        ...


def about(card: WeightsCard) -> dict[str, str]:
    """Supervision and licence of weights in words."""
    return {"supervision": card.words, "licence": card.licence or "not stated"}


def whole_sample(pixels: Pixels, name: str, classes: ClassSet) -> Sample:
    """A whole image without tags."""
    height, width = pixels.shape[:2]
    box = (0.0, 0.0, float(width), float(height))
    return Sample(
        id=name,
        pixels=torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        valid=torch.ones(height, width, dtype=torch.bool),
        tags=torch.zeros(classes.num_tags),
        geometry=Geometry(box, (0, 0, width, height), (1.0, 1.0), False, (height, width)),
    )


class NetworkEngine:
    """A segmenter whose network sees the photo.

    Args:
        task: with its weights.
        device: where it runs.
    """

    divisor = CANVAS_DIVISOR

    def __init__(self, task: SegmentationTask, device: torch.device) -> None:
        self.task, self.device = task.eval().to(device), device
        self.classes, self.inference, self.about = task.classes, task.inference, about(task.card)

    def sample(self, pixels: Pixels, name: str) -> Sample:
        """See `Engine`."""
        return whole_sample(pixels, name, self.classes)

    @torch.no_grad()
    def probability(self, batch: Batch) -> Tensor:
        """See `Engine`."""
        image = normalize(batch["pixels"], batch["valid"], self.task.card)
        settings = self.inference.settings
        return multi_scale_probability(self.task.network, image, scales=settings.scales, flip=settings.flip)


class LightEngine:
    """A light segmenter on features of a frozen backbone, which are computed here.

    Args:
        task: with its arguments; its network is built here.
        checkpoint: its weights as `state_dict`; with `gate` (see `TagGate.record`) they hold the gate's, too.
        reader: computes the features.
        tagger: checkpoint of the tag head that gates predictions, if the task does so and they do not.
        device: where it runs.
    """

    divisor = LightTask.canvas_divisor

    def __init__(
        self,
        task: LightTask,
        checkpoint: Mapping[str, Any],
        reader: FeatureReader,
        tagger: Path | None,
        device: torch.device,
    ) -> None:
        stored = dict(reader.network.channels)
        channels = chosen_taps(stored, task.taps, step="segmenter")
        starts = dict(zip(stored, np.cumsum([0, *stored.values()]).tolist(), strict=False))
        self.chosen = torch.cat([torch.arange(starts[tap], starts[tap] + size) for tap, size in channels.items()])
        task.network = LightSegmenter(channels, task.classes.num_classes, **task.head_settings)
        if checkpoint.get("gate"):
            task.set_gate(TagGate.restore(checkpoint["gate"], task.classes))
        task.load_state_dict(dict(checkpoint["state_dict"]))
        if task.inference.settings.gate and tagger is not None:
            task.set_gate(TagGate.load(tagger, channels, task.classes))
        self.task, self.reader, self.device = task.eval().to(device), reader, device
        reader.network.to(device).eval()
        self.classes, self.about = task.classes, about(reader.network.card)

    @property
    def inference(self) -> Inference:
        """The test-time protocol, which the task itself reads for flip and gate."""
        return self.task.inference

    @inference.setter
    def inference(self, chosen: Inference) -> None:
        if chosen.settings.scales != (1.0,):
            raise ConfigError("This segmenter reads features at one size of the photo. Leave --scales out.")
        self.task.inference = chosen

    def sample(self, pixels: Pixels, name: str) -> Sample:
        """See `Engine`."""
        images = self.reader.images_of(Image.fromarray(pixels), Path(name))
        features = self.reader.features([image.to(self.device) for image in images], name)
        maps = features.float().cpu()[self.chosen]
        return Sample(**whole_sample(pixels, name, self.classes), inputs={"features": GridMaps(maps, "sampled")})

    @torch.no_grad()
    def probability(self, batch: Batch) -> Tensor:
        """See `Engine`."""
        return self.task.probability(batch)


def to_batch(sample: Sample, *, divisor: int, device: torch.device) -> Batch:
    """A batch of one image on a device."""
    batch = collate([sample], divisor=divisor)
    for key in ("pixels", "valid", "tags"):
        batch[key] = batch[key].to(device)
    if "inputs" in batch:
        batch["inputs"] = {port: value.to(device) for port, value in batch["inputs"].items()}
    return batch


def feature_reader(arguments: Mapping[str, Any]) -> FeatureReader:
    """The reader of frozen features, from the arguments of a `FrozenTask`.

    Raises:
        CheckpointError: if the backbone had random weights.
    """
    if not arguments.get("pretrained"):
        raise CheckpointError(
            "The segmenter reads features of a backbone with random weights, which nobody kept, so they cannot be "
            "computed for new photos. Run the recipe with pretrained weights (--weights)."
        )
    settings = frozen_settings(**arguments)
    return FeatureReader(settings.encoder(), settings)
