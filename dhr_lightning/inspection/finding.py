"""One finding about a dataset: what, how many, where, what to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["problem", "warning", "fact"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "fact")


@dataclass(frozen=True)
class Finding:
    """What was found in a dataset.

    Args:
        level: `problem` stops a stage or spoils its result, `warning` deserves a look, `fact` is good to know.
        code: short name that scripts can compare.
        text: one sentence that says what.
        count: how many files, images, classes or pairs; 0 for a statement about the whole.
        items: every one of them, each a file or name with its particulars.
        advice: what to do; empty for most facts.
    """

    level: Level
    code: str
    text: str
    count: int = 0
    items: tuple[str, ...] = ()
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Fields as plain values."""
        return asdict(self)


def finding(level: Level, code: str, items: Sequence[str], text: str, advice: str = "") -> list[Finding]:
    """One finding about these items, or none where there are none; `{n}` in the text is their number."""
    if not items:
        return []
    return [Finding(level, code, text.replace("{n}", str(len(items))), len(items), tuple(items), advice)]
