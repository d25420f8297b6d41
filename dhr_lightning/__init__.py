"""Weakly-supervised semantic segmentation from image tags: CAM, MARS, DHR as a Lightning pipeline.

Examples:
    >>> import dhr_lightning as dl
    >>> model = dl.load("frozen", data="my_photos.yaml")  # doctest: +SKIP
    >>> model.predict("new.jpg").overlay().save("new_mask.jpg")  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

DISTRIBUTION = "dhr-lightning"

if TYPE_CHECKING:
    from dhr_lightning import ops
    from dhr_lightning.predicting.api import run
    from dhr_lightning.predicting.model import Model, Settings, load
    from dhr_lightning.predicting.prediction import Prediction

    __version__: str

__all__ = ["Model", "Prediction", "Settings", "__version__", "load", "ops", "run"]
_PLACES = {
    "load": "dhr_lightning.predicting.model",
    "Model": "dhr_lightning.predicting.model",
    "Settings": "dhr_lightning.predicting.model",
    "Prediction": "dhr_lightning.predicting.prediction",
    "run": "dhr_lightning.predicting.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function, a class or text
    # All of it is looked up on use: torch and importlib.metadata take longer to load than a plan to make.
    if name == "ops":
        return importlib.import_module("dhr_lightning.ops")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
