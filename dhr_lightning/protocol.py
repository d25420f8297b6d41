"""How predicted masks were made at test time: what a score must name to be compared with another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dhr_lightning.errors import ConfigError


@dataclass(frozen=True)
class EvaluationProtocol:
    """The test-time protocol of a segmenter.

    Attributes:
        scales: relative image sizes whose probabilities are averaged, all > 0.
        flip: whether the mirror of every scale is averaged, too.
        crf: settings of the dense CRF on the averaged probabilities; None without it.
        backend: which code runs the CRF; None without it.
        prune: the CRF sees only classes whose probability exceeds this somewhere in the image, in [0, 1).
        gate: whether the probability of a class is multiplied by that of its tag, as a tag classifier sees the image.
        tags: whether the masks are restricted to the tags of the image, as only training images allow.
        ignore_index: mask value that a score leaves out.

    Raises:
        ConfigError: if `scales` is empty or not positive, or `prune` is out of range.

    Source: scales 1, 0.5, 1.5, 2 with flip, pruning at 0.05 and CRF as published with DHR (arXiv:2404.00380).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    crf: Mapping[str, float] | None = None
    backend: str | None = None
    prune: float = 0.05
    gate: bool = False
    tags: bool = False
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"Expected `scales` to be one or more numbers > 0, but got {list(self.scales)}.")
        if not 0 <= self.prune < 1:
            raise ConfigError(f"Expected `prune` in [0, 1), but got {self.prune}.")

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "EvaluationProtocol":
        """Read what `record` wrote; fields of other versions are left out."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "scales": tuple(known.get("scales", (1.0,)))})

    def record(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "scales": list(self.scales), "crf": None if self.crf is None else dict(self.crf)}

    def describe(self) -> str:
        """All fields in words, such as `TTA: scales 1, 0.5 with flip; no CRF; all classes`."""
        views = f"scale{'s' if len(self.scales) > 1 else ''} {', '.join(f'{scale:g}' for scale in self.scales)}"
        words = [f"TTA: {views} {'with' if self.flip else 'without'} flip", "no CRF"]
        if self.crf is not None:
            settings = ", ".join(f"{name} {value:g}" for name, value in self.crf.items())
            words[1] = f"CRF {self.backend} ({settings}) over classes above {self.prune:g}"
        if self.gate:
            words.append("gated by predicted tags")
        words.append("classes restricted to the image's tags" if self.tags else "all classes")
        return "; ".join(words)


def describe_inference(info: Mapping[str, Any] | None) -> str:
    """TTA and CRF of a set of masks in words, from the `info` of its manifest; None if it has no manifest."""
    if info is None:
        return "masks as given, TTA and CRF unknown"
    if info.get("protocol"):
        return EvaluationProtocol.read(info["protocol"]).describe()
    refine = info.get("refine")
    return "TTA and CRF not recorded" if refine is None else f"refinement {refine}, no TTA recorded"
