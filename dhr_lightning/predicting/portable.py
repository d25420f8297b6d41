"""Segmenters as safetensors with a JSON card: weights that run here again, and that anyone can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dhr_lightning.artifacts.files import write_bytes, write_json
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.models.checkpoints import check_finite_weights
from dhr_lightning.predicting.engines import Engine, LightEngine, NetworkEngine
from dhr_lightning.predicting.suffixes import PORTABLE

CARD = "dhr_lightning"


def write_portable(engine: Engine, output: Path, *, card: Mapping[str, Any], force: bool = False) -> None:
    """Write the weights of a segmenter, and `card.json` of the same name beside them.

    A segmenter on features of a frozen backbone holds the head and its gate; the card names the backbone, whose own
    file stays where it is.

    Args:
        engine: the segmenter.
        output: `NAME.safetensors`.
        card: what a reader must know, see `Model.card`; kept in both files.
        force: replace what is there.

    Raises:
        ConfigError: if the file exists or has another suffix, or the model comes from an ONNX file.
    """
    beside = output.with_suffix(".json")
    if output.suffix != PORTABLE:
        raise ConfigError(f"Expected --output to end in {PORTABLE}, but got {output}.")
    for path in (output, beside):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists. Choose another --output, or replace it with --force.")
    if not isinstance(engine, NetworkEngine | LightEngine):
        raise ConfigError("An ONNX file holds a graph, not weights by name. Export from the recipe or its checkpoint.")
    content = {**card, "segmenter": _parts(engine)}
    state = {key: value.cpu().contiguous().clone() for key, value in engine.task.state_dict().items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(beside, content)
    write_bytes(output, save(state, metadata={CARD: json.dumps(content, ensure_ascii=False)}))


def _parts(engine: NetworkEngine | LightEngine) -> dict[str, Any]:
    """What builds the task again, as JSON keeps it."""
    task = engine.task
    parts: dict[str, Any] = {"task": task.spec.task, "arguments": dict(task.hparams), "card": asdict(task.card)}
    if isinstance(engine, LightEngine):
        parts["features"] = engine.reader.settings.record()
        parts["gate"] = None if engine.task.gate is None else engine.task.gate.record()
    return parts


def read_card(path: Path) -> dict[str, Any]:
    """What a file of `write_portable` says of itself; no weights are read.

    Raises:
        CheckpointError: if it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CARD)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}.") from error
    if text is None:
        raise CheckpointError(f"{path} holds weights of something else: nothing in it names a segmenter.")
    card: dict[str, Any] = json.loads(text)
    return card


def read_portable(path: Path) -> dict[str, Any]:
    """A file of `write_portable` in the form of a checkpoint: `state_dict`, `hyper_parameters`, `card`.

    Raises:
        CheckpointError: if it is no such file, or a weight is not finite.
    """
    parts = read_card(path)["segmenter"]
    with safe_open(path, "pt") as file:
        state: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    check_finite_weights(state, where=f"The file {path}")
    arguments = {**parts["arguments"], "_class_path": parts["task"]}
    return {"state_dict": state, "hyper_parameters": arguments, "card": parts["card"], "gate": parts.get("gate")}
