"""What a step is made from: keys of its weights and files, from configuration and files alone (no torch)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.kinds import round_address, round_number
from dhr_lightning.artifacts.manifest import (
    Manifest,
    canonical,
    describe_checkpoint,
    digest_config,
    digest_file,
)
from dhr_lightning.artifacts.runs import finished_checkpoint
from dhr_lightning.config import IGNORED_DATA, IGNORED_TRAINER, PREPARATION_DATA
from dhr_lightning.data.gate import address_to_read
from dhr_lightning.errors import ConfigError
from dhr_lightning.models.cards import card_file
from dhr_lightning.provenance.views import DataViews
from dhr_lightning.steps import NEUTRAL, TRUTH, StepSpec, get_method, method_of_task, methods

REFRESH_CALLBACK = "PseudoMaskRefresh"
KEY_LENGTH = 10
AUTO = "auto"  # the backbone that the weights belong to


class StepIdentity:
    """What a step of a recipe depends on, where its files lie, and what their manifests say.

    Two keys decide that. The weights depend on `fit_key`: method, settings of the fit, and inputs that the fit reads.
    The files depend on `output_key`: besides, settings and inputs of prediction. An input counts by its address, which
    holds the key of its own step. The images of the dataset are in no key: where they change, artifacts become stale.

    Args:
        config: resolved configuration of the step: `model`, `data` (with `method`, `step` and `inputs`), `trainer`,
            `seed_everything`.
        views: datasets that are already read.
    """

    def __init__(self, config: Mapping[str, Any], views: DataViews | None = None) -> None:
        self.config = config
        self.spec = spec_of(config)
        self.data = (views or DataViews()).of(config)
        self.store = self.data.store

    @property
    def step(self) -> str:
        """Name of the step in its recipe."""
        return str((self.config.get("data") or {}).get("step") or self.spec.name)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of the task."""
        return (self.config.get("model") or {}).get("init_args") or {}

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """Addresses of what the step reads, by port, as its recipe names them.

        Raises:
            ConfigError: for an unknown port or one that is missing.
        """
        return checked_inputs(self.spec, (self.config.get("data") or {}).get("inputs") or {}, self.step)

    @cached_property
    def fit_settings(self) -> dict[str, Any]:
        """Settings that the weights depend on."""
        if not self.spec.fits:
            return {}
        left_out = {*self.spec.predict_only, *self.spec.neutral, *NEUTRAL}
        trainer = {k: v for k, v in (self.config.get("trainer") or {}).items() if k not in IGNORED_TRAINER}
        return {
            "model": {name: self._content(name, v) for name, v in self.arguments.items() if name not in left_out},
            "data": self._data_settings(IGNORED_DATA),
            "trainer": trainer,
            "seed": self.config.get("seed_everything"),
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that the files depend on: those of the fit, and those of prediction."""
        neutral = () if self.spec.fits else PREPARATION_DATA
        names = self.spec.predict_only if self.spec.fits else tuple(self.arguments)
        prediction = {
            name: self._content(name, self.arguments[name])
            for name in names
            if name in self.arguments and name not in (*self.spec.neutral, *NEUTRAL)
        }
        data = {} if self.spec.fits else {"data": self._data_settings((*IGNORED_DATA, *neutral))}
        return {"method": self.spec.name, **self.fit_settings, **data, "prediction": prediction}

    def _content(self, name: str, value: Any) -> Any:  # noqa: ANN401 - a setting
        """A file of weights counts by its content, not by where it lies; so does a card beside it.

        Its name counts only where it says which backbone is meant.
        """
        if name == "pretrained" and isinstance(value, str) and Path(value).is_file():
            card = card_file(value)
            beside = {"card": digest_file(card)} if card.is_file() else {}
            says = not self.spec.fits and self.arguments.get("backbone", AUTO) == AUTO
            return {"sha256": digest_file(Path(value)), **beside, **({"name": Path(value).stem} if says else {})}
        return value

    def _data_settings(self, ignored: Sequence[str]) -> dict[str, Any]:
        data = {name: value for name, value in (self.config.get("data") or {}).items() if name not in ignored}
        if self.data.info.own_classes:  # that is the class list, not how the files are found
            data = {name: value for name, value in data.items() if name != "options"}
            data["classes"] = list(self.data.info.classes.names)
        return data

    @cached_property
    def fit_key(self) -> str:
        """Key of the weights."""
        read = {port: address for port, address in self.inputs.items() if self.spec.reads[port].in_fit}
        return _key({"method": self.spec.name, "settings": self.fit_settings, "inputs": read})

    @cached_property
    def output_key(self) -> str:
        """Key of the files."""
        return _key({"fit": self.fit_key, "settings": self.settings, "inputs": dict(self.inputs)})

    @property
    def run(self) -> str:
        """Name of the fits below `runs/<dataset>`, which is also how other steps name these weights."""
        return f"{self.spec.name}/{self.fit_key}"

    @property
    def run_folder(self) -> Path:
        """Where Lightning logs the versions of this step."""
        return self.data.workspace / "runs" / self.data.info.name / self.run

    def address(self, kind: str) -> str:
        """Where an output lies; mask refreshes by their round below it."""
        key = self.fit_key if self.spec.writes[kind].rounds else self.output_key
        return f"{self.spec.name}/{key}/{kind}"

    def outputs(self) -> list[tuple[str, str]]:
        """Every `(address, split)` that this step makes, of the splits that the dataset has."""
        found, demanded = [], (self.config.get("data") or {}).get("splits") or ()
        for kind, write in self.spec.writes.items():
            address = self.address(kind)
            addresses = [round_address(address, k) for k in range(self.rounds)] if write.rounds else [address]
            splits = [split for split in write.covered(demanded) if split in self.data.splits]
            found += [(one, split) for split in splits for one in addresses]
        return found

    def outputs_of_prediction(self) -> list[tuple[str, str]]:
        """Those outputs that prediction writes, and no mask refresh."""
        kinds = [kind for kind, write in self.spec.writes.items() if not write.rounds]
        addresses = {self.address(kind) for kind in kinds}
        return [output for output in self.outputs() if output[0] in addresses]

    @property
    def rounds(self) -> int:
        """Number of mask refreshes."""
        return len(refresh_epochs(self.config))

    def final(self, kind: str) -> str:
        """Address that others read of an output: that of the last round, where there are rounds."""
        address = self.address(kind)
        return round_address(address, self.rounds - 1) if self.spec.writes[kind].rounds else address

    def used_inputs(self) -> dict[str, str]:
        """Addresses of artifacts that are really read, by port: a sanity gate may replace what is named."""
        force = bool(self.arguments.get("force_masks", False))
        return {
            port: address_to_read(self.store, address, force=force)
            for port, address in self.inputs.items()
            if address != TRUTH and not self.spec.reads[port].weights
        }

    def input_digests(self, split: str = "train", *, fit_only: bool = False) -> dict[str, str]:
        """Digest of everything that the outputs of a split are made from; `absent` where it is not made yet.

        Args:
            split: of the outputs. Besides its own files they depend on those of the training images, which fit reads.
            fit_only: leave out what prediction alone reads.
        """
        digests = {"data/train": self.data.digest("train")}
        for port, address in self.used_inputs().items():
            read = self.spec.reads[port]
            if fit_only and not read.in_fit:
                continue
            for one in dict.fromkeys(("train", split)):
                if one in read.splits:
                    manifest = self.store.manifest(address, one)
                    digests[f"{address}/{one}"] = manifest.digest if manifest else "absent"
        for port, run in self.inputs.items():
            read = self.spec.reads[port]
            if read.weights and (read.in_fit or not fit_only):
                checkpoint = finished_checkpoint(self.data.workspace / "runs" / self.data.info.name / run)
                digests[f"weights {run}"] = digest_file(checkpoint) if checkpoint else "absent"
        return digests

    def describe(
        self, address: str, split: str, *, checkpoint: Path | None = None, info: Mapping[str, Any] | None = None
    ) -> Manifest:
        """The manifest that an output would have if it were made now.

        Args:
            address: one of `outputs`.
            split: its split.
            checkpoint: weights used, if known.
            info: recorded, never compared.
        """
        in_fit = round_number(address) is not None  # then no setting or input of prediction counts
        settings = {"method": self.spec.name, **self.fit_settings} if in_fit else self.settings
        inputs = {**self.input_digests(split, fit_only=in_fit), f"data/{split}": self.data.digest(split)}
        manifest = Manifest(
            address=address,
            dataset=self.store.dataset,
            split=split,
            count=len(self.data.records(split)),
            ids=self.data.ids_digest(split),
            config=digest_config(settings),
            settings=canonical(settings),
            inputs=inputs,
            checkpoint=describe_checkpoint(checkpoint) if checkpoint else None,
        )
        return manifest.with_info(step=self.step, config=canonical(plain(self.config)), **(info or {}))

    def fit_digest(self) -> str:
        """Identity of a fit: everything its weights depend on, so no validation or test image."""
        return digest_config({"settings": self.fit_settings, "inputs": self.input_digests(fit_only=True)})


def plain(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    """A configuration without what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def spec_of(config: Mapping[str, Any]) -> StepSpec:
    """Method of a configuration: the one it names, or the first of its task.

    Raises:
        ConfigError: if there is none.
    """
    name = (config.get("data") or {}).get("method")
    if name:
        return get_method(str(name)).spec
    class_path = str((config.get("model") or {}).get("class_path", ""))
    found = method_of_task(class_path)
    if found is None:
        raise ConfigError(
            f"No method belongs to model.class_path {class_path!r}. Set data.method to one of {', '.join(methods())}."
        )
    return found.spec


def checked_inputs(spec: StepSpec, given: Mapping[str, Any], step: str) -> dict[str, str]:
    """Inputs of a step by port, without those that are null.

    Raises:
        ConfigError: for an unknown port, one that is missing, or the ground truth where it cannot stand in.
    """
    inputs = {port: str(address) for port, address in given.items() if address is not None}
    unknown = sorted(set(inputs) - set(spec.reads))
    if unknown:
        known = f"It reads {', '.join(spec.reads)}" if spec.reads else "It reads images and tags only"
        raise ConfigError(f"{step} has no input {unknown[0]!r}. {known}.")
    for port, read in spec.reads.items():
        if port not in inputs and not read.optional:
            raise ConfigError(
                f"{step} reads {port} ({' or '.join(read.kinds) or 'weights'}), but nothing is named. In a recipe: "
                f"`reads: {{{port}: STEP}}`; for `fit`: --data.inputs.{port} ADDRESS, as `run --dry` shows it."
            )
        if inputs.get(port) == TRUTH and not read.truth:
            raise ConfigError(f"{step} cannot read the ground truth as {port}: it is for evaluation only.")
    return inputs


def _key(content: Mapping[str, Any]) -> str:
    return digest_config(plain(content))[:KEY_LENGTH]


def refresh_epochs(config: Mapping[str, Any]) -> list[int]:
    """Epochs before which masks are made again; round k is made before epoch `refresh_epochs(config)[k]`."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    if isinstance(callbacks, Mapping):
        callbacks = [callbacks]
    for callback in callbacks:
        if str(callback.get("class_path", "")).rpartition(".")[2] == REFRESH_CALLBACK:
            every = int((callback.get("init_args") or {}).get("every", 1))
            return list(range(0, max(1, int(trainer.get("max_epochs", 1))), every))
    return []
