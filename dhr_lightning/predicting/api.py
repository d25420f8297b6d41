"""`dhr_lightning.run`: a recipe from Python, as the command `run` does it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dhr_lightning.pipeline.command import run_request
from dhr_lightning.pipeline.request import Request
from dhr_lightning.predicting.model import Model, load
from dhr_lightning.progress import configure_logging


def run(recipe: str | None = None, *, data: str | Path, settings: Sequence[str] = (), **request: Any) -> Model:
    """Bring a recipe up to date and load its last segmenter.

    Args:
        recipe: name or file; default as for the command `run`.
        data: name of a dataset, a YAML file, or a folder of photos with tags.
        settings: overrides as on the command line, such as `("--cam.lr", "0.01")`.
        request: `root`, `workspace`, `weights`, `download`, `swaps`, `drops`, `overlays`, see
            `pipeline.request.Request`.

    Raises:
        DHRError: for anything that a user can repair.
    """
    configure_logging()
    wanted = Request(recipe, str(data), overrides=tuple(settings), **request)
    plan = run_request(wanted)
    return load(plan.recipe.name, data=str(data), overrides=tuple(settings), **request)
