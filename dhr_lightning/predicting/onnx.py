"""Segmenters as ONNX: written from a model, checked against it, and run without it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.resizing import resize_to_cells
from dhr_lightning.data.sample import Batch, GridMaps, Sample
from dhr_lightning.errors import ArtifactError, CheckpointError, ConfigError, DependencyError
from dhr_lightning.methods.inference import Inference
from dhr_lightning.predicting.engines import Engine, Pixels, whole_sample
from dhr_lightning.predicting.graphs import Graph, graph_of
from dhr_lightning.progress import human

INPUT, CARD = "pixels", "dhr_lightning"
AGREEMENT = 0.9999  # share of pixels whose class must be that of the model
_SIZES = ((1, 160, 192), (1, 97, 131), (2, 225, 300))  # batch, height, width of the check
_LONGEST = 65_536  # pixels or cells of a side


def write_onnx(engine: Engine, output: Path, *, card: Mapping[str, Any], force: bool = False) -> float:
    """Write a segmenter as ONNX with any batch and size, and check it with onnxruntime before it takes its name.

    Args:
        engine: the segmenter.
        output: file to write.
        card: what a reader must know, see `Model.card`; kept in the file.
        force: replace what is there.

    Returns:
        share of pixels whose class agrees with the model's, over three sizes.

    Raises:
        ConfigError: if the model has no such graph, see `graph_of`, or the file exists.
        DependencyError: if a package is missing.
        ArtifactError: if the disk is too small, or the graph does not agree with the model; nothing is written then.
    """
    if output.exists() and not force:
        raise ConfigError(f"{output} exists. Choose another --output, or replace it with --force.")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import(package)
    graph = graph_of(engine)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_room(graph, output)
    program = _export(graph)
    program.model.metadata_props[CARD] = json.dumps({**card, "resize": graph.resize}, ensure_ascii=False)
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


def _check_room(graph: Graph, output: Path) -> None:
    """Refuse a disk that the weights alone would fill."""
    needed = sum(one.numel() * one.element_size() for one in graph.module.state_dict().values())
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise ArtifactError(
            f"{output} takes about {human(needed)}, but {human(free)} are free. Free {human(needed - free)}, or give "
            "another --output. Nothing has been written."
        )


def _export(graph: Graph) -> Any:  # noqa: ANN401 - torch hides the type
    import warnings

    least = 33 if graph.cell == 1 else 2
    height, width = (torch.export.Dim(name, min=least, max=_LONGEST) for name in ("rows", "columns"))
    sides = {2: graph.cell * height, 3: graph.cell * width}
    # no side that a stride divides, so that the graph keeps the padding
    example = torch.zeros(2, 3, *(161, 195) if graph.cell == 1 else (5 * graph.cell, 7 * graph.cell), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        return torch.onnx.export(
            graph.module, (example,), dynamo=True, dynamic_shapes={INPUT: {0: torch.export.Dim("batch"), **sides}},
            input_names=[INPUT], output_names=[graph.output], verbose=False,
        )  # fmt: skip


def _agreement(path: Path, graph: Graph) -> float:
    """Share of pixels of the same class at three sizes that differ from the example's."""
    session = _session(path)
    same = total = 0
    for batch, *size in _SIZES:
        generator = torch.Generator().manual_seed(size[0])
        height, width = (-(-side // graph.cell) * graph.cell for side in size)
        coarse = torch.randint(0, 256, (batch, 3, height // 16, width // 16), generator=generator).float()
        pixels = interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
        (found,) = session.run([graph.output], {INPUT: pixels.numpy()})
        with torch.no_grad():
            expected = graph.module(pixels)
        same += int((torch.from_numpy(found).argmax(1) == expected.argmax(1)).sum())
        total += expected[:, 0].numel()
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
        self.resize: dict[str, Any] | None = content.get("resize")
        self.inference = Inference((1.0,), flip=False)

    def sample(self, pixels: Pixels, name: str) -> Sample:
        """See `Engine`."""
        sample = whole_sample(pixels, name, self.classes)
        if self.resize is None:
            return sample
        resized = resize_to_cells(Image.fromarray(pixels), path=Path(name), **self.resize)
        maps = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return Sample(**sample, inputs={INPUT: GridMaps(maps, "sampled")})

    def probability(self, batch: Batch) -> Tensor:
        """See `Engine`."""
        settings = self.inference.settings
        if settings.scales != (1.0,):
            raise ConfigError("An ONNX file predicts at the size of the photo. Leave --scales out.")
        pixels = batch["pixels"] if self.resize is None else batch["inputs"][INPUT].to(torch.uint8)
        total = self._probability(pixels)
        if settings.flip:
            total = (total + self._probability(pixels.flip(-1)).flip(-1)) / 2
        size = batch["pixels"].shape[-2:]
        return total if self.resize is None else interpolate(total, size, mode="bilinear", align_corners=False)

    def _probability(self, pixels: Tensor) -> Tensor:
        (found,) = self.session.run(None, {INPUT: pixels.contiguous().numpy()})
        return torch.from_numpy(found) if self.resize else torch.from_numpy(found).softmax(1)


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
