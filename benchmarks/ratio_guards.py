"""What the checks of a run cost: seconds inside them as a share of the seconds of a whole run.

Paired runs with and without them differ by less than two runs of the same; so the seconds in the checks are counted
while a run goes on.
"""

import functools
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ratio_base import Options, Ratio

GUARDS = (
    "artifacts.files.expect_finite",
    "data.files.check_mask",
    "data.loading.shared_memory_free",
    "data.preparation.check.check_dataset",
    "data.preparation.check.photos_digest",
    "methods.base.BaseTask.check_loss",
    "methods.inference.check_finite_outputs",
    "models.checkpoints.check_finite_weights",
    "models.checkpoints.read_checkpoint",
    "pipeline.space.refuse_small_disk",
    "provenance.recorded.check_inputs",
    "provenance.start_checks.check_arguments",
    "provenance.start_checks.check_packages",
    "provenance.start_checks.check_trainers",
    "provenance.start_checks.check_weights",
)
DATA = "--data.options={train: 200, val: 80}"
RUN = ("quickstart", DATA, "--data.num_workers=0")
EPOCHS = ("--cam.trainer.max_epochs=4", "--baseline.trainer.max_epochs=1", "--dhr.trainer.max_epochs=2")


@contextmanager
def counted(names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Seconds inside some functions, wherever in the package they have been imported; nested calls count once."""
    seconds, running = dict.fromkeys(names, 0.0), [0]
    undo: list[Callable[[], None]] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timing(*args: Any, **kwargs: Any) -> Any:
            start, outermost = time.perf_counter(), running[0] == 0
            running[0] += 1
            try:
                return function(*args, **kwargs)
            finally:
                running[0] -= 1
                seconds[name] += (time.perf_counter() - start) * outermost

        return timing

    for name in names:
        owner, last = _find(name)
        function = getattr(owner, last)
        places = [owner] if isinstance(owner, type) else [module for module in _modules() if last in vars(module)]
        for place in places:
            if getattr(place, last) is function:
                setattr(place, last, timed(name, function))
                undo.append(functools.partial(setattr, place, last, function))
    try:
        yield seconds
    finally:
        for step in undo:
            step()


def _find(name: str) -> tuple[Any, str]:
    """What holds a function of the package, a module or a class, and its name there."""
    parts = name.split(".")
    if parts[-2][0].isupper():
        module = importlib.import_module(f"dhr_lightning.{'.'.join(parts[:-2])}")
        return getattr(module, parts[-2]), parts[-1]
    return importlib.import_module(f"dhr_lightning.{'.'.join(parts[:-1])}"), parts[-1]


def _modules() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.startswith("dhr_lightning")]


def rows(options: Options) -> Iterator[Ratio]:
    """The share of all checks together."""
    from dhr_lightning.pipeline import command, runner  # noqa: F401 - holds functions that are counted

    with tempfile.TemporaryDirectory() as folder:
        words = [*RUN, *EPOCHS, "--workspace", folder, "--root", str(Path(folder) / "data")]
        command.prepared_plan(command.split_request(words))  # draws the images, which is not measured
        with counted(GUARDS) as seconds:
            start = time.perf_counter()
            status = command.run([*words, "--no-forecast"])
            whole = time.perf_counter() - start
    if status:
        raise SystemExit(f"The run that is measured failed with status {status}.")
    most = max(seconds, key=lambda name: seconds[name])
    detail = f"{sum(seconds.values()):.2f} of {whole:.0f} s, 200 images; most of it {most.rpartition('.')[2]}"
    yield Ratio("checks of a run", 100 * sum(seconds.values()) / whole, 2, at_most=True, unit="%", detail=detail)
