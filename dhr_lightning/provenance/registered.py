"""Files of pretrained weights that a person named once, so that `--weights NAME` finds them (no torch)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.manifest import digest_file
from dhr_lightning.errors import CheckpointError
from dhr_lightning.models.cards import IMAGENET_CARD, supervision_of

FOLDER, FILE = "weights", "weights.json"
TIMM, TORCHVISION = "huggingface.co/timm", "download.pytorch.org"
FROZEN = "vit_base_patch16_clip_quickgelu_224.openai"


@dataclass(frozen=True)
class KnownWeights:
    """Weights that recipes of this package use.

    Args:
        name: of timm, or of an encoder whose weights are those of torchvision.
        megabytes: of the file, about.
        licence: as their source states it.
        use: which recipes start from them.
        source: where the file lies.
    """

    name: str
    megabytes: int
    licence: str
    use: str
    source: str = TIMM

    @property
    def supervision(self) -> str:
        """What supervised them, in words."""
        tag = self.name.partition(".")[2]
        if not tag:
            return IMAGENET_CARD.words
        kind, name = supervision_of(tag)
        return replace(IMAGENET_CARD, supervision=kind, source=name).words


KNOWN = (
    KnownWeights(FROZEN, 345, "MIT (OpenAI); timm's copy: Apache-2.0", "frozen: the default"),
    KnownWeights("tf_efficientnet_lite0.in1k", 19, "Apache-2.0", "frozen, small"),
    KnownWeights("vit_small_patch16_224.dino", 87, "Apache-2.0", "frozen, dhr (uss)"),
    KnownWeights("vit_base_patch8_224.dino", 343, "Apache-2.0", "dhr (uss), as published"),
    KnownWeights("mobilenet_v2", 14, "BSD-3-Clause", "photos", TORCHVISION),
    KnownWeights("resnet50", 98, "BSD-3-Clause", "dhr (cam)", TORCHVISION),
    KnownWeights("resnet101", 171, "BSD-3-Clause", "dhr, as published", TORCHVISION),
)


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
