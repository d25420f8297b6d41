"""Segmenters as ONNX: written from a model, checked against it, and run without it."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.sample import Batch, Sample
from dhr_lightning.errors import ArtifactError, CheckpointError, ConfigError, DependencyError
from dhr_lightning.methods.inference import Inference
from dhr_lightning.models.cards import WeightsCard
from dhr_lightning.predicting.engines import Engine, NetworkEngine, Pixels, whole_sample

SUFFIX = ".onnx"
INPUT, OUTPUT, CARD = "pixels", "logits", "dhr_lightning"
AGREEMENT = 0.9999  # share of pixels whose class must be that of the model
_SIZES = ((1, 160, 192), (1, 97, 131), (2, 225, 300))  # batch, height, width of the check
_EXAMPLE = (2, 3, 161, 195)  # no side that a stride divides, so that the graph keeps the padding


class _Graph(nn.Module):
    """The network with the normalisation of its images: uint8 RGB in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: WeightsCard) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` uint8 -> logits `(B, C, H, W)` float32."""
        logits: Tensor = self.network((pixels.float() - self.mean) / self.std).logits
        return logits


def write_onnx(engine: Engine, output: Path, *, card: Mapping[str, Any], force: bool = False) -> float:
    """Write a segmenter as ONNX with any batch and size, and check it with onnxruntime before it takes its name.

    Args:
        engine: whose network sees the photo.
        output: file to write.
        card: what a reader must know, see `Model.card`; kept in the file.
        force: replace what is there.

    Returns:
        share of pixels whose class agrees with the model's, over three sizes.

    Raises:
        ConfigError: if the model reads stored features, or the file exists.
        DependencyError: if a package is missing.
        ArtifactError: if the graph does not agree with the model; nothing is written then.
    """
    if not isinstance(engine, NetworkEngine):
        raise ConfigError(
            "This segmenter reads features of a frozen backbone, whose resizing has no form in ONNX yet. Export one "
            "that sees the photo (recipes with wss or dhr)."
        )
    if output.exists() and not force:
        raise ConfigError(f"{output} exists. Choose another --output, or replace it with --force.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import(package)
    graph = _Graph(engine.task.network, engine.task.card).eval()
    program = _export(graph)
    program.model.metadata_props[CARD] = json.dumps(dict(card), ensure_ascii=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=output.parent) as folder:
        made = Path(folder) / output.name
        program.save(str(made))
        share = _agreement(made, graph)
        if share < AGREEMENT:
            raise ArtifactError(
                f"The exported graph gives {100 * share:.3f} % of the pixels the class of the model, less than "
                f"{100 * AGREEMENT:g} %, so it is not kept. Report it with the backbone and the version of torch."
            )
        os.replace(made, output)
    return share


def _export(graph: nn.Module) -> Any:  # noqa: ANN401 - torch hides the type
    import warnings

    dimension = torch.export.Dim
    shapes = {
        INPUT: {0: dimension("batch", min=1), 2: dimension("height", min=33), 3: dimension("width", min=33)},
    }
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        return torch.onnx.export(
            graph, (example,), dynamo=True, dynamic_shapes=shapes, input_names=[INPUT], output_names=[OUTPUT],
            verbose=False,
        )  # fmt: skip


def _agreement(path: Path, graph: nn.Module) -> float:
    session = _session(path)
    same = total = 0
    for batch, height, width in _SIZES:
        generator = torch.Generator().manual_seed(height)
        coarse = torch.randint(0, 256, (batch, 3, height // 16, width // 16), generator=generator).float()
        pixels = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
        (found,) = session.run([OUTPUT], {INPUT: pixels.numpy()})
        with torch.no_grad():
            expected = graph(pixels)
        same += int((torch.from_numpy(found).argmax(1) == expected.argmax(1)).sum())
        total += batch * height * width
    return same / total


class OnnxEngine:
    """A segmenter in an ONNX file of `write_onnx`.

    Args:
        path: the file.

    Raises:
        CheckpointError: if it is no such file.
        DependencyError: if onnxruntime is missing.
    """

    divisor = 1
    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        self.session = _session(path)
        text = self.session.get_modelmeta().custom_metadata_map.get(CARD)
        if text is None:
            raise CheckpointError(f"{path} is an ONNX file of something else: nothing in it names its classes.")
        content = json.loads(text)
        self.classes = ClassSet(tuple(content["classes"]), has_background=bool(content["background"]))
        self.title, self.about = str(content["model"]), {key: str(content[key]) for key in ("supervision", "licence")}
        self.inference = Inference((1.0,), flip=False)

    def sample(self, pixels: Pixels, name: str) -> Sample:
        """See `Engine`."""
        return whole_sample(pixels, name, self.classes)

    def probability(self, batch: Batch) -> Tensor:
        """See `Engine`."""
        settings = self.inference.settings
        if settings.scales != (1.0,):
            raise ConfigError("An ONNX file predicts at the size of the photo. Leave --scales out.")
        pixels = batch["pixels"].numpy()
        total = self._softmax(pixels)
        return (total + self._softmax(pixels[..., ::-1].copy()).flip(-1)) / 2 if settings.flip else total

    def _softmax(self, pixels: np.ndarray[Any, Any]) -> Tensor:
        (logits,) = self.session.run([OUTPUT], {INPUT: pixels})
        return torch.from_numpy(logits).softmax(1)


def _session(path: Path) -> Any:  # noqa: ANN401 - an optional package
    runtime = _import("onnxruntime")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of errors for each reason, none of them public
        raise CheckpointError(f"{path} cannot be read as ONNX: {str(error).splitlines()[0]}.") from error


def _import(package: str) -> Any:  # noqa: ANN401 - an optional package
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"{package} is not installed, but ONNX needs it. Run `pip install 'dhr-lightning[onnx]'`."
        ) from error
