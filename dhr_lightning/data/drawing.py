"""Panels of photos and masks with class colours and names."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dhr_lightning.data.catalog import ClassSet

Pixels = npt.NDArray[np.uint8]
_GAP, _TITLE = 6, 22


def overlay(image: Pixels, mask: Pixels, classes: ClassSet, *, strength: float = 0.72) -> Pixels:
    """Blend class colours over a greyed photo; background stays the photo, ignored pixels turn white.

    Args:
        image: `(H, W, 3)` uint8.
        mask: `(H, W)` class values.
        classes: class list with palette.
        strength: opacity of the colours, in [0, 1].
    """
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1) * 0.75 + 48
    colours = classes.palette[mask].astype(np.float64)
    colours[mask == classes.ignore_index] = 255
    shown = (mask != 0)[..., None] if classes.has_background else np.ones((*mask.shape, 1), bool)
    blended: Pixels = (
        np.where(shown, strength * colours + (1 - strength) * grey, grey).round().clip(0, 255).astype(np.uint8)
    )
    return blended


def heat(image: Pixels, score: npt.NDArray[np.floating]) -> Pixels:
    """Blend a score `(H, W)` in [0, 1] over a greyed photo, from blue over yellow to red."""
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1) * 0.75 + 48
    s = np.clip(score, 0, 1)[..., None]
    stops = np.array([[40, 60, 160], [70, 190, 200], [250, 220, 60], [225, 40, 30]], float)
    place = s * (len(stops) - 1)
    low = np.minimum(place.astype(int)[..., 0], len(stops) - 2)
    part = place - low[..., None]
    colour = stops[low] * (1 - part) + stops[low + 1] * part
    weight = 0.7 * s**0.5
    blended: Pixels = ((1 - weight) * grey + weight * colour).round().clip(0, 255).astype(np.uint8)
    return blended


def panel(
    rows: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    legend: Sequence[str],
    classes: ClassSet,
    *,
    side: int = 192,
) -> Pixels:
    """Arrange pictures in rows under column titles, with a colour legend below.

    Args:
        rows: one list of `(H, W, 3)` uint8 pictures per image; all rows as long as `titles`.
        titles: column titles.
        legend: names of the classes to explain.
        classes: class list with palette.
        side: width of a column in pixels; pictures are scaled to it.

    Returns:
        One picture `(H, W, 3)` uint8 on white.
    """
    scaled = [[_fit(picture, side) for picture in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in scaled]
    width = len(titles) * (side + _GAP) + _GAP
    entries, lines = _legend_places(legend, width)
    height = _TITLE + sum(h + _GAP for h in heights) + lines * _TITLE + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text(
            (_GAP + column * (side + _GAP) + side / 2, _TITLE / 2), title, fill=(40, 40, 40), font=font, anchor="mm"
        )
    top = _TITLE
    for row, row_height in zip(scaled, heights, strict=True):
        for column, picture in enumerate(row):
            canvas.paste(picture, (_GAP + column * (side + _GAP), top))
        top += row_height + _GAP
    for name, left, line in entries:
        y = top + line * _TITLE + _TITLE / 2
        colour = tuple(int(c) for c in classes.palette[classes.names.index(name)])
        draw.rectangle((left, y - 6, left + 14, y + 6), fill=colour)
        draw.text((left + 20, y), name, fill=(40, 40, 40), font=font, anchor="lm")
    return np.array(canvas)


def _fit(picture: Pixels, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((side, max(1, round(image.height * side / image.width))), Image.Resampling.LANCZOS)


def _legend_places(names: Sequence[str], width: int) -> tuple[list[tuple[str, int, int]], int]:
    """Left edge and line of each legend entry, and the number of lines."""
    places, left, line = [], _GAP, 0
    for name in names:
        needed = 34 + 8 * len(name)
        if left + needed > width and left > _GAP:
            left, line = _GAP, line + 1
        places.append((name, left, line))
        left += needed
    return places, line + 1 if names else 0
