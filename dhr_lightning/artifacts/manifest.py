"""The identity of an artifact: what it was made from, as digests that two runs can compare."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.errors import ArtifactError

SCHEMA = 2
_SHORT = 12
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact was made from. Usually built by `Manifest.create`, which computes the digests.

    Attributes:
        address: where it lies below the dataset, such as `cam/1a2b3c4d/cam` or `dhr/5e6f7a8b/mask/round_03`.
        dataset: name of the dataset.
        split: `train` or `val`.
        count: number of images.
        ids: digest of the image ids.
        config: digest of `settings`.
        settings: every setting that changes the content, so that a difference can be shown.
        inputs: name of each input -> `digest` of its manifest.
        checkpoint: `path` and `sha256` of the weights used, or None.
        info: version, time, seconds, notes. Recorded, never compared.
        schema: version of this format.
    """

    address: str
    dataset: str
    split: str
    count: int
    ids: str
    config: str
    settings: dict[str, Any]
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    checkpoint: dict[str, str] | None = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def create(
        cls,
        address: str,
        dataset: str,
        split: str,
        *,
        ids: Sequence[str],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        checkpoint: Path | None = None,
    ) -> "Manifest":
        """Describe an artifact that is about to be made, or that today's settings would make.

        Args:
            address: where it lies below the dataset.
            dataset: name of the dataset.
            split: `train` or `val`.
            ids: image ids, each once, in any order.
            settings: the settings that change the content; nested mappings are welcome.
            inputs: name of each input -> `digest` of its manifest.
            checkpoint: weights used; the file is hashed.

        Raises:
            ValueError: if an id appears twice or a setting is not finite.
            TypeError: if a setting has no JSON form.
            ArtifactError: if `checkpoint` cannot be read.
        """
        return cls(
            address=address,
            dataset=dataset,
            split=split,
            count=len(ids),
            ids=digest_ids(ids),
            config=digest_config(settings),
            settings=canonical(settings),
            inputs=dict(inputs or {}),
            checkpoint=describe_checkpoint(checkpoint) if checkpoint else None,
        )

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the content: not `info`, not where the checkpoint lies."""
        identity = dataclasses.asdict(self)
        for name in ("info", "settings", "checkpoint"):
            del identity[name]
        identity["checkpoint"] = self.checkpoint and self.checkpoint["sha256"]
        return digest_config(identity)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            ArtifactError: if the file is absent, unreadable, of another schema, or lacks a field.
        """
        content = read_json(path)
        if content.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{path} has schema {content.get('schema')!r}, but this version reads schema {SCHEMA}. Move the "
                "folder away or choose another --workspace, or use the version that wrote it."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            manifest = cls(**{name: content[name] for name in names})
            manifest._check_types()
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a manifest ({error!r}). Run the step that writes it again.") from error
        return manifest

    def save(self, path: Path) -> None:
        """Write atomically and durably; an artifact is complete from this moment on."""
        write_json(path, dataclasses.asdict(self))

    def with_info(self, **info: Any) -> "Manifest":
        """A copy with more `info`; the identity is unchanged."""
        return dataclasses.replace(self, info={**self.info, **info})

    def changes_to(self, today: "Manifest") -> list[str]:
        """Say what differs from `today`, as `name old -> new`; empty when this artifact is up to date.

        The checkpoint is compared only if `today` names one, because a stage that has not trained yet has none.
        """
        reasons = [
            f"{name} {getattr(self, name)} -> {getattr(today, name)}"
            for name in ("schema", "address", "dataset", "split")
            if getattr(self, name) != getattr(today, name)
        ]
        if self.ids != today.ids:
            reasons.append(f"image ids {self.count} -> {today.count} images ({_pair(self.ids, today.ids)})")
        if self.config != today.config:
            old, new = dict(flatten(self.settings)), dict(flatten(today.settings))
            settings = [f"{name} {_show(old, name)} -> {_show(new, name)}" for name in _differing(old, new)]
            reasons += settings or [f"settings digest {_pair(self.config, today.config)}"]
        for name in _differing(self.inputs, today.inputs):
            reasons.append(f"input {name} {_pair(self.inputs.get(name), today.inputs.get(name))}")
        if today.checkpoint is not None:
            old_weights = self.checkpoint["sha256"] if self.checkpoint else None
            if old_weights != today.checkpoint["sha256"]:
                reasons.append(f"checkpoint {_pair(old_weights, today.checkpoint['sha256'])}")
        return reasons

    def _check_types(self) -> None:
        texts = (self.address, self.dataset, self.split, self.ids, self.config, *self.inputs.values())
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.count, int):
            raise TypeError("a field has the wrong type")
        if not (isinstance(self.settings, dict) and isinstance(self.info, dict)):
            raise TypeError("`settings` and `info` must be objects")
        if self.checkpoint is not None and set(self.checkpoint) != {"path", "sha256"}:
            raise TypeError("`checkpoint` must have a path and a sha256")


def describe_checkpoint(path: Path) -> dict[str, str]:
    """Where weights lie, and a digest of their bytes.

    Raises:
        ArtifactError: if the file cannot be read.
    """
    return {"path": str(path.resolve()), "sha256": digest_file(path)}


def canonical(value: Any, where: str = "settings") -> Any:  # noqa: ANN401 - any JSON value
    """Reduce settings to plain JSON values with one spelling each: tuples are lists, 1.0 is 1, paths are text.

    Raises:
        ValueError: for NaN or infinity, naming the setting.
        TypeError: for a value without JSON form, naming the setting.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): canonical(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"Expected a finite value for `{where}`, but got {value}.")
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"Expected a number, text, list or mapping for `{where}`, but got {type(value).__name__}. "
        "Convert it before it becomes part of a manifest."
    )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(dotted name, value)` of every leaf of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def digest_config(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `settings`; the order of the keys does not matter."""
    text = json.dumps(canonical(settings), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_ids(ids: Iterable[str]) -> str:
    """SHA-256 of a set of image ids; their order does not matter.

    Raises:
        ValueError: if an id appears twice.
    """
    ordered = sorted(ids)
    twice = next((first for first, second in pairwise(ordered) if first == second), None)
    if twice is not None:
        raise ValueError(f"Expected each image id once, but got {twice!r} twice.")
    return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file; remembered while its size and time of change stay the same.

    Raises:
        ArtifactError: if the file cannot be read.
    """
    try:
        state = path.stat()
        return _digest_content(path.resolve(), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Give the path of an existing checkpoint.") from error


def timestamp() -> str:
    """Local time with its offset, as `2024-05-01T13:37:00+0200`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@lru_cache(maxsize=256)
def _digest_content(path: Path, size: int, modified: int, inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*old, *new}) if name not in old or name not in new or old[name] != new[name]]


def _show(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "absent"


def _pair(old: str | None, new: str | None) -> str:
    return f"{old[:_SHORT] if old else 'none'} -> {new[:_SHORT] if new else 'none'}"
