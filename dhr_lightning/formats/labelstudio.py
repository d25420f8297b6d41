"""Label Studio: tasks with brush strokes in its own run lengths."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import Format, Mask, MaskSet, Sizes, id_of, painted, parts_of, value_of

FILE, CONFIG = "tasks.json", "labels.xml"
_WORD = 8  # bits of a value
_SIZES = (3, 4, 8, 16)  # bits of the length of a run, by its two-bit number
_CHANNELS = 4  # runs count the bytes of RGBA


def encode_rle(pixels: npt.NDArray[np.bool_]) -> list[int]:
    """Bytes of Label Studio's run lengths for pixels `(H, W)`: 0 or 255 in all four channels.

    Bits: 32 of the number of bytes, 5 of the word size less 1, 4 times 4 of the sizes less 1; then for each run one
    that says it is a run, 2 of the number of its size, its length less 1, and the value.
    """
    flat = pixels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * _CHANNELS
    longest = 1 << _SIZES[-1]
    bits = [_bits(flat.size * _CHANNELS, 32), _bits(_WORD - 1, 5), *(_bits(size - 1, 4) for size in _SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = _bits(255 * int(flat[start]), _WORD)
        while length > 0:
            part = min(length, longest)
            number = next(index for index, size in enumerate(_SIZES) if part <= 1 << size)
            bits += ["1", _bits(number, 2), _bits(part - 1, _SIZES[number]), value]
            length -= part
    text = "".join(bits)
    packed = np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0"))
    return [int(one) for one in packed]


def _bits(value: int, size: int) -> str:
    return format(value, f"0{size}b")


def decode_rle(code: Sequence[int], size: tuple[int, int], *, where: str) -> npt.NDArray[np.bool_]:
    """Inverse of `encode_rle`, also of what Label Studio writes itself; a pixel counts if its last channel is not 0.

    Raises:
        MaskError: if the bytes do not fit the size.
    """
    bits = "".join(format(one, "08b") for one in code)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != size[0] * size[1] * _CHANNELS:
        raise MaskError(f"{where}: {total} bytes of run lengths do not fit {size[1]}x{size[0]} pixels of RGBA.")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        run = take(1)
        length = take(widths[take(2)]) + 1
        values[done : done + length] = take(word) if run else [take(word) for _ in range(length)]
        done += length
    return values.reshape(*size, _CHANNELS)[..., -1] > 0


def write(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `tasks.json` (predictions that a person may take over), `labels.xml` and `images/` of the known photos."""
    tasks = []
    for image_id in masks.masks:
        mask = masks.read(image_id)
        results = [_result(name, pixels) for name, pixels in parts_of(mask, masks.classes)]
        name = masks.file_name(image_id)
        data = {"image": f"/data/local-files/?d=images/{name}", "file": name}
        tasks.append({"data": data, "predictions": [{"model_version": "dhr_lightning", "result": results}]})
    write_bytes(folder / FILE, json.dumps(tasks, ensure_ascii=False).encode())
    write_bytes(folder / CONFIG, _config(masks.classes).encode())
    masks.copy_images(folder / "images")
    return [
        "set LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to this folder, paste labels.xml as the interface, import "
        "tasks.json"
    ]


def _result(name: str, pixels: npt.NDArray[np.bool_]) -> dict[str, Any]:
    height, width = pixels.shape
    return {
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_rle(pixels), "brushlabels": [name]},
    }


def _config(classes: ClassSet) -> str:
    from xml.sax.saxutils import quoteattr

    labels = "\n".join(
        f'    <Label value={quoteattr(name)} background="#{"".join(f"{one:02x}" for one in classes.palette[value])}"/>'
        for value, name in enumerate(classes.names)
        if value >= classes.offset
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}\n  </BrushLabels>\n</View>\n'
    )


def read(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of a JSON export: annotations of a person where there are some, else predictions.

    Raises:
        MaskError: if a label is no class, or a region is no brush stroke.
    """
    path = source / FILE if source.is_dir() else source
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaskError(f"{path} cannot be read ({error}). Export the project as JSON.") from error
    for number, task in enumerate(tasks, start=1):
        data = task["data"]
        image_id = id_of(
            str(data.get("file") or str(data["image"]).rpartition("?d=")[2].rpartition("/data/upload/")[2])
        )
        given = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
        results = (given or task.get("predictions") or [{"result": []}])[-1]["result"]
        size, parts = sizes(image_id), []
        for one in results:
            where = f"{path}, task {number}"
            if one.get("type") != "brushlabels":
                raise MaskError(f"{where} holds a region of type {one.get('type')!r}; only brush strokes are read.")
            size = (int(one["original_height"]), int(one["original_width"]))
            label = one["value"]["brushlabels"][0]
            pixels = decode_rle(one["value"]["rle"], size, where=where)
            parts.append((value_of(label, classes, where=where), pixels))
        yield image_id, painted(size, parts)


FORMAT = Format("labelstudio", "Label Studio tasks with brush strokes (lossless)", write, read)
