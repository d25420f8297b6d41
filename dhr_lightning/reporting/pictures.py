"""Pictures of the report: which images to show, and small PNG files as data URIs."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.drawing import heat
from dhr_lightning.evaluation.counting import SplitResult
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.masks import read_labels
from dhr_lightning.evaluation.truth import GroundTruth, UInt8

MAX_SIDE = 256
_CLASS_WEIGHT = 0.78
_PAPER = 236.0
_HEAT_COLOURS = 128


@dataclass(frozen=True)
class Picture:
    """One thumbnail: column name, figure under it, alt text, data URI and size in pixels."""

    label: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """One image with all its masks.

    Args:
        image_id: id of the image.
        tags: class values of its tags.
        note: what is special about it, may be empty.
        pictures: image, masks, truth.
    """

    image_id: str
    tags: tuple[int, ...]
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """Rows under one heading, and the class values seen in them."""

    title: str
    intro: str
    rows: tuple[Row, ...]
    values: frozenset[int]


@dataclass(frozen=True)
class Drawn:
    """What is drawn of each image.

    Args:
        columns: kinds of masks, in order.
        maps: addresses of maps of strengths by the step that wrote them; each is drawn before the step's masks.
    """

    columns: Sequence[MaskKind]
    maps: Mapping[str, str] = field(default_factory=dict)


def build_galleries(
    store: ArtifactStore, truth: GroundTruth, result: SplitResult, drawn: Drawn, *, max_images: int
) -> list[Gallery]:
    """Pick the most telling images of a split and draw them.

    Args:
        store: the artifacts.
        truth: images, masks and tags.
        result: counts of the split.
        drawn: what to draw.
        max_images: rows of all galleries of the split together.

    Returns:
        Galleries that have at least one row; no image is shown twice.
    """
    galleries = []
    for title, intro, ids in _choose(result, max_images=max_images):
        rows, values = [], set[int]()
        for image_id in ids:
            row, seen = _draw_row(store, truth, result, drawn, image_id)
            rows.append(row)
            values |= seen
        if rows:
            galleries.append(Gallery(title, intro, tuple(rows), frozenset(values)))
    return galleries


def picture_columns(kinds: Sequence[MaskKind]) -> list[MaskKind]:
    """All kinds of a split, but only the latest mask refresh."""
    rounds = [kind for kind in kinds if kind.is_round]
    return [kind for kind in kinds if not kind.is_round or kind == rounds[-1]]


def _choose(result: SplitResult, *, max_images: int) -> list[tuple[str, str, list[str]]]:
    of_latest = (counts for counts in result.mask_counts if counts.kind == result.after)
    judge = next(of_latest, result.mask_counts[-1])
    scores = {image_id: score for image_id, score in judge.image_miou.items() if not np.isnan(score)}
    wishes = []
    if result.before and result.after and any(result.changed.values()):
        title = f"Most changed from {result.before.label} to {result.after.label}"
        ranked = sorted(result.changed, key=lambda key: (-result.changed[key], key))
        wishes.append((title, "The images where the two masks differ in the largest share of pixels.", ranked))
    if scores:
        ranked = sorted(scores, key=lambda key: (scores[key], key))
        name = judge.kind.label
        wishes.append((f"Worst {name} masks", f"Lowest IoU of {name} masks within the image.", ranked))
        wishes.append((f"Best {name} masks", f"Highest IoU of {name} masks within the image.", ranked[::-1]))
    if not wishes:
        wishes.append(("A sample", "The first images of the split.", list(judge.kind.ids)))
    taken: set[str] = set()
    chosen = []
    for index, (title, intro, ranked) in enumerate(wishes):
        quota = max_images // len(wishes) + (index < max_images % len(wishes))
        ids = [image_id for image_id in ranked if image_id not in taken][:quota]
        taken.update(ids)
        chosen.append((title, intro, ids))
    return chosen


def _draw_row(
    store: ArtifactStore, truth: GroundTruth, result: SplitResult, drawn: Drawn, image_id: str
) -> tuple[Row, set[int]]:
    image = truth.image(result.split, image_id)
    target = truth.mask(result.split, image_id)
    tags = tuple(sorted(truth.tags(result.split, image_id)))
    scores = {counts.kind: counts.image_miou.get(image_id, float("nan")) for counts in result.mask_counts}
    size = _thumbnail_size(image)
    photo = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    names = ", ".join(truth.classes.names[tag] for tag in tags) or "no tags"
    pictures = [Picture("Image", "", f"Image {image_id}: {names}", _data_uri(photo), *size)]
    seen: set[int] = set()

    def show(label: str, score: str, mask: UInt8) -> None:
        seen.update(np.unique(mask).tolist())
        alt = f"{label} mask of {image_id}: {_areas(mask, truth)}" + (f"; mean IoU {score}" if score else "")
        pictures.append(Picture(label, score, alt, overlay_uri(photo, mask, truth), *size))

    for kind in (one for one in drawn.columns if image_id in one.ids):
        pictures += _maps(store, drawn, kind, image_id, photo)
        labels = read_labels(store, truth, kind, image_id, size=(image.shape[0], image.shape[1]))
        show(kind.short_label, "" if np.isnan(scores[kind]) else f"{100 * scores[kind]:.1f}", labels)
    if target is not None:
        show("Truth", "", target)
    note = f"{100 * result.changed[image_id]:.0f} % of pixels changed" if image_id in result.changed else ""
    return Row(image_id, tags, note, tuple(pictures)), seen


def _maps(store: ArtifactStore, drawn: Drawn, kind: MaskKind, image_id: str, photo: Image.Image) -> Iterator[Picture]:
    """The map of strengths that the step of some masks wrote beside them, as heat over the photo."""
    address = drawn.maps.get(kind.step)
    path = store.path(address, kind.split, image_id) if address else None
    if path is None or not path.is_file():
        return
    strength = Image.fromarray(read_mask(path)).resize(photo.size, Image.Resampling.BILINEAR)
    picture = Image.fromarray(heat(np.asarray(photo), np.asarray(strength, np.float64) / 255))
    label = f"{kind.short_label}: boundaries"
    yield Picture(label, "", f"{label} of {image_id}", _data_uri(picture.quantize(_HEAT_COLOURS)), *photo.size)


def _areas(mask: UInt8, truth: GroundTruth) -> str:
    values, counts = np.unique(mask, return_counts=True)
    parts = [
        f"{_value_name(int(value), truth)} {100 * count / mask.size:.0f} %"
        for value, count in zip(values, counts, strict=True)
        if value or not truth.classes.has_background
    ]
    return ", ".join(parts) or "all background"


def _value_name(value: int, truth: GroundTruth) -> str:
    return truth.classes.names[value] if value < truth.classes.num_classes else "no class"


def overlay_uri(photo: Image.Image, mask: UInt8, truth: GroundTruth) -> str:
    """Mask colours over a pale, smoothed grey version of the photo, as a palette PNG of a few kilobytes.

    Args:
        photo: RGB thumbnail.
        mask: `(H, W)` class values of the full image.
        truth: gives palette and background.

    Returns:
        A `data:image/png` URI of the size of `photo`.
    """
    labels = np.asarray(Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST))
    values, ranks = np.unique(labels, return_inverse=True)
    levels = max(1, min(8, 256 // len(values)))
    grey = np.asarray(photo.convert("L").filter(ImageFilter.GaussianBlur(1.2)))
    steps = np.minimum(grey.astype(np.int64) * levels // 256, levels - 1)  # (h, w)
    shade = (np.arange(levels, dtype=np.float64) + 0.5) / levels * 255
    colours = truth.classes.palette[values].astype(np.float64)  # (V, 3)
    weight = np.full(len(values), _CLASS_WEIGHT)
    if truth.classes.has_background:
        colours[values == 0] = _PAPER
    table = weight[:, None, None] * colours[:, None] + (1 - weight[:, None, None]) * shade[None, :, None]  # (V, L, 3)
    index = (ranks.reshape(labels.shape) * levels + steps).astype(np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(table.reshape(-1, 3).round().astype(np.uint8).tobytes())
    return _data_uri(picture)


def _thumbnail_size(image: npt.NDArray[np.uint8]) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
