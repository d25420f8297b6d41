"""Jobs that share the images of one prediction without a network between them; imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dhr_lightning.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of several jobs, each of which takes every `count`-th image.

    Args:
        number: which, from 1.
        count: how many there are.
    """

    number: int
    count: int

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Those of all items that are this job's, whatever the others have done."""
        return items[self.number - 1 :: self.count]

    def __str__(self) -> str:
        """`2/8`, as `read_shard` reads it."""
        return f"{self.number}/{self.count}"


def read_shard(text: str) -> Shard:
    """A shard from `I/N`.

    Raises:
        ConfigError: if it is none, or not one of 1..N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"Expected --shard I/N with I of 1..N, such as 2/8, but got {text!r}.")
    return Shard(int(found[1]), int(found[2]))
