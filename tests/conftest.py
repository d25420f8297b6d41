"""What all tests share: no network, no device unless there is one, and a tiny dataset with known content."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dhr_lightning.data.catalog import ClassSet, Record, voc_palette
from dhr_lightning.data.datasets.voc import VOC_CLASSES, read_voc
from dhr_lightning.errors import set_run_command

# Read by huggingface_hub at import: a download fails at once, and no weights cached on this machine are found.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.environ["TORCH_HOME"] = os.path.join(os.sep, "nonexistent", "weights")

# Processes that share the cores would wait for each other's threads; torch reads this when it is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_recipe_at_hand() -> None:
    """Messages name the plain command, as in a new process, whatever an earlier test planned."""
    set_run_command()


class NetworkBlockedError(Exception):
    """A test reached for the network. No OSError, so that no code under test can take it for a failed download."""


class Square(NamedTuple):
    """A coloured square of one class."""

    name: str
    left: int
    top: int
    side: int


COLOURS = {
    "cat": (200, 40, 40),
    "dog": (40, 200, 40),
    "car": (40, 40, 200),
    "bus": (200, 200, 40),
    "person": (200, 40, 200),
}
TINY_VOC: dict[str, dict[str, tuple[tuple[int, int], tuple[Square, ...]]]] = {
    "train": {
        "2007_000001": ((64, 48), (Square("cat", 8, 8, 20),)),
        "2007_000002": ((48, 64), (Square("dog", 4, 6, 16), Square("cat", 26, 36, 18))),
        "2007_000003": ((40, 56), (Square("car", 10, 20, 22),)),
        "2007_000004": ((64, 64), (Square("bus", 30, 4, 24), Square("person", 6, 34, 14))),
    },
    "val": {
        "2007_000005": ((56, 48), (Square("cat", 4, 4, 18), Square("car", 30, 20, 20))),
        "2007_000006": ((48, 48), (Square("dog", 14, 12, 24),)),
    },
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if item.get_closest_marker("photos") and not os.environ.get("DHR_PHOTOS"):
        pytest.skip("needs real photos: set DHR_PHOTOS")


@pytest.fixture(scope="session", autouse=True)
def block_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine, and every name that is not this machine's."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(host: object) -> None:
        if host is not None and host not in _LOCAL:
            raise NetworkBlockedError(f"A test reached for the network: {host!r}.")

    def guard(original: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(address[0])
            return original(self, address)

        return guarded

    def guarded_lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        refuse(host)
        return lookup(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos of coloured squares in the layout of VOC; the content is `TINY_VOC`. Read only: see `voc_copy`."""
    root = tmp_path_factory.mktemp("tiny") / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, images in TINY_VOC.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for image_id, (size, squares) in images.items():
            _write_photo(root, image_id, size, squares)
    return root


def _write_photo(root: Path, image_id: str, size: tuple[int, int], squares: tuple[Square, ...]) -> None:
    noise = np.random.default_rng(int(image_id[-3:])).integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
    photo, mask = Image.fromarray(noise), Image.new("P", size, 0)
    mask.putpalette(voc_palette().tobytes())
    for name, left, top, side in squares:
        box = (left, top, left + side - 1, top + side - 1)
        ImageDraw.Draw(photo).rectangle(box, fill=COLOURS[name])
        ImageDraw.Draw(mask).rectangle(box, fill=VOC_CLASSES.index(name), outline=255)
    photo.save(root / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
    mask.save(root / "SegmentationClass" / f"{image_id}.png")
    objects = "\n".join(f"  <object>\n    <name>{square.name}</name>\n  </object>" for square in squares)
    (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>\n{objects}\n</annotation>\n")


@pytest.fixture
def voc_copy(tiny_voc: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_voc` that the test may damage."""
    return Path(shutil.copytree(tiny_voc, tmp_path / "VOC2012"))


@pytest.fixture(scope="session")
def voc_classes() -> ClassSet:
    return ClassSet(VOC_CLASSES)


@pytest.fixture
def train_records(tiny_voc: Path, voc_classes: ClassSet) -> list[Record]:
    return read_voc(tiny_voc, "train", voc_classes)


@pytest.fixture
def val_records(tiny_voc: Path, voc_classes: ClassSet) -> list[Record]:
    return read_voc(tiny_voc, "val", voc_classes)
