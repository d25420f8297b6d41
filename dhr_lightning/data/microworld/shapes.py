"""Vector shapes of `microworld`: outline primitives in a local frame and their anti-aliased rasterisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FloatArray = NDArray[np.float32]
Colour = tuple[int, int, int] | tuple[int, int, int, int]
Detail = tuple[Colour, FloatArray]

SUPERSAMPLE = 4

# Detail colours that several classes use.
DARK = (26, 26, 30)
SHADE = (20, 12, 8, 70)
CREAM = (244, 238, 222)


@dataclass(frozen=True)
class Shape:
    """One class drawn in the local frame u, v in [-1, 1]: u to the front, v down, the ground at v = 1.

    `body` is the silhouette (the union of its outlines), `marked` the part that carries the glyph, and `details` are
    drawn over the material in order; a fourth colour number is opacity (0 to 255).
    """

    aspect: float
    body: tuple[FloatArray, ...]
    marked: tuple[FloatArray, ...]
    details: tuple[Detail, ...] = ()

    @cached_property
    def outlines(self) -> tuple[FloatArray, ...]:
        """All outlines: body, marked, details."""
        return (*self.body, *self.marked, *(outline for _, outline in self.details))

    @cached_property
    def points(self) -> FloatArray:
        """The corners of all outlines, `(P, 2)`."""
        return np.concatenate(self.outlines)

    @cached_property
    def splits(self) -> NDArray[np.int64]:
        """Where each outline after the first starts in `points`."""
        return np.cumsum([len(outline) for outline in self.outlines])[:-1]


@dataclass(frozen=True)
class Frame:
    """Placement of a local frame: x of its centre, y of its ground, half sizes in pixels, mirror and rotation."""

    x: float
    base: float
    half_width: float
    half_height: float
    mirrored: bool = False
    angle: float = 0.0

    def to_pixels(self, points: FloatArray) -> FloatArray:
        """Map `(P, 2)` local points to pixel coordinates; the rotation is about the ground point."""
        across = points[:, 0] * (-self.half_width if self.mirrored else self.half_width)
        up = (points[:, 1] - 1.0) * self.half_height
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        placed: FloatArray = np.stack((self.x + cos * across - sin * up, self.base + sin * across + cos * up), axis=1)
        return placed.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Raster:
    """A shape on the canvas: its window and, inside it, coverage, marked part, detail colour and detail coverage."""

    rows: slice
    columns: slice
    alpha: FloatArray
    marked: NDArray[np.bool_]
    detail: FloatArray
    detail_alpha: FloatArray


def ellipse(u: float, v: float, radius_u: float, radius_v: float, corners: int = 28) -> FloatArray:
    """Outline of an axis-aligned ellipse."""
    turn = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return np.stack((u + radius_u * np.cos(turn), v + radius_v * np.sin(turn)), axis=1).astype(np.float32)


def disc(u: float, v: float, radius: float, aspect: float) -> FloatArray:
    """Outline of a circle; `radius` in units of u."""
    return ellipse(u, v, radius, radius / aspect)


def ring(u: float, v: float, radius: float, width: float, aspect: float) -> FloatArray:
    """Outline of a circular band whose outer radius is `radius`; all lengths in units of u."""
    outer, inner = disc(u, v, radius, aspect), disc(u, v, radius - width, aspect)
    return np.concatenate((outer, outer[:1], inner[:1], inner[::-1]))


def polygon(*points: tuple[float, float]) -> FloatArray:
    """Outline through the given (u, v) corners."""
    return np.asarray(points, dtype=np.float32)


def box(left: float, top: float, right: float, bottom: float) -> FloatArray:
    """Outline of a rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def rounded(left: float, top: float, right: float, bottom: float, *, radius: float, aspect: float) -> FloatArray:
    """Outline of a rectangle with round corners; `radius` in units of u."""
    radius_v = radius / aspect
    quarter = np.linspace(0.0, np.pi / 2.0, 6)
    corners = (
        (right - radius, bottom - radius_v, 0.0),
        (left + radius, bottom - radius_v, 0.5),
        (left + radius, top + radius_v, 1.0),
        (right - radius, top + radius_v, 1.5),
    )
    arcs = [
        (u + radius * np.cos(quarter + turn * np.pi), v + radius_v * np.sin(quarter + turn * np.pi))
        for u, v, turn in corners
    ]
    return np.concatenate([np.stack(arc, axis=1) for arc in arcs]).astype(np.float32)


def smooth(*points: tuple[float, float], steps: int = 6) -> FloatArray:
    """Closed Catmull-Rom curve through the given (u, v) points."""
    knots = np.asarray(points, dtype=np.float64)
    return _spline(np.roll(knots, 1, axis=0), knots, np.roll(knots, -1, axis=0), np.roll(knots, -2, axis=0), steps)


def stroke(*points: tuple[float, float], width: float, aspect: float, taper: float = 1.0) -> FloatArray:
    """Outline of a thick curve through the points, round at both ends.

    Args:
        points: two or more (u, v) points of the centre line.
        width: half thickness at the first point, in units of u.
        aspect: height over width of the frame, so that the thickness is the same in all directions.
        taper: factor of the thickness at the last point.
    """
    knots = np.asarray(points, dtype=np.float64) * (1.0, aspect)
    padded = np.concatenate((2.0 * knots[:1] - knots[1:2], knots, 2.0 * knots[-1:] - knots[-2:-1]))
    line = _spline(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], steps=6).astype(np.float64)
    line = np.concatenate((line, knots[-1:]))
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack((-tangent[:, 1], tangent[:, 0]), axis=1)
    half = width * np.linspace(1.0, taper, len(line))[:, None]
    cap = np.linspace(0.0, np.pi, 7)[1:-1, None]
    end = line[-1] + half[-1] * (np.cos(cap) * normal[-1] + np.sin(cap) * tangent[-1])
    start = line[0] - half[0] * (np.cos(cap) * normal[0] + np.sin(cap) * tangent[0])
    outline = np.concatenate((line + half * normal, end, (line - half * normal)[::-1], start))
    return (outline / (1.0, aspect)).astype(np.float32)


def _spline(
    before: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    after: NDArray[np.float64],
    steps: int,
) -> FloatArray:
    """Catmull-Rom segments from `first` to `second`, `steps` points each, the last point left out."""
    time = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    before, first, second, after = (knots[:, None, :] for knots in (before, first, second, after))
    curve = first + 0.5 * time * (
        second
        - before
        + time * (2.0 * before - 5.0 * first + 4.0 * second - after)
        + time**2 * (3.0 * (first - second) + after - before)
    )
    return curve.reshape(-1, 2).astype(np.float32)


def _draw(mode: str, extent: tuple[int, int], outlines: Sequence[tuple[int | Colour, FloatArray]]) -> FloatArray:
    """Fill outlines in pixel coordinates, later ones on top: `(h, w)` or `(h, w, 4)` in [0, 1]."""
    image = Image.new(mode, (extent[0] * SUPERSAMPLE, extent[1] * SUPERSAMPLE))
    pen = ImageDraw.Draw(image)
    for colour, outline in outlines:
        pen.polygon((outline * SUPERSAMPLE).ravel().tolist(), fill=colour)
    filled: FloatArray = np.asarray(image.reduce(SUPERSAMPLE), dtype=np.float32) / np.float32(255.0)
    return filled


def rasterize(shape: Shape, frame: Frame, *, size: int) -> Raster | None:
    """Draw a shape on a square canvas.

    Args:
        shape: what to draw.
        frame: where to draw it.
        size: side of the canvas in pixels.

    Returns:
        the raster of the visible window, or None when the shape lies outside the canvas.
    """
    points = frame.to_pixels(shape.points)
    left, top = (max(0, math.floor(low)) for low in points.min(axis=0).tolist())
    right, bottom = (min(size, math.ceil(high)) for high in points.max(axis=0).tolist())
    if right - left < 1 or bottom - top < 1:
        return None
    points = (points - np.array((left, top), dtype=np.float32)).astype(np.float32)
    outlines = np.split(points, shape.splits)
    bodies, parts = len(shape.body), len(shape.body) + len(shape.marked)
    extent = (right - left, bottom - top)
    cover = _draw("L", extent, [(255, outline) for outline in outlines[:bodies]])
    marked = _draw("L", extent, [(255, outline) for outline in outlines[bodies:parts]])
    colours = [colour for colour, _ in shape.details]
    paint = _draw("RGBA", extent, list(zip(colours, outlines[parts:], strict=True)))
    return Raster(
        rows=slice(top, bottom),
        columns=slice(left, right),
        alpha=cover,
        marked=marked > 0.5,
        detail=paint[:, :, :3],
        detail_alpha=paint[:, :, 3],
    )
