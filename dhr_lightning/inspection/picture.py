"""One picture of a dataset: a sheet of photos with their tags, and how many images each class has."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.files import read_image
from dhr_lightning.inspection.scan import Scan
from dhr_lightning.inspection.tags import Counts, tag_matrix

_COLUMNS, _CELL, _CAPTION, _GAP = 6, 200, 52, 8
_LINE = 16
_BARS, _ROW = 3, 20
_INK, _PALE, _SECOND = (40, 40, 40), (235, 235, 235), (150, 150, 150)
_HEADING = 34

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_sheet(
    scans: Sequence[Scan], counts: Mapping[str, Counts], classes: ClassSet, *, title: str, images: int = 24
) -> Image.Image:
    """Draw photos of the training split with their tags, and a histogram of all classes below.

    Args:
        scans: what the files hold; unreadable photos are left out.
        counts: images per class of each split.
        classes: class list; bars have the colours of its masks.
        title: first line of the picture.
        images: at most so many photos, >= 1.

    Returns:
        An RGB picture on white.
    """
    split = "train" if "train" in counts else next(iter(counts))
    shown = choose([s for s in scans if s.split == split and s.readable], classes, images)
    rows = -(-len(shown) // _COLUMNS)
    lines = -(-classes.num_tags // _BARS)
    width = _COLUMNS * (_CELL + _GAP) + _GAP
    top = 2 * _HEADING + rows * (_CELL + _CAPTION + _GAP)
    sheet = Image.new("RGB", (width, top + lines * _ROW + 2 * _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _HEADING / 2), title, fill=_INK, font=_font(18), anchor="lm")
    for place, scan in enumerate(shown):
        row, column = divmod(place, _COLUMNS)
        _paste(
            sheet, scan, classes, left=_GAP + column * (_CELL + _GAP), top=_HEADING + row * (_CELL + _CAPTION + _GAP)
        )
    legend = " + ".join(f"{name} ({'light' if name == 'val' else 'class colour'})" for name in counts)
    draw.text((_GAP, top - _HEADING / 2), f"Images per class: {legend}", fill=_INK, font=_font(15), anchor="lm")
    _histogram(draw, counts, classes, top=top, width=width)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the picture as PNG, so that `path` never holds half of it."""
    buffer = BytesIO()
    sheet.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def choose(scans: Sequence[Scan], classes: ClassSet, images: int) -> list[Scan]:
    """Pick photos such that each class is shown as evenly as possible, always the same ones.

    Args:
        scans: readable photos.
        classes: class list.
        images: how many, >= 1.
    """
    tags = tag_matrix([scan.record for scan in scans], classes).astype(np.float64)  # (N, T)
    left, seen = np.ones(len(scans), bool), np.zeros(classes.num_tags)
    chosen = []
    for _ in range(min(images, len(scans))):
        # A class seen k times is worth 1 / 4^k: a new class beats any number of known ones that a photo may hold.
        worth = np.where(left, tags @ 0.25**seen - 0.01 * tags.sum(1), -np.inf)
        best = int(worth.argmax())
        left[best] = False
        seen += tags[best]
        chosen.append(scans[best])
    return chosen


def _paste(sheet: Image.Image, scan: Scan, classes: ClassSet, *, left: int, top: int) -> None:
    photo = ImageOps.contain(read_image(scan.record.image), (_CELL, _CELL), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=_PALE)
    sheet.paste(photo, (left + (_CELL - photo.width) // 2, top + (_CELL - photo.height) // 2))
    font = _font(13)
    lines = wrap([classes.names[tag] for tag in scan.record.tags] or ["no tag"], font, _CELL)
    inks = [_INK] * len(lines) + [_SECOND]
    for line, (text, ink) in enumerate(zip([*lines, shorten(scan.record.id, font, _CELL)], inks, strict=True)):
        draw.text((left, top + _CELL + 10 + line * _LINE), text, fill=ink, font=font, anchor="lm")


def _histogram(
    draw: ImageDraw.ImageDraw, counts: Mapping[str, Counts], classes: ClassSet, *, top: int, width: int
) -> None:
    """Bars of all splits end to end, most frequent class first, in columns."""
    stacked = np.stack(list(counts.values()))  # (S, T)
    order = np.argsort(-stacked.sum(0), kind="stable")
    lines, column_width = -(-len(order) // _BARS), (width - _GAP) // _BARS
    name_width, number_width = 120, 90
    scale = (column_width - name_width - number_width - 3 * _GAP) / max(int(stacked.sum(0).max()), 1)
    font = _font(13)
    for place, tag in enumerate(order):
        column, line = divmod(place, lines)
        left, middle = _GAP + column * column_width, top + line * _ROW + _ROW / 2
        name = shorten(classes.tag_names[tag], font, name_width - _GAP)
        draw.text((left, middle), name, fill=_INK, font=font, anchor="lm")
        end = float(left + name_width)
        colour = classes.palette[tag + classes.offset].astype(float)
        for split, number in zip(counts, stacked[:, tag], strict=True):
            fill = tuple((colour if split != "val" else 0.4 * colour + 0.6 * 255).round().astype(int).tolist())
            begin, end = end, end + int(number) * scale
            if number:
                draw.rectangle((begin, middle - 6, max(end, begin + 1), middle + 6), fill=fill)
        numbers = " + ".join(str(number) for number in stacked[:, tag])
        draw.text((end + _GAP, middle), numbers, fill=_INK, font=font, anchor="lm")


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def wrap(names: Sequence[str], font: Font, width: float) -> list[str]:
    """Put names on one or two lines of `width` pixels, separated by commas, cut where even two do not suffice."""
    whole = ", ".join(names)
    if font.getlength(whole) <= width:
        return [whole]
    fit = bisect_right(range(1, len(names)), width, key=lambda n: font.getlength(", ".join(names[:n]) + ","))
    if fit == 0:
        return [shorten(whole, font, width)]
    return [", ".join(names[:fit]) + ",", shorten(", ".join(names[fit:]), font, width)]


def shorten(text: str, font: Font, width: float) -> str:
    """Cut a text to `width` pixels, with dots at its end if it was cut."""
    if font.getlength(text) <= width:
        return text
    fit = bisect_right(range(1, len(text)), width, key=lambda n: font.getlength(text[:n] + "..."))
    return text[:fit] + "..."
