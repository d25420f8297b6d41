"""Textures of `microworld`: noise sheets, the desaturated stuffs, the saturated materials and the glyph marks."""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dhr_lightning.data.microworld.grammar import Stuff, Thing

FloatArray = NDArray[np.float32]

SIZE = 128
SHEET_SIZE = 512
STUFF_GRAIN = 0.105
THING_GRAIN = 0.015
MARK_LUMINANCE = 0.40
GLYPH_PITCH = 8

# Gaussian sigma (y, x) in pixels of each pre-filtered noise sheet.
SHEET_SIGMA: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"grain": (0.0, 0.0), "soft": (1.0, 1.0), "cloud": (7.0, 11.0), "streak": (0.7, 3.5), "wave": (0.8, 7.0)}
)


@dataclass(frozen=True)
class StuffTexture:
    """Colour modes of a stuff in HSV, and the noise sheet that modulates its luminance."""

    hues: tuple[float, ...]
    saturation: float
    value: float
    noise: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Material:
    """The single HSV colour mode of a super-category and the spread of its hue."""

    name: str
    hue: float
    saturation: float
    value: float
    hue_sigma: float


STUFF_TEXTURES: Mapping[Stuff, StuffTexture] = MappingProxyType(
    {
        Stuff.WALL: StuffTexture((0.55, 0.92), 0.16, 0.72),
        Stuff.SKY: StuffTexture((0.58,), 0.25, 0.82, (("cloud", 0.06),)),
        Stuff.CARPET: StuffTexture((0.05, 0.75, 0.0), 0.22, 0.50, (("soft", 0.10),)),
        Stuff.ROAD: StuffTexture((0.60,), 0.05, 0.45, (("soft", 0.05),)),
        Stuff.GRASS: StuffTexture((0.27,), 0.38, 0.48, (("soft", 0.16),)),
        Stuff.RAILS: StuffTexture((0.08,), 0.14, 0.42, (("soft", 0.18),)),
        Stuff.WATER: StuffTexture((0.52,), 0.40, 0.50, (("wave", 0.15),)),
        Stuff.CLUTTER: StuffTexture((0.05, 0.3, 0.55, 0.8), 0.12, 0.45, (("soft", 0.10),)),
    }
)

FUR = Material("fur", 0.065, 0.62, 0.60, 0.012)
METAL = Material("metal", 0.63, 0.68, 0.62, 0.020)
WOOD = Material("wood", 0.135, 0.55, 0.62, 0.012)
GLASS = Material("glass", 0.40, 0.62, 0.48, 0.020)
TUBE = Material("tube", 0.10, 0.22, 0.17, 0.020)
CLOTH = Material("cloth", 0.78, 0.55, 0.58, 0.025)
HULL = Material("hull", 0.00, 0.62, 0.80, 0.015)

MATERIALS: Mapping[Thing, Material] = MappingProxyType(
    {
        Thing.CAT: FUR,
        Thing.DOG: FUR,
        Thing.CAR: METAL,
        Thing.BUS: METAL,
        Thing.TRAIN: METAL,
        Thing.TABLE: WOOD,
        Thing.BOTTLE: GLASS,
        Thing.BIKE: TUBE,
        Thing.RIDER: CLOTH,
        Thing.BOAT: HULL,
    }
)

GLYPHS: Mapping[Thing, tuple[str, ...]] = MappingProxyType(
    {
        Thing.CAT: ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
        Thing.DOG: (".###.", "#...#", "#...#", "#...#", ".###."),
        Thing.CAR: ("..#..", "..#..", "#####", "..#..", "..#.."),
        Thing.BUS: ("#####", "#...#", "#...#", "#...#", "#####"),
        Thing.TRAIN: ("#...#", "##.##", ".###.", "..#..", "....."),
        Thing.TABLE: (".#.#.", ".#.#.", ".#.#.", ".#.#.", ".#.#."),
        Thing.BOTTLE: ("#####", ".....", "#####", ".....", "#####"),
        Thing.BIKE: ("##...", "##...", ".....", "...##", "...##"),
        Thing.RIDER: (".....", "..#..", ".###.", "#####", "....."),
        Thing.BOAT: (".....", ".###.", ".###.", ".###.", "....."),
    }
)


@lru_cache(maxsize=1)
def noise_sheets() -> Mapping[str, FloatArray]:
    """Wrap-around Gaussian-filtered noise, zero mean and unit deviation: name -> `(512, 512)` float32."""
    rng = np.random.default_rng(20240400380)
    frequency = np.fft.fftfreq(SHEET_SIZE)
    sheets: dict[str, FloatArray] = {}
    for name, (sigma_y, sigma_x) in SHEET_SIGMA.items():
        spectrum = np.fft.fft2(rng.standard_normal((SHEET_SIZE, SHEET_SIZE)))
        window_y = np.exp(-2.0 * (np.pi * sigma_y * frequency) ** 2)
        window_x = np.exp(-2.0 * (np.pi * sigma_x * frequency) ** 2)
        sheet = np.fft.ifft2(spectrum * np.outer(window_y, window_x)).real
        sheets[name] = ((sheet - sheet.mean()) / sheet.std()).astype(np.float32)
        sheets[name].setflags(write=False)
    return MappingProxyType(sheets)


def crop_noise(rng: np.random.Generator, name: str, height: int, width: int) -> FloatArray:
    """Cut a random `(height, width)` window out of a noise sheet."""
    top, left = rng.integers(0, (SHEET_SIZE - height, SHEET_SIZE - width))
    return noise_sheets()[name][top : top + height, left : left + width]


@lru_cache(maxsize=len(Thing))
def glyph_sheet(thing: Thing) -> NDArray[np.bool_]:
    """The 5x5 glyph of a class, tiled every 8 pixels over one pitch more than the canvas."""
    tile = np.zeros((GLYPH_PITCH, GLYPH_PITCH), dtype=np.bool_)
    tile[1:6, 1:6] = [[char == "#" for char in row] for row in GLYPHS[thing]]
    repeat = SIZE // GLYPH_PITCH + 1
    return np.tile(tile, (repeat, repeat))


def hsv_to_rgb(hue: float, saturation: float, value: float) -> FloatArray:
    """Convert one colour to `(3,)` float32 RGB; hue wraps, saturation and value are clipped to [0, 1]."""
    saturation, value = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def paint_stuff(rng: np.random.Generator, stuff: Stuff, height: int, width: int) -> FloatArray:
    """Draw a grainy `(height, width, 3)` RGB texture of a stuff, about [0, 1]."""
    texture = STUFF_TEXTURES[stuff]
    hue_jitter, saturation_jitter, value_jitter = rng.normal(0.0, (0.02, 0.20, 0.06))
    colour = hsv_to_rgb(
        rng.choice(texture.hues) + hue_jitter,
        texture.saturation * (1.0 + saturation_jitter),
        texture.value + value_jitter,
    )
    light = 1.0 + STUFF_GRAIN * crop_noise(rng, "grain", height, width)
    for name, amplitude in texture.noise:
        light = light + np.float32(amplitude) * crop_noise(rng, name, height, width)
    if stuff is Stuff.SKY:
        light = light * np.linspace(0.88, 1.14, height, dtype=np.float32)[:, None]
    shaded: FloatArray = light[:, :, None] * colour
    return shaded


def _pattern(
    rng: np.random.Generator, material: Material, rows: FloatArray, columns: FloatArray, phase: float
) -> FloatArray:
    """Luminance pattern of a material at pixel coordinates `rows` (h, 1) and `columns` (1, w), zero mean."""
    height, width = rows.shape[0], columns.shape[1]
    if material is FUR:
        pattern = 0.13 * crop_noise(rng, "streak", height, width)
    elif material is METAL:
        pattern = 0.12 * np.sin((rows + phase) / 6.0)
    elif material is WOOD:
        pattern = 0.16 * np.sin(1.15 * (rows + phase + 3.0 * crop_noise(rng, "cloud", height, width)))
    elif material is GLASS:
        pattern = 0.45 * np.exp(-(((columns - 0.34 * (width - 1)) / (0.09 * width + 0.6)) ** 2)) - 0.06
    elif material is TUBE:
        pattern = 0.15 * crop_noise(rng, "soft", height, width)
    elif material is CLOTH:
        pattern = 0.13 * np.sign(np.sin(np.pi * (rows + 0.5) / 2.0)) * np.sign(np.sin(np.pi * (columns + 0.5) / 2.0))
    else:
        pattern = 0.10 * np.sign(np.sin((rows + phase) * np.pi / 3.0))
    return np.asarray(pattern, dtype=np.float32)


def paint_material(rng: np.random.Generator, thing: Thing, marked: NDArray[np.bool_]) -> FloatArray:
    """Draw the smooth, saturated surface of a thing, with its glyph where `marked`.

    Args:
        rng: the generator of the image.
        thing: decides material and glyph.
        marked: `(h, w)`, the part that carries the glyph.

    Returns:
        `(h, w, 3)` RGB, about [0, 1].
    """
    material = MATERIALS[thing]
    height, width = marked.shape
    jitter = rng.normal(0.0, (material.hue_sigma, 0.03, 0.07))
    colour = hsv_to_rgb(
        material.hue + jitter[0], material.saturation + jitter[1], material.value * (1.0 + float(jitter[2]))
    )
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    light = 1.0 + THING_GRAIN * crop_noise(rng, "grain", height, width)
    light = light + _pattern(rng, material, rows, columns, float(rng.uniform(0.0, 36.0)))
    top, left = rng.integers(0, GLYPH_PITCH, size=2)
    glyph = glyph_sheet(thing)[top : top + height, left : left + width]
    light = np.where(marked & glyph, MARK_LUMINANCE * light, light)
    shaded: FloatArray = light[:, :, None] * colour
    return shaded
