"""A model that predicts any image: `load` makes one, `Model.predict` uses it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dhr_lightning
from dhr_lightning.artifacts.manifest import digest_config, digest_file
from dhr_lightning.artifacts.runs import LAST
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import CheckpointError, ConfigError, run_command
from dhr_lightning.methods.inference import Inference, half_tile
from dhr_lightning.methods.segmentation import SegmentationTask
from dhr_lightning.methods.segmenters.light.task import LightTask
from dhr_lightning.models.checkpoints import read_checkpoint
from dhr_lightning.ops.tiles import predict_tiles
from dhr_lightning.pipeline.request import Request
from dhr_lightning.predicting.engines import (
    Engine,
    LightEngine,
    NetworkEngine,
    Pixels,
    feature_reader,
    to_batch,
)
from dhr_lightning.predicting.onnx import OnnxEngine
from dhr_lightning.predicting.pictures import Picture, to_pixels
from dhr_lightning.predicting.portable import read_portable
from dhr_lightning.predicting.prediction import Prediction
from dhr_lightning.predicting.sources import Source, find_source
from dhr_lightning.predicting.suffixes import ONNX, PORTABLE
from dhr_lightning.steps import method_of_task

log = logging.getLogger("dhr_lightning")
WHOLE_PIXELS = 4_000_000  # larger images come in tiles
TILE, OVERLAP = 1024, 256


@dataclass(frozen=True)
class Settings:
    """How to predict; `None` takes what the recipe says.

    Args:
        scales: relative image sizes, of models that see the photo.
        flip: average with the mirrored image.
        crf: dense CRF on the result; images in tiles get none.
        tile: side of the tiles in pixels; `None` for whole images up to `WHOLE_PIXELS` and tiles of `TILE` beyond, 0
            for whole images always.
    """

    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    crf: bool | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile != 0 and self.tile < 64:
            raise ConfigError(f"Expected tiles of 64 pixels or more (0 for none), but got {self.tile}.")
        if self.scales is not None and (not self.scales or min(self.scales) <= 0):
            raise ConfigError(f"Expected scales > 0, but got {self.scales}.")


class Model:
    """A finished segmenter.

    Args:
        engine: computes class probabilities.
        title: where it comes from, for people.
        digest: of its weights.
        settings: how it predicts.
        device: where it runs.
    """

    def __init__(self, engine: Engine, *, title: str, digest: str, settings: Settings, device: torch.device) -> None:
        self.engine, self.title, self.digest, self.settings, self.device = engine, title, digest, settings, device
        self.engine.inference = _inference(engine.inference, settings)

    @property
    def class_set(self) -> ClassSet:
        """Class list with its colours."""
        return self.engine.classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class values, background first if there is one."""
        return self.class_set.names

    @property
    def about(self) -> dict[str, str]:
        """Supervision and licence of the weights that it stands on; every figure made with it says so."""
        return self.engine.about

    @property
    def card(self) -> dict[str, Any]:
        """What a reader of an exported model must know: classes with their colours, supervision, licence."""
        classes = self.class_set
        return {
            "schema": 1,
            "version": dhr_lightning.__version__,
            "model": self.title,
            "classes": list(classes.names),
            "background": classes.has_background,
            "palette": classes.palette[: classes.num_classes].tolist(),
            **self.about,
        }

    def predict(self, image: Picture | Sequence[Picture], *, tags: Sequence[str] | None = None) -> Any:  # noqa: ANN401 - one prediction for an image, a list for a list
        """Predict an image, or each of a list.

        Args:
            image: a path, a PIL image, an array `(H, W, 3)` or `(H, W)` uint8, a tensor `(3, H, W)` uint8, or a list.
            tags: classes that may appear, beside the background; default all.

        Returns:
            a `Prediction`, or a list of them for a list.

        Raises:
            DataError: if an image cannot be read.
            ConfigError: if a tag is no class.
        """
        if isinstance(image, Sequence) and not isinstance(image, str):
            return [self.predict(one, tags=tags) for one in image]
        pixels, name = to_pixels(image)
        (mask, confidence), tile = self._predict(pixels, name, self._allowed(tags))
        return Prediction(mask, confidence, pixels, self.class_set, name, tile)

    def _allowed(self, tags: Sequence[str] | None) -> Tensor | None:
        if tags is None:
            return None
        unknown = [tag for tag in tags if tag not in self.class_set.tag_names]
        if unknown:
            known = ", ".join(self.class_set.tag_names)
            raise ConfigError(f"{unknown[0]!r} is no class of {self.title}. Known: {known}.")
        allowed = torch.zeros(1, len(self.classes), dtype=torch.bool, device=self.device)
        allowed[0, : self.class_set.offset] = True
        allowed[0, [self.classes.index(tag) for tag in tags]] = True
        return allowed

    def _predict(
        self, pixels: Pixels, name: str, allowed: Tensor | None
    ) -> tuple[tuple[Pixels, np.ndarray[Any, Any]], int | None]:
        """Mask and confidence; where memory runs out, from tiles of half the sides, once, and the side of these."""
        size = (pixels.shape[0], pixels.shape[1])
        side = self._side(size)
        try:
            return self._from_bands(self._bands(pixels, name, allowed, side), size), None
        except torch.cuda.OutOfMemoryError:
            smaller = half_tile(side, side) if 0 < side < max(size) else half_tile(*size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s: out of memory at %d x %d pixels, predicted in tiles of %d", name, *size, smaller)
        return self._from_bands(self._bands(pixels, name, allowed, smaller), size), smaller

    def _from_bands(
        self, bands: Iterator[tuple[slice, Tensor]], size: tuple[int, int]
    ) -> tuple[Pixels, np.ndarray[Any, Any]]:
        mask, confidence = np.empty(size, np.uint8), np.empty(size, np.float32)
        for rows, scores in bands:
            best = scores.max(0)
            mask[rows] = best.indices.to(torch.uint8).numpy()
            confidence[rows] = best.values.clamp(0, 1).numpy()
        return mask, confidence

    def _side(self, size: tuple[int, int]) -> int:
        """Side of the tiles in pixels; 0 for the whole image."""
        if self.settings.tile is not None:
            return self.settings.tile
        return TILE if size[0] * size[1] > WHOLE_PIXELS else 0

    def _bands(self, pixels: Pixels, name: str, allowed: Tensor | None, side: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the image and their scores `(C, rows, W)`."""
        size = (pixels.shape[0], pixels.shape[1])
        if side == 0 or max(size) <= side:
            yield slice(0, size[0]), self._scores(pixels, name, allowed, self.engine.inference)
            return
        plain = Inference((1.0,))  # the CRF of a tile would not know its neighbours

        def tile(rows: slice, columns: slice) -> Tensor:
            return self._scores(pixels[rows, columns], name, allowed, plain)

        yield from predict_tiles(size, tile, side=side, overlap=min(OVERLAP, side // 4))

    @torch.no_grad()
    def _scores(self, pixels: Pixels, name: str, allowed: Tensor | None, inference: Inference) -> Tensor:
        """Scores `(C, H, W)` of an image or a tile, on the host."""
        batch = to_batch(self.engine.sample(pixels, name), divisor=self.engine.divisor, device=self.device)
        scores = inference.scores(self.engine.probability(batch), batch, allowed=allowed)
        return scores[0, :, : pixels.shape[0], : pixels.shape[1]].float().cpu()


def _inference(given: Inference, settings: Settings) -> Inference:
    """The protocol of a recipe with what a person changes."""
    scales = settings.scales if settings.scales is not None else given.settings.scales
    flip = given.settings.flip if settings.flip is None else settings.flip
    keep = given.refiner is not None if settings.crf is None else settings.crf
    crf = {**(given.settings.crf or {}), "backend": given.settings.backend or "auto", "prune": given.settings.prune}
    changed = Inference(scales, flip=flip, test_crf=crf if keep else None, ignore_index=given.settings.ignore_index)
    changed.settings = replace(changed.settings, gate=given.settings.gate)
    return changed


def load(source: str | Path, *, device: str = "auto", settings: Settings | None = None, **request: Any) -> Model:
    """Load a finished segmenter.

    Args:
        source: a recipe that has run, the folder of a fit, or a checkpoint, see `sources.find_source`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        settings: how to predict; default as the recipe says.
        request: of a recipe: `data`, `root`, `workspace`, see `pipeline.request.Request`.

    Raises:
        DHRError: if there is no such model, or it has not finished.
    """
    found = find_source(str(source), Request(**request))
    return build(found, device=device, settings=settings)


def build(source: Source, *, device: str = "auto", settings: Settings | None = None) -> Model:
    """Make a model of what `find_source` found.

    Raises:
        CheckpointError: if the checkpoint is no segmenter's.
        ConfigError: if there is no such device.
    """
    if source.checkpoint.suffix == ONNX:
        onnx = OnnxEngine(source.checkpoint)
        digest = digest_config({"weights": [digest_file(source.checkpoint)]})
        chosen = settings or Settings()
        return Model(onnx, title=onnx.title, digest=digest, settings=chosen, device=onnx.device)
    place = _device(device)
    read = read_portable if source.checkpoint.suffix == PORTABLE else read_checkpoint
    checkpoint = read(source.checkpoint)
    task = _task(checkpoint, source)
    engine: Engine
    if isinstance(task, LightTask):
        if source.features is None:
            raise CheckpointError(
                f"{source.checkpoint} reads stored features, and nothing says which any more. Name its recipe, leave "
                f"the file where the fit wrote it (runs/.../checkpoints/{LAST}), or run `{run_command()}`."
            )
        engine = LightEngine(task, checkpoint, feature_reader(source.features), source.tagger, place)
    else:
        task.load_state_dict(checkpoint["state_dict"])
        task.take_over_card(checkpoint)
        engine = NetworkEngine(task, place)
    files = [path for path in (source.checkpoint, source.tagger) if path is not None]
    digest = digest_config({"weights": [digest_file(path) for path in files], "features": dict(source.features or {})})
    return Model(engine, title=source.title, digest=digest, settings=settings or Settings(), device=place)


def _task(checkpoint: dict[str, Any], source: Source) -> SegmentationTask | LightTask:
    given = dict(checkpoint.get("hyper_parameters") or {})
    given.pop("_instantiator", None)
    path = str(given.pop("_class_path", ""))
    method = method_of_task(path)  # a checkpoint may name any class: only methods that are installed are imported
    kind = method.spec.task_class() if method else None
    if kind is None or not issubclass(kind, SegmentationTask | LightTask):
        raise CheckpointError(
            f"{source.checkpoint} is the checkpoint of {path.rpartition('.')[2] or 'something else'}, which is no "
            "segmenter. Name the checkpoint of a segmenter, or its recipe."
        )
    arguments = {**given, **source.arguments}
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # the checkpoint holds all weights
    task: SegmentationTask | LightTask = kind(**arguments)
    return task


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}). Use auto or cpu."
        ) from error
    return place
