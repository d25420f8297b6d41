"""Files of pretrained weights that a person named once, so that `--weights NAME` finds them (no torch)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.manifest import digest_file
from dhr_lightning.errors import CheckpointError

FOLDER, FILE = "weights", "weights.json"
FROZEN = "vit_base_patch16_clip_quickgelu_224.openai"


@dataclass(frozen=True)
class KnownWeights:
    """Weights that recipes of this package use.

    Args:
        name: of timm, or of an encoder.
        megabytes: of the file, about.
        licence: as their source states it.
        supervision: what supervised them.
        use: which recipes start from them.
        source: where the file lies.
    """

    name: str
    megabytes: int
    licence: str
    supervision: str
    use: str
    source: str


KNOWN = (
    KnownWeights(FROZEN, 345, "MIT (OpenAI); timm's copy: Apache-2.0", "language-supervised (CLIP, OpenAI)",
                 "frozen: the default", "huggingface.co/timm"),
    KnownWeights("tf_efficientnet_lite0.in1k", 19, "Apache-2.0", "image labels (ImageNet-1k)", "frozen, small",
                 "huggingface.co/timm"),
    KnownWeights("vit_small_patch16_224.dino", 87, "Apache-2.0", "self-supervised (DINO)", "frozen, dhr (uss)",
                 "huggingface.co/timm"),
    KnownWeights("vit_base_patch8_224.dino", 343, "Apache-2.0", "self-supervised (DINO)", "dhr (uss), as published",
                 "huggingface.co/timm"),
    KnownWeights("mobilenet_v2", 14, "BSD-3-Clause", "image labels (ImageNet-1k)", "photos", "download.pytorch.org"),
    KnownWeights("resnet50", 98, "BSD-3-Clause", "image labels (ImageNet-1k)", "dhr (cam)", "download.pytorch.org"),
    KnownWeights("resnet101", 171, "BSD-3-Clause", "image labels (ImageNet-1k)", "dhr, as published",
                 "download.pytorch.org"),
)  # fmt: skip


def registered(workspace: Path | str | None) -> dict[str, Path]:
    """Registered files by name, those that are still there."""
    record = Path(workspace or ".") / FOLDER / FILE
    content: Mapping[str, Mapping[str, str]] = read_json(record) if record.is_file() else {}
    return {name: Path(one["file"]) for name, one in content.items() if Path(one["file"]).is_file()}


def register(workspace: Path | str, name: str, file: Path) -> str:
    """Remember where the weights of a name lie; returns the SHA-256 of the file.

    Raises:
        CheckpointError: if there is no such file.
    """
    if not file.is_file():
        raise CheckpointError(f"There is no file of weights at {file}.")
    record = Path(workspace) / FOLDER / FILE
    record.parent.mkdir(parents=True, exist_ok=True)
    content = read_json(record) if record.is_file() else {}
    digest = digest_file(file)
    write_json(record, {**content, name: {"file": str(file.resolve()), "sha256": digest}})
    return digest
