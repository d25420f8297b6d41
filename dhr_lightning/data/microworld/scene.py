"""Composition of one `microworld` image: stuffs, clutter, things and photometry."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhr_lightning.data.microworld.figures import shape_of
from dhr_lightning.data.microworld.grammar import ScenePlan, Stuff, Thing, plan_scene
from dhr_lightning.data.microworld.layout import Horizon, Placed, place_things
from dhr_lightning.data.microworld.shapes import FloatArray, rasterize
from dhr_lightning.data.microworld.texture import SIZE, crop_noise, paint_material, paint_stuff

MIN_CLASS_PIXELS = 40
MIN_FOREGROUND_PIXELS = 300
RAIL_SPACING = 0.9
TRACK_SPACING = 1.5
BLUR_SIGMA = 0.45
NOISE_SIGMA = 0.03

_COLUMNS = np.arange(SIZE, dtype=np.float32)[None, :] + 0.5
_ROWS = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5


@dataclass(frozen=True)
class Scene:
    """One rendered image with its truth.

    `image` `(128, 128, 3)` uint8 RGB; `mask` `(128, 128)` uint8 class values 0 to 10; `stuff` `(128, 128)` uint8 ids of
    the stuff at each pixel, also behind the things; `tags` the class values in the mask, ascending, without background.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    stuff: NDArray[np.uint8]
    tags: tuple[int, ...]


def render(seed: int, is_val: bool, index: int) -> Scene:
    """Render one image; the same arguments give the same bytes in any order and process.

    An image is drawn again until every class of its plan shows at least 40 pixels and all together 300.

    Args:
        seed: seed of the dataset, >= 0.
        is_val: use the validation mix.
        index: number of the image in its split, >= 0.

    Returns:
        the scene.

    Raises:
        ValueError: if `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"Expected `seed` and `index` >= 0, but got {seed} and {index}.")
    retry = 0
    while True:
        scene = _compose(np.random.default_rng([seed, int(is_val), index, retry]), is_val=is_val)
        if scene is not None:
            return scene
        retry += 1


def _compose(rng: np.random.Generator, *, is_val: bool) -> Scene | None:
    """Draw one attempt; None when a class is hidden or all things are small."""
    plan = plan_scene(rng, is_val=is_val)
    horizon = Horizon.draw(rng)
    placed = place_things(rng, plan, horizon)
    canvas, stuff = _paint_background(rng, plan, horizon)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for item in placed:
        _paint_thing(rng, item, canvas, mask)
    pixels = np.bincount(mask.ravel(), minlength=len(Thing) + 1)
    if pixels[list(plan.things)].min() < MIN_CLASS_PIXELS or pixels[1:].sum() < MIN_FOREGROUND_PIXELS:
        return None
    return Scene(_expose(rng, canvas), mask, stuff, tuple(int(thing) for thing in plan.things))


def _paint_background(
    rng: np.random.Generator, plan: ScenePlan, horizon: Horizon
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Draw both stuffs and the clutter: canvas `(128, 128, 3)` and stuff map `(128, 128)`."""
    phase_long, phase_short = horizon.phases
    waves = 1.1 * np.sin(_COLUMNS / 11.0 + phase_long) + 0.6 * np.sin(_COLUMNS / 3.7 + phase_short)
    line = horizon.height + horizon.tilt * (_COLUMNS - SIZE / 2.0) + waves
    depth = _ROWS - line  # (H, W)
    share = np.clip(depth + 0.5, 0.0, 1.0).astype(np.float32)[:, :, None]
    ground = paint_stuff(rng, plan.ground, SIZE, SIZE)
    if plan.ground is Stuff.RAILS:
        ground = _paint_rails(rng, ground, depth)
    canvas = paint_stuff(rng, plan.back, SIZE, SIZE)
    canvas = canvas + share * (ground - canvas)
    stuff = np.where(depth > 0.0, plan.ground, plan.back).astype(np.uint8)
    for _ in range(int(rng.integers(0, 3))):
        _paint_clutter(rng, horizon, canvas, stuff)
    return canvas, stuff


def _paint_rails(rng: np.random.Generator, gravel: FloatArray, depth: FloatArray) -> FloatArray:
    """Draw dark sleepers and bright rails, both in perspective, on gravel."""
    far = np.maximum(depth, 0.5)
    across = (_COLUMNS - SIZE / 2.0 - float(rng.uniform(-14.0, 14.0))) / far  # in units of the depth
    inside = np.abs((across + 0.5 * TRACK_SPACING) % TRACK_SPACING - 0.5 * TRACK_SPACING)
    ties = (np.sin(24.0 * np.log(far + 7.0) + float(rng.uniform(0.0, 6.0))) > 0.0) & (
        inside < 0.5 * RAIL_SPACING + 0.14
    )
    tie = (ties * np.clip((depth - 1.0) / 9.0, 0.0, 1.0)).astype(np.float32)[:, :, None]
    surface = gravel * (1.0 - tie * np.array((0.50, 0.54, 0.56), dtype=np.float32))
    gap = np.abs(inside - 0.5 * RAIL_SPACING) * far  # pixels to the middle of the rail
    rail = (
        np.clip(0.6 + 0.018 * far - gap + 0.5, 0.0, 1.0)[:, :, None]
        * np.clip((depth - 1.0) / 6.0, 0.0, 1.0)[:, :, None]
    )
    painted: FloatArray = (surface + rail * (np.array((0.74, 0.73, 0.70)) - surface)).astype(np.float32)
    return painted


def _paint_clutter(rng: np.random.Generator, horizon: Horizon, canvas: FloatArray, stuff: NDArray[np.uint8]) -> None:
    """Draw one stone-like blob without a class on the ground, in place."""
    radius, x = float(rng.uniform(5.0, 14.0)), float(rng.uniform(0.0, SIZE))
    y = horizon.at(x) + float(rng.uniform(0.02, 0.5)) * SIZE
    angle = np.arctan2(_ROWS - y, _COLUMNS - x)
    lobes = 1.0 + 0.1 * np.sin(3.0 * angle + rng.uniform(0.0, 6.3)) + 0.06 * np.sin(5.0 * angle + rng.uniform(0.0, 6.3))
    distance = np.hypot(_COLUMNS - x, (_ROWS - y) / 0.62) / lobes
    share = np.clip(radius - distance + 0.5, 0.0, 1.0).astype(np.float32)[:, :, None]
    light = (1.12 - 0.3 * np.clip((_ROWS - y) / radius + 0.4, 0.0, 1.2)).astype(np.float32)[:, :, None]
    canvas += share * (paint_stuff(rng, Stuff.CLUTTER, SIZE, SIZE) * light - canvas)
    stuff[share[:, :, 0] > 0.5] = Stuff.CLUTTER


def _paint_thing(rng: np.random.Generator, item: Placed, canvas: FloatArray, mask: NDArray[np.uint8]) -> None:
    """Draw one thing over canvas and mask, in place."""
    raster = rasterize(shape_of(item.thing), item.frame, size=SIZE)
    if raster is None:
        return
    surface = paint_material(rng, item.thing, raster.marked)
    surface += raster.detail_alpha[:, :, None] * (raster.detail - surface)
    window = canvas[raster.rows, raster.columns]
    window += raster.alpha[:, :, None] * (surface - window)
    mask[raster.rows, raster.columns][raster.alpha >= 0.5] = item.thing


def _expose(rng: np.random.Generator, canvas: FloatArray) -> NDArray[np.uint8]:
    """Apply illumination, gains, blur and sensor noise: `(128, 128, 3)` uint8."""
    turn, slope = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.05, 0.28)
    ramp = (np.cos(turn) * (_COLUMNS - SIZE / 2.0) + np.sin(turn) * (_ROWS - SIZE / 2.0)) / (SIZE / 2.0)
    gain = rng.uniform(0.85, 1.15) * rng.normal(1.0, 0.03, size=3)
    light = (1.0 + slope * ramp).astype(np.float32)[:, :, None] * gain.astype(np.float32)
    side = float(np.exp(-0.5 / BLUR_SIGMA**2))
    canvas = _blur((np.clip(canvas, 0.0, 1.2) * light).astype(np.float32), side / (1.0 + 2.0 * side))
    noise = np.stack([crop_noise(rng, "grain", SIZE, SIZE) for _ in range(3)], axis=2)
    return np.clip(255.0 * (canvas + NOISE_SIGMA * noise) + 0.5, 0.0, 255.0).astype(np.uint8)


def _blur(canvas: FloatArray, side: float) -> FloatArray:
    """Separable three-tap blur with weights `side`, `1 - 2 * side`, `side`; edges repeat."""
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[1:-1] + side * (padded[:-2] - 2.0 * padded[1:-1] + padded[2:])
    blurred = rows[:, 1:-1] + side * (rows[:, :-2] - 2.0 * rows[:, 1:-1] + rows[:, 2:])
    return np.asarray(blurred, dtype=np.float32)
