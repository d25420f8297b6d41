"""The command line: Lightning's fit, validate, test and predict, and commands of our own."""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from dhr_lightning.callbacks.average import WeightAverage
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from dhr_lightning.callbacks.laps import current_laps
from dhr_lightning.callbacks.loggers import ContinuedCSVLogger
from dhr_lightning.callbacks.panels import Panels
from dhr_lightning.callbacks.progress import PlainProgress
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh  # noqa: F401 - named shortly in configurations
from dhr_lightning.callbacks.start import StepStart
from dhr_lightning.callbacks.writers import ArtifactWriters
from dhr_lightning.config import SECTIONS, apply_overrides, resolve, resolve_text, split_options
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ConfigError, DataError, DHRError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.ops import bfloat16
from dhr_lightning.provenance.identity import StepIdentity, spec_of
from dhr_lightning.provenance.start_checks import check_background, check_weights
from dhr_lightning.ranks import ranks
from dhr_lightning.shards import Shard

log = logging.getLogger("dhr_lightning")


class Together(DDPStrategy):
    """Gradients are averaged over processes; tasks that collect statistics instead have none."""

    def configure_ddp(self) -> None:
        """Wrap the task, if there is anything to average."""
        if self.model is not None and any(one.requires_grad for one in self.model.parameters()):
            super().configure_ddp()


class DHRCommandLine(LightningCLI):
    """Lightning's command line with our defaults: loggers, checkpoints, progress and artifact writers.

    Args:
        identity: of the step, if it has all its inputs: where its artifacts go, and what their manifests say.
        run_dir: continue logging in this folder; default: a new version under `runs/`.
        checkpoint: the weights that `predict` will use.
        in_recipe: whether a recipe runs it, whose artifacts may be replaced.
        shard: which of several jobs predicts.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        identity: StepIdentity | None,
        run_dir: Path | None = None,
        checkpoint: Path | None = None,
        in_recipe: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self.identity, self.run_dir, self.checkpoint, self.in_recipe = identity, run_dir, checkpoint, in_recipe
        self.shard = shard
        super().__init__(
            BaseTask,
            WSSSDataModule,
            args=list(arguments),
            subclass_mode_model=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "description": "Train and run one task; a task, its data and its trainer come from YAML files.",
                "allow_abbrev": False,
                **{name: {"allow_abbrev": False} for name in self.subcommands()},
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the class list from the data."""
        parser.link_arguments("data.class_names", "model.init_args.class_names", apply_on="instantiate")
        parser.link_arguments("data.has_background", "model.init_args.has_background", apply_on="instantiate")

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        """Add what every run has, unless the configuration says otherwise."""
        if self.identity is not None:
            self.datamodule.attach(self.identity)
        self.datamodule.shard = self.shard
        trainer = self._get(self.config_init, "trainer")
        if self.subcommand == "predict":
            options["logger"], self.save_config_callback = False, None  # a fit's folder stays as the fit left it
        elif trainer.logger in (None, True):
            options["logger"] = self._loggers()
        together = ranks()
        options["use_distributed_sampler"] = False  # the loaders of the data know their rank
        if together.size > 1:
            options |= {"devices": together.local, "num_nodes": together.machines}
            options |= {"strategy": Together()} if trainer.strategy == "auto" else {}
        elif trainer.devices == "auto":
            options["devices"] = 1  # several on request only: a stage runs on one
        if str(trainer.precision).startswith("bf16") and not bfloat16.pays_on(trainer.accelerator):
            options["precision"] = "32-true"
            log.info(
                "%s: computes in float32: this processor only emulates bfloat16 (trainer.precision %s), which takes "
                "many times as long", self.model.step, trainer.precision,
            )  # fmt: skip
        if trainer.enable_checkpointing is None:
            options["enable_checkpointing"] = True
        if trainer.plugins is None:
            options["plugins"] = [AtomicCheckpointIO()]
        bar = TQDMProgressBar() if sys.stderr.isatty() else PlainProgress()
        start = StepStart(self.identity, self.checkpoint, in_recipe=self.in_recipe)
        given = list(self._get(self.config_init, "trainer.callbacks") or [])
        extra: list[L.Callback] = [start, ArtifactWriters(self.checkpoint), bar]
        extra += [] if any(isinstance(one, LastCheckpoint) for one in given) else [LastCheckpoint()]
        extra += current_laps()
        if self.model.hparams.get("ema") is not None:
            extra.append(WeightAverage(self.model.hparams.ema, self.model.hparams.ema_warmup))
        if trainer.enable_model_summary is None:
            options["enable_model_summary"] = False
        if not sys.stderr.isatty() and trainer.enable_progress_bar is None:
            options["enable_progress_bar"] = False
        if trainer.logger is not False and self.subcommand != "predict":
            extra += [LearningRateMonitor(), Panels()]
        options["callbacks"] = [*given, *extra]
        return super().instantiate_trainer(**options)

    def before_instantiate_classes(self) -> None:
        """Refuse a fit that makes no sense, before anything is built.

        Raises:
            DHRError: for masks that cannot exist, and for random weights on photos that nobody asked for.
        """
        if self.subcommand == "fit" and self.identity is not None:
            check_background(self.identity.config, step=self.identity.step)
            check_weights({self.identity.step: self.identity.config}, in_recipe=False)

    def before_fit(self) -> None:
        """Say the effective batch where it is not the one in the configuration."""
        parts = {
            "images": self.datamodule.batch_size,
            "accumulated": self.trainer.accumulate_grad_batches,
            "devices": self.trainer.world_size,
        }
        if parts["accumulated"] > 1 or parts["devices"] > 1:
            text = " x ".join(f"{number} {what}" for what, number in parts.items())
            log.info("%s: effective batch %d = %s", self.model.step, math.prod(parts.values()), text)

    def instantiate_classes(self) -> None:
        """Show what a constructor refuses as it says it, not as it looks to the parser.

        Raises:
            DHRError: the error of the constructor.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, DHRError):
                raise cause from error
            raise ConfigError(f"The configuration cannot be used: {cause}") from error

    def _parse_ckpt_path(self) -> None:
        """Take weights alone from a checkpoint: Lightning would let its arguments win over the configuration."""

    def _loggers(self) -> list[Any]:
        run = self.identity.run if self.identity else self.model.spec.name
        folder = self.datamodule.workspace / "runs" / self.datamodule.info.name / run
        version = self.run_dir.name if self.run_dir else None
        board = TensorBoardLogger(folder.parent, name=folder.name, version=version, default_hp_metric=False)
        return [board, ContinuedCSVLogger(folder.parent, name=folder.name, version=board.version)]


def run_lightning(
    arguments: Sequence[str], *, run_dir: Path | None = None, in_recipe: bool = False, shard: Shard | None = None
) -> DHRCommandLine:
    """Run one of Lightning's subcommands after merging all `--config` files into one.

    Args:
        arguments: `fit|validate|test|predict`, then options.
        run_dir: continue logging in this folder.
        in_recipe: whether a recipe runs it.
        shard: which of several jobs predicts.

    Raises:
        DHRError: for anything a user can repair.
        KeyboardInterrupt: if the user stops it.
    """
    subcommand, *rest = arguments
    paths, overrides, others = split_arguments(rest)
    config = apply_overrides(read_configs(paths), overrides)
    if config:
        spec = spec_of(config)
        config["model"] = {"class_path": spec.task, **(config.get("model") or {})}
        config["data"] = {"method": spec.name, **(config.get("data") or {})}
    quiet()
    parsed = [subcommand]
    if config:
        parsed += ["--config", yaml.safe_dump(config, sort_keys=False)]
    given = {option.name: option.value for option in split_options(others)}
    if subcommand == "predict" and "--return_predictions" not in given:
        others = [*others, "--return_predictions", "false"]
    if "--ckpt_path" in given and "--weights_only" not in given:
        others = [*others, "--weights_only", "true"]
    checkpoint = given.get("--ckpt_path")
    try:
        return DHRCommandLine(
            [*parsed, *others],
            identity=StepIdentity(config) if config else None,
            run_dir=run_dir,
            checkpoint=Path(checkpoint) if checkpoint else None,
            in_recipe=in_recipe,
            shard=shard,
        )
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning ends the process instead of handing it on
            raise KeyboardInterrupt from error
        raise


def read_configs(paths: Sequence[str]) -> dict[str, Any]:
    """Merge `--config` arguments: files, or one configuration as YAML text, as a recipe hands it over."""
    if len(paths) == 1 and "\n" in paths[0]:
        return resolve_text(paths[0])
    return resolve(paths) if paths else {}


def lightning_command(name: str, arguments: Sequence[str]) -> int:
    """`fit`, `validate`, `test` or `predict` from the command line.

    Raises:
        DataError: if `predict` had no image. In a recipe a split may be empty.
        DHRError: for anything else that a user can repair.
    """
    data = run_lightning([name, *arguments]).datamodule
    if name == "predict" and not any(data.records(split) for split in data.predict_splits):
        splits = ", ".join(data.predict_splits) or "none"
        raise DataError(
            f"There was no image to predict: the splits that {data.step} predicts ({splits}) are empty in {data.root}. "
            "Add images to their lists, or choose another dataset."
        )
    return 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Split command-line options into configuration files, overrides of the configuration, and all others."""
    paths: list[str] = []
    overrides: list[str] = []
    others: list[str] = []
    for option in split_options(arguments):
        if option.name in ("--config", "-c"):
            if not option.value:
                raise ConfigError("--config needs a file. Write --config methods/cam.yaml.")
            paths.append(option.value)
        elif option.name.startswith("--") and option.keys[0] in SECTIONS:
            overrides += option.words
        else:
            others += option.words
    return paths, overrides, others


def quiet() -> None:
    """Silence notes of the libraries that a user can do nothing about."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*The number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*`training_step` returned `None`.*",
        ".*`LightningModule.configure_optimizers` returned `None`.*",
        ".*Found .* module\\(s\\) in eval mode.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*No positive samples found in target.*",
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*LightningCLI's args parameter is intended.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*GPU available but not used.*",
        ".*litmodels.*",
        ".*compute.* method of metric ConfusionMatrix was called before.*",
        ".*Total length of .* across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    torch.set_float32_matmul_precision("high")
