"""Findings about single files: photos and masks that cannot be used, or not as they are."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.inspection.finding import Finding, finding
from dhr_lightning.inspection.scan import MaskScan, Scan

SMALLEST_SIDE = 16  # pixels: less than one cell at the usual output stride
LARGE_PIXELS = 16_000_000
_BITS = 8  # per channel


def image_findings(scans: Sequence[Scan]) -> list[Finding]:
    """Unreadable, tiny, huge, turned and unusual photos, and how large they are."""
    broken = [f"{s.record.image} ({s.error})" for s in scans if not s.readable and _bits(s) <= _BITS]
    good = [s for s in scans if s.readable]
    tiny = [_with_size(s) for s in good if min(s.size) < SMALLEST_SIDE]
    deep = [f"{s.record.image} ({s.mode}, {_bits(s)} bits)" for s in scans if _bits(s) > _BITS]
    large = [_with_size(s) for s in good if s.size[0] * s.size[1] > LARGE_PIXELS]
    found = finding(
        "problem",
        "unreadable-image",
        broken,
        "Photos that cannot be read: {n}.",
        "Replace the files or drop their ids.",
    )
    found += finding(
        "problem", "tiny-image", tiny, f"Photos with a side below {SMALLEST_SIDE} pixels: {{n}}.", "Drop their ids."
    )
    found += finding(
        "problem",
        "deep-image",
        deep,
        "Photos with more than 8 bits per channel, which reading with 8 would make dark or white: {n}.",
        "Scale their real range of values to 0-255 and save them with 8 bits.",
    )
    found += finding(
        "warning",
        "large-image",
        large,
        f"Photos of more than {LARGE_PIXELS // 1_000_000} million pixels: {{n}}. Predictions read whole photos, "
        "so memory may not suffice.",
        "Scale them down together with their masks.",
    )
    return found + _turned(good) + _modes(good) + _sizes(good)


def _bits(scan: Scan) -> int:
    return scan.header.bits if scan.header else _BITS


def _with_size(scan: Scan) -> str:
    return f"{scan.record.image} ({scan.size[0]}x{scan.size[1]})"


def _turned(scans: Sequence[Scan]) -> list[Finding]:
    turned = [s for s in scans if s.orientation in range(2, 9)]
    items = [f"{s.record.image} (EXIF orientation {s.orientation})" for s in turned]
    text = "Photos that are turned upright when read, as their EXIF tag says: {n}."
    if not any(s.mask for s in turned):
        return finding("fact", "exif-rotation", items, text)
    advice = "Open one with its mask: the mask must lie on the upright photo. Else remove the tag or turn the mask."
    return finding("warning", "exif-rotation", items, text + " A tool that ignores the tag shows them lying.", advice)


def _modes(scans: Sequence[Scan]) -> list[Finding]:
    alpha = [f"{s.record.image} ({s.mode})" for s in scans if s.fourth == "transparency"]
    bands = [f"{s.record.image} ({s.mode})" for s in scans if s.fourth == "band"]
    pages = [f"{s.record.image} ({s.header.pages})" for s in scans if s.header and s.header.pages > 1]
    other = Counter(s.mode for s in scans if s.fourth in ("", "opaque") and s.mode != "RGB")
    found = finding(
        "warning",
        "transparent-image",
        alpha,
        "Photos with transparency, which is dropped, so that hidden pixels become visible: {n}.",
        "Look at one; if its hidden pixels are not part of the photo, save it again on a plain background.",
    )
    found += finding(
        "warning",
        "other-band",
        bands,
        "Photos with a fourth channel that varies like a picture, such as near-infrared, and not like transparency; "
        "the first three are used: {n}.",
        "Look at one; save the three channels that you want as RGB.",
    )
    found += finding(
        "warning",
        "several-pages",
        pages,
        "Files with several pages or frames, of which the first is used: {n}.",
        "Save the pages that you want as files of their own.",
    )
    kinds = [f"{mode}: {number}" for mode, number in sorted(other.items())]
    text = f"Photos that are not stored as RGB and are converted when read: {sum(other.values())}."
    return found + finding("fact", "converted-image", kinds, text)


def _sizes(scans: Sequence[Scan]) -> list[Finding]:
    if not scans:
        return []
    sizes = np.array([s.size for s in scans])  # (N, 2)
    (low, middle, high) = np.percentile(sizes, (0, 50, 100), axis=0).round().astype(int)
    areas = sizes.prod(1)
    text = (
        f"Photos are {low[0]} to {high[0]} pixels wide (median {middle[0]}) and {low[1]} to {high[1]} high "
        f"(median {middle[1]}); the largest has {areas.max() / 1e6:.2f} million pixels."
    )
    return [Finding("fact", "image-size", text, len(scans))]


def mask_findings(scans: Sequence[Scan], classes: ClassSet) -> list[Finding]:
    """Masks that cannot be used: unreadable, in colours, of another size, with unknown values."""
    pairs = [(s, s.mask) for s in scans if s.mask is not None]
    if not pairs:
        return []
    broken = [f"{m.path} ({m.error})" for _, m in pairs if m.state == "unreadable"]
    colours = [f"{m.path} ({m.mode})" for _, m in pairs if m.state == "colours"]
    found = finding(
        "problem", "unreadable-mask", broken, "Masks that cannot be read: {n}.", "Make them again or remove them."
    )
    found += finding(
        "problem",
        "colour-mask",
        colours,
        "Masks that hold colours or another depth instead of 8-bit class values: {n}.",
        "Their palette was probably expanded. Save them as 8-bit palette or grey PNGs of class values.",
    )
    good = [(s, m) for s, m in pairs if m.state == "ok"]
    modes = Counter({"P": "palette", "L": "grey"}.get(m.mode, m.mode) for _, m in good)
    kinds = ", ".join(f"{number} {name}" for name, number in modes.most_common())
    fact = [Finding("fact", "mask-mode", f"Masks that hold class values: {kinds}.", len(good))] if good else []
    return found + _wrong_sizes(good) + _unknown_values([m for _, m in good], classes) + fact


def _wrong_sizes(pairs: Sequence[tuple[Scan, MaskScan]]) -> list[Finding]:
    different = [(s, m) for s, m in pairs if s.readable and m.size != s.size]
    unturned = [(s, m) for s, m in different if m.size == s.stored]
    found = finding(
        "problem",
        "unturned-mask",
        [_both_sizes(s, m) for s, m in unturned],
        "Masks that fit their photo only before its EXIF tag turns it (drawn by a tool that ignores the tag): {n}.",
        "Turn the masks as the tag says, or remove the tag from the photos.",
    )
    return found + finding(
        "problem",
        "mask-size",
        [_both_sizes(s, m) for s, m in different if m.size != s.stored],
        "Masks of another size than their photo: {n}.",
        "Make them again at the size of the photo.",
    )


def _both_sizes(scan: Scan, mask: MaskScan) -> str:
    return f"{mask.path} ({mask.size[0]}x{mask.size[1]}, photo {scan.size[0]}x{scan.size[1]})"


def _unknown_values(masks: Sequence[MaskScan], classes: ClassSet) -> list[Finding]:
    items, seen = [], Counter[int]()
    for mask in masks:
        unknown = {v: n for v, n in mask.pixels.items() if v >= classes.num_classes and v != classes.ignore_index}
        if unknown:
            items.append(f"{mask.path} ({', '.join(f'{value}: {number} px' for value, number in unknown.items())})")
            seen.update(unknown.keys())
    values = ", ".join(str(value) for value in sorted(seen)[:12]) + (", ..." if len(seen) > 12 else "")
    return finding(
        "problem",
        "unknown-value",
        items,
        f"Masks with values beyond {classes.num_classes} classes and {classes.ignore_index}: {{n}} (values {values}).",
        "They may hold the dataset's raw ids or palette indices; convert them to class values.",
    )
