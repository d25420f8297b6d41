"""Depth, bands and pages by the header of a file, not by the mode that a decoder gives."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data import image_headers
from dhr_lightning.data.files import image_header, read_image
from dhr_lightning.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 2041, (6, 8, 3), dtype=np.uint16)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits; `pixels` are `(H, W, C)` uint16 of 1 to 4 channels."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def tiff(path: Path, pixels: np.ndarray, *, extra: tuple[int, ...] = ()) -> Path:
    """An uncompressed TIFF of `(H, W, C)` pixels; `extra` is its tag ExtraSamples."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [8 * pixels.itemsize] * channels),
        (259, 3, [1]),
        (262, 3, [2]),
        (273, 4, [8]),
        (277, 3, [channels]),
        (278, 3, [height]),
        (279, 4, [len(data)]),
        *([(338, 3, list(extra))] if extra else []),
    ]
    start = 8 + len(data)
    behind = start + 2 + 12 * len(entries) + 4
    table, more = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        packed = b"".join(struct.pack("<H" if kind == 3 else "<I", value) for value in values)
        if len(packed) > 4:
            table += struct.pack("<HHII", tag, kind, len(values), behind + len(more))
            more += packed
        else:
            table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + table + struct.pack("<I", 0) + more)
    return path


def ppm16(path: Path) -> Path:
    path.write_bytes(b"P6\n# a comment\n8 6\n2047\n" + COLOURS.astype(">u2").tobytes())
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_refused_whatever_its_channels(tmp_path: Path, channels: int):
    path = png16(tmp_path / "deep.png", np.concatenate([COLOURS, COLOURS[..., :1]], 2)[..., :channels])
    assert image_header(path).bits == 16
    with pytest.raises(DataError, match=r"deep\.png has 16 bits per channel.*0-255"):
        read_image(path)


def test_tiff_and_ppm_of_more_than_8_bits_are_refused(tmp_path: Path):
    for path in (tiff(tmp_path / "deep.tif", COLOURS), ppm16(tmp_path / "deep.ppm")):
        with pytest.raises(DataError, match="bits per channel"):
            read_image(path)
    assert image_header(tmp_path / "deep.ppm").bits == 11


def test_jpeg2000_of_12_bits_is_known_by_box_and_by_codestream(tmp_path: Path):
    grey = Image.fromarray(COLOURS[..., 0])
    grey.save(tmp_path / "deep.jp2")
    grey.save(tmp_path / "deep.j2k", no_jp2=True)
    assert [image_header(tmp_path / f"deep.{end}").bits for end in ("jp2", "j2k")] == [16, 16]
    Image.fromarray(COLOURS.astype(np.uint8)).save(tmp_path / "plain.jp2")
    assert image_header(tmp_path / "plain.jp2").bits == 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_all_of_8_bits_and_less_is_read(tmp_path: Path, mode: str):
    path = tmp_path / "plain.tif"
    Image.fromarray(COLOURS.astype(np.uint8)).convert(mode).save(path)
    assert image_header(path).bits <= 8
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize(("extra", "other"), [((0,), True), ((2,), False), ((), True)])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(tmp_path: Path, extra: tuple[int, ...], other: bool):
    pixels = np.concatenate([COLOURS, COLOURS[..., :1]], 2).astype(np.uint8)
    path = tiff(tmp_path / "bands.tif", pixels, extra=extra)
    assert image_header(path).other_band == other
    np.testing.assert_array_equal(np.array(read_image(path)), pixels[..., :3])


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
def test_pages_and_frames_are_counted_and_the_first_is_read(tmp_path: Path, suffix: str):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(
        tmp_path / f"film{suffix}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == ".webp" else {}),
    )
    assert image_header(tmp_path / f"film{suffix}").pages == 3
    assert read_image(tmp_path / f"film{suffix}").getpixel((0, 0)) == (200, 0, 0)
    frames[0].save(tmp_path / f"single{suffix}")
    assert image_header(tmp_path / f"single{suffix}").pages == 1


def test_heic_under_any_name_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(image_headers, "find_spec", lambda _: None)
    path = tmp_path / "phone.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(DataError, match=r"phone\.jpg cannot be read.*dhr-lightning\[heic\]"):
        read_image(path)


def test_heic_is_read_where_the_package_is(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 20, 20)).save(tmp_path / "phone.heic")
    (tmp_path / "phone.jpg").write_bytes((tmp_path / "phone.heic").read_bytes())
    for name in ("phone.heic", "phone.jpg"):
        assert read_image(tmp_path / name).size == (64, 48)
        assert read_image(tmp_path / name).getpixel((5, 5))[0] > 150
