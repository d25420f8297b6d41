"""What the running step reads and writes, from the addresses that its recipe names."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from dhr_lightning.artifacts.kinds import kind_of, round_address
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.runs import finished_checkpoint
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import DatasetInfo, Record
from dhr_lightning.data.dataset import Source
from dhr_lightning.data.frozen_features import FeatureReader, recorded
from dhr_lightning.data.gate import address_to_read
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.shards import Shard
from dhr_lightning.steps import TRUTH, StepSpec, get_method

NO_METHOD = StepSpec("none", "none", "images and tags alone")


def chosen_taps(stored: Mapping[str, int], wanted: Sequence[str] | None, *, step: str) -> dict[str, int]:
    """Channels of the layers that a step reads of stored features, in the order that it names them.

    Args:
        stored: channels of each layer that is there, in the order of the files.
        wanted: names; one that is repeated counts once. None, or no name, for all.
        step: its name, for the message.

    Raises:
        ConfigError: if one is not there; names those that are.
    """
    unknown = [name for name in wanted or () if name not in stored]
    if unknown:
        raise ConfigError(
            f"{step or 'This step'} wants the tap {unknown[0]!r}, but the features it reads hold {', '.join(stored)}. "
            "Name one of these, or add it to the taps of the step that writes them."
        )
    return {name: stored[name] for name in wanted or stored}


LAYERS = "features"  # the port whose layers the setting `taps` chooses from


class RunContext(Protocol):
    """What a run knows of the artifacts of its step; see `provenance.identity.StepIdentity`."""

    @property
    def step(self) -> str:
        """Name of the step in its recipe."""
        ...

    def address(self, kind: str) -> str:
        """Where an output lies."""
        ...

    def describe(
        self, address: str, split: str, *, checkpoint: Path | None = None, info: Mapping[str, Any] | None = None
    ) -> Manifest:
        """The manifest that an output would have if it were made now."""
        ...


class RunInputs:
    """The part of the datamodule that knows addresses: of inputs by port, and of the outputs of the run it serves."""

    info: DatasetInfo
    store: ArtifactStore
    workspace: Path
    method: str | None
    step: str
    inputs: dict[str, str]
    context: RunContext | None
    mask_round: int | None
    shard: Shard | None = None  # the job that predicts its share of the images

    @property
    def task(self) -> Any:  # noqa: ANN401 - a task, which lies a floor above
        """The task that runs on this data, or None."""
        return getattr(getattr(self, "trainer", None), "lightning_module", None)

    @property
    def spec(self) -> StepSpec:
        """What the running method reads and writes."""
        if self.method:
            return get_method(self.method).spec
        return getattr(self.task, "spec", NO_METHOD)

    def attach(self, context: RunContext) -> None:
        """Tell the data which run it serves."""
        self.context, self.step = context, context.step

    @property
    def run(self) -> RunContext:
        """The run that this data serves.

        Raises:
            ArtifactError: if there is none.
        """
        if self.context is None:
            raise ArtifactError(
                "No run is attached to this data, so nothing can be written. Use a recipe or the commands."
            )
        return self.context

    def _truth_port(self) -> str | None:
        """Port at which the ground truth stands in for masks, or None."""
        return next((port for port, address in self.inputs.items() if address == TRUTH), None)

    def own_share(self, records: Sequence[Record]) -> Sequence[Record]:
        """Those of some images that this job predicts; all of them unless several jobs share them."""
        return records if self.shard is None else self.shard.of(records)

    def input_address(self, port: str) -> str | None:
        """Address of what is read at a port: as named, or what a sanity gate replaces it by; None if there is none."""
        named = self.inputs.get(port)
        if named is None or named == TRUTH or self.spec.reads[port].weights:
            return named
        force = bool(getattr(self.task, "hparams", {}).get("force_masks", False))
        return address_to_read(self.store, named, force=force)

    def output_address(self, kind: str) -> str:
        """Address of what the running step writes."""
        return self.run.address(kind)

    def output_folder(self, kind: str, split: str) -> Path:
        """Folder of what the running step writes."""
        return self.store.folder(self.output_address(kind), split)

    def weights(self, port: str) -> Path | None:
        """Checkpoint of the run that is read at a port, or None if the step reads none.

        Raises:
            ArtifactError: if that run has not finished.
        """
        run = self.inputs.get(port)
        if run is None:
            return None
        path = finished_checkpoint(self.workspace / "runs" / self.info.name / run)
        if path is None:
            raise ArtifactError(
                f"The weights that {self.step or 'this step'} starts from ({port}: {run}) are not there. Run the step "
                "that trains them first, or take the input out of the recipe."
            )
        return path

    def _sources(self, when: Literal["fit", "predict", "refresh"], split: str = "train") -> dict[str, Source]:
        """Where to find each input that batches of a kind hold."""
        sources = {}
        for port, read in self.spec.reads.items():
            wanted = getattr(read, when) and split in read.splits and not read.weights
            address = self.input_address(port) if wanted else None
            if address is not None and address != TRUTH:
                path = functools.partial(self.store.path, address, split)
                sources[port] = Source(kind_of(address), path, self._channels(port), self._live(port))
        if when == "fit" and self.spec.has_rounds:
            address = round_address(self.output_address("mask"), self.mask_round or 0)
            sources["masks"] = Source(kind_of(address), functools.partial(self.round_path, split))
        return sources

    def tap_channels(self, port: str) -> dict[str, int]:
        """Channels of each tap of the features read at a port, in the order of their files; empty without names."""
        return dict(self.input_info(port).get("taps") or {})

    def input_info(self, port: str) -> Mapping[str, Any]:
        """What the manifest of the artifact read at a port knows beside the settings."""
        manifest = self.store.manifest(str(self.input_address(port)), "train")
        return manifest.info if manifest else {}

    def _channels(self, port: str) -> tuple[slice, ...] | None:
        """Ranges of the channels that the task wants of the stored features that have layers; None for all of them."""
        wanted = getattr(self.task, "taps", None)
        if wanted is None or port != LAYERS:
            return None
        taps = self.tap_channels(port)
        chosen = chosen_taps(taps, wanted, step=self.step)
        ends = dict(zip(taps, itertools.accumulate(taps.values()), strict=True))
        return tuple(slice(ends[name] - taps[name], ends[name]) for name in chosen)

    def _live(self, port: str) -> FeatureReader | None:
        """What computes the features read at a port, if their files hold none."""
        settings = self.input_info(port).get("live")
        return recorded(settings) if settings else None

    def read_all(self, port: str, records: Sequence[Record]) -> Iterator[tuple[NDArray[Any], ...]]:
        """Arrays of the artifact read at a port, of some training images in order."""
        address = str(self.input_address(port))
        for record in records:
            yield kind_of(address).codec.read(self.store.path(address, "train", record.id))

    def round_path(self, split: str, image_id: str) -> Path:
        """File of a mask of the current round."""
        address = round_address(self.output_address("mask"), self.mask_round or 0)
        return self.store.path(address, split, image_id)
