"""`python -m dhr_lightning`: one entry for every command."""

import logging
import sys
from collections.abc import Callable, Sequence

from dhr_lightning.progress import configure_logging, exit_status

LIGHTNING = {
    "fit": "train one task from YAML files",
    "validate": "score a checkpoint on the validation split",
    "test": "the same, under Lightning's name for it",
    "predict": "write a task's artifacts from a checkpoint",
}
COMMANDS = {
    "run": "run a recipe: make what is not there or out of date, and write the report",
    "seal": "declare complete what jobs with `run --shard I/N` have written",
    "init": "look at a folder of photos with tags and write its configuration",
    "prepare": "make or check a dataset",
    "doctor": "look at every file and tag of a dataset and say what is wrong",
    "import": "bring in masks, CAMs, features, tags or lists that others made",
    "status": "show every artifact as fresh, stale (why) or absent",
    "gc": "remove what no recipe needs that ran here",
    "weights": "list, fetch or register pretrained weights, with licence and supervision",
    "segment": "predict new photos: masks, confidence, overlays and a table",
    "evaluate": "score a folder of masks against ground truth",
    "export": "hand predictions over, for example to the VOC server",
    "report": "write report.html and report.json",
}
log = logging.getLogger("dhr_lightning")


def usage() -> str:
    """The list of commands."""
    lines = ["usage: python -m dhr_lightning COMMAND [options]", "", "Commands (each has --help):"]
    lines += [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    lines += ["", "Lightning's commands (--config FILE ..., --help):"]
    lines += [f"  {name:<10}{text}" for name, text in LIGHTNING.items()]
    return "\n".join(lines)


def _command(name: str) -> Callable[[Sequence[str]], int] | None:
    """Import only what the command needs: `status` must not wait for torch."""
    if name in LIGHTNING:
        from dhr_lightning.cli import lightning_command

        return lambda arguments: lightning_command(name, arguments)
    if name in COMMANDS:
        from dhr_lightning import commands

        command: Callable[[Sequence[str]], int] = getattr(commands, "import_" if name == "import" else name)
        return command
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 checks failed, 2 an error that the user can repair."""
    configure_logging()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        log.info(usage())
        return 0
    command = _command(name)
    if command is None:
        log.error("Unknown command %r.\n\n%s", name, usage())
        return 2
    return exit_status(lambda: command(rest))


if __name__ == "__main__":
    sys.exit(main())
