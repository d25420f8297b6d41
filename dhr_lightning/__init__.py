"""Weakly-supervised semantic segmentation from image tags: CAM, MARS, DHR as a Lightning pipeline."""

from typing import TYPE_CHECKING

DISTRIBUTION = "dhr-lightning"

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    # The version is looked up on use: importlib.metadata takes longer to load than a plan to make.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
