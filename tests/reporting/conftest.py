from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dhr_lightning.artifacts.kinds import kind_of, round_number
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.evaluation.kinds import Entry
from dhr_lightning.evaluation.truth import GroundTruth

Mask = NDArray[np.uint8]
Put = Callable[..., None]
STEPS = {  # step and label by address, in the order of the recipe
    "cam/cam": ("cam", "CAM"),
    "crf/mask": ("propagation", "CRF"),
    "wss/mask": ("baseline", "Segmenter"),
    "wss/prediction": ("baseline", "Segmenter"),
    "mars/mask": ("mars", "MARS"),
    "dhr/mask": ("dhr", "DHR"),
    "dhr/prediction": ("dhr", "DHR"),
}


def entries_in(store: ArtifactStore) -> list[Entry]:
    """What lies in a store, as a recipe would list it."""
    found = {}
    for address, split in store.addresses():
        plain = address if round_number(address) is None else address.rpartition("/")[0]
        found[list(STEPS).index(plain), address, split] = Entry(address, split, *STEPS[plain], f"about {plain}")
    return [found[place] for place in sorted(found)]


class SquareTruth(GroundTruth):
    """Images of 16 x 16 pixels: a table in the middle, a bottle on it in every second one, rails below."""

    classes = ClassSet(("background", "table", "bottle", "train"))
    dataset = "squares"
    adjacent = (("bottle", "table"),)
    stuff_names = ("wall", "rails")
    background_pairs = (("rails", "train"),)
    head = ("table",)
    tail = ("bottle",)

    def __init__(self, counts: dict[str, int], *, masks: bool = True) -> None:
        self.counts = counts
        self.masks = masks

    def ids(self, split: str) -> Sequence[str]:
        return [f"{split}_{index}" for index in range(self.counts[split])]

    def image(self, split: str, image_id: str) -> Mask:
        return np.random.default_rng(len(image_id)).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def draw(self, image_id: str) -> Mask:
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 1
        if int(image_id.split("_")[1]) % 2:
            mask[5:8, 6:8] = 2
        return mask

    def mask(self, split: str, image_id: str) -> Mask | None:
        return self.draw(image_id) if self.masks else None

    def tags(self, split: str, image_id: str) -> set[int]:
        return set(np.unique(self.draw(image_id)).tolist()) - {0}

    def stuff(self, split: str, image_id: str) -> Mask | None:
        stuff = np.zeros((16, 16), np.uint8)
        stuff[10:] = 1
        return stuff


@pytest.fixture
def truth() -> SquareTruth:
    return SquareTruth({"train": 4, "val": 2})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", "squares")


@pytest.fixture
def put(store: ArtifactStore, truth: SquareTruth) -> Put:
    """Write one artifact: `draw(image_id)` gives the arrays; `stop` leaves it unfinished after so many images."""

    def write(
        address: str,
        split: str,
        draw: Callable[[str], object],
        *,
        ids: Sequence[str] = (),
        stop: int = -1,
        inputs: Sequence[str] = (),
    ) -> None:
        names = list(ids) or list(truth.ids(split))
        identity = Manifest.create(address, "squares", split, ids=names, settings={}, inputs=dict.fromkeys(inputs, "0"))
        palette = truth.classes.palette if kind_of(address).codec.needs_palette else None
        with store.open_writer(address, split, identity=identity, ids=names, palette=palette) as writer:
            for image_id in names[: stop if stop >= 0 else None]:
                arrays = draw(image_id)
                writer.write(image_id, *(arrays if isinstance(arrays, tuple) else (arrays,)))
            if stop < 0:
                writer.seal()

    return write


@pytest.fixture
def lose_bottle(truth: SquareTruth) -> Callable[[str], Mask]:
    """The failures on purpose: bottles become table, the rails become train."""

    def draw(image_id: str) -> Mask:
        mask = truth.draw(image_id)
        mask[mask == 2] = 1
        mask[14:] = 3
        return mask

    return draw


@pytest.fixture
def activation(truth: SquareTruth) -> Callable[[str], tuple[object, object]]:
    """Activation maps `(K, 4, 4)` that are 1 on the table and 0.1 elsewhere."""

    def draw(image_id: str) -> tuple[object, object]:
        keys = np.array(sorted(truth.tags("train", image_id)), np.int16)
        cam = np.full((len(keys), 4, 4), 0.1, np.float16)
        cam[0, 1:3, 1:3] = 1
        return keys, cam

    return draw
