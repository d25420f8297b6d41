"""What an image file says of itself: kind, depth, channels, pages. Pillow's decoder drops some of it without a word."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".avif", ".heic", ".heif"),
)
_HEIF_SUFFIXES = (".heic", ".heif")
_RAW = "camera raw: develop it to JPEG"
_MEDICAL = "medical: write its slices as 8-bit PNG with the window that you look at"
_VIDEO = "video: take frames out of it"
_DRAWING = "no photo of pixels: export it as PNG"
UNREAD_SUFFIXES: Mapping[str, str] = {
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw"), _RAW),
    **dict.fromkeys((".dcm", ".dicom", ".nii", ".nrrd", ".mha", ".svs", ".ndpi", ".mrxs"), _MEDICAL),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv"), _VIDEO),
    **dict.fromkeys((".svg", ".pdf", ".eps", ".psd", ".ai", ".xcf"), _DRAWING),
    **dict.fromkeys((".jxl", ".exr", ".hdr", ".tga", ".ico", ".dds", ".fits", ".mpo"), "convert it to PNG or JPEG"),
}
HEIF_REMEDY = "It is a HEIC photo: `pip install dhr-lightning[heic]`, or save it as JPEG"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BITS_PER_SAMPLE, _SAMPLES, _EXTRA_SAMPLES = 258, 277, 338
_SEVERAL_FRAMES = ("GIF", "PNG", "TIFF", "WEBP", "AVIF")  # MPO holds previews of one photo


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say.

    Args:
        bits: bits per channel as stored, or 8 where the format knows no other depth.
        pages: pages or frames; reading takes the first.
        other_band: whether a fourth channel is declared as something else than transparency, such as near-infrared.
    """

    bits: int
    pages: int
    other_band: bool


def read_header(image: Image.Image, path: Path) -> ImageHeader:
    """Header of an image that Pillow opened and did not decode yet.

    Args:
        image: as `Image.open` returns it.
        path: its file.
    """
    with path.open("rb") as file:
        start = file.read(512)
    pages = getattr(image, "n_frames", 1) if image.format in _SEVERAL_FRAMES else 1
    return ImageHeader(bits_per_channel(image, start), pages, _has_other_band(image))


def bits_per_channel(image: Image.Image, start: bytes) -> int:
    """Bits per channel as stored; Pillow gives 8 of them to the caller where there are three channels.

    Args:
        image: as `Image.open` returns it.
        start: first bytes of its file, 512 of them suffice.
    """
    if image.format == "PNG":
        return start[24]
    if image.format == "TIFF":
        return max(_as_tuple(image.tag_v2.get(_BITS_PER_SAMPLE, 1)))  # type: ignore[attr-defined]
    if image.format == "JPEG2000":
        return _jpeg2000_bits(start)
    if image.format == "PPM" and (found := re.match(rb"P[2356]\s(?:\s*#[^\n]*\n)*\s*\d+\s+\d+\s+(\d+)\s", start)):
        return max(8, int(found[1]).bit_length())
    return 16 if image.mode.startswith(("I", "F")) else 8


def _jpeg2000_bits(start: bytes) -> int:
    box = start.find(b"ihdr")  # height, width, components, depth
    if box >= 0 and start[box + 14] != 255:
        return (start[box + 14] & 0x7F) + 1
    size = start.find(b"\xff\x51")  # length, 4 + 32 bytes of geometry, number of components, depth of the first
    return (start[size + 40] & 0x7F) + 1 if 0 <= size < len(start) - 40 else 8


def _has_other_band(image: Image.Image) -> bool:
    if image.format != "TIFF":
        return False
    extra = _as_tuple(image.tag_v2.get(_EXTRA_SAMPLES, ()))  # type: ignore[attr-defined]
    colours = len(image.getbands()) - 1 if image.mode in ("RGBA", "RGBX", "LA") else len(image.getbands())
    samples = int(image.tag_v2.get(_SAMPLES, colours))  # type: ignore[attr-defined]
    return samples > colours and (not extra or 0 in extra)


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def is_heif(path: Path) -> bool:
    """Whether a file is HEIC or HEIF by its first bytes, whatever its suffix."""
    with path.open("rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def reads_heif() -> bool:
    """Whether HEIC photos can be read: the optional package pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def register_heif() -> None:
    """Let Pillow read HEIC; call it where `reads_heif()` only."""
    from pillow_heif import register_heif_opener

    register_heif_opener()


def unread_reason(path: Path) -> str | None:
    """Why a file is not read as a photo, or `None` if it is one by its suffix or nothing is known about it."""
    suffix = path.suffix.casefold()
    if suffix in _HEIF_SUFFIXES and not reads_heif():
        return HEIF_REMEDY
    return UNREAD_SUFFIXES.get(suffix)
