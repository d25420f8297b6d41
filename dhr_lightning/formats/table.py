"""All formats by name."""

from collections.abc import Mapping

from dhr_lightning.errors import ConfigError
from dhr_lightning.formats import coco, cvat, labelme, labelstudio, plain, yolo
from dhr_lightning.formats.base import Format
from dhr_lightning.steps import did_you_mean

_ALL = (
    coco.FORMAT,
    coco.POLYGONS,
    cvat.CVAT,
    cvat.VOC,
    labelme.FORMAT,
    labelstudio.FORMAT,
    yolo.SEMANTIC,
    yolo.POLYGONS,
    plain.FORMAT,
)
FORMATS: Mapping[str, Format] = {one.name: one for one in _ALL}


def get_format(name: str) -> Format:
    """A format by name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"There is no format {name!r}. {did_you_mean(name, FORMATS)}")
    return FORMATS[name]
