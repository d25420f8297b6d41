"""Where the things of a `microworld` scene stand: sizes, positions, carriers and painter's order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from dhr_lightning.data.microworld.figures import shape_of
from dhr_lightning.data.microworld.grammar import NEEDS, ScenePlan, Thing
from dhr_lightning.data.microworld.shapes import Frame
from dhr_lightning.data.microworld.texture import SIZE

# Half width in pixels before the global factor.
HALF_WIDTHS: Mapping[Thing, tuple[float, float]] = MappingProxyType(
    {
        Thing.CAT: (28.0, 42.0),
        Thing.DOG: (28.0, 42.0),
        Thing.CAR: (32.0, 48.0),
        Thing.BUS: (28.0, 44.0),
        Thing.TRAIN: (40.0, 58.0),
        Thing.TABLE: (40.0, 60.0),
        Thing.BIKE: (28.0, 40.0),
        Thing.BOAT: (30.0, 46.0),
    }
)
PAINT_ORDER = (
    Thing.TRAIN,
    Thing.BOAT,
    Thing.TABLE,
    Thing.BUS,
    Thing.CAR,
    Thing.CAT,
    Thing.DOG,
    Thing.BIKE,
)
SHUFFLED = 0.4
DOG_BESIDE_CAT = 0.8
TWO_BOTTLES = 0.4
RIDER_SIZE = (0.46, 0.72)


@dataclass(frozen=True)
class Horizon:
    """The line between the two stuffs: y at the middle of the canvas, slope, and the waves of its edge."""

    height: float
    tilt: float
    phases: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Horizon":
        """Draw a horizon at 32 to 55 % of the height."""
        phases = rng.uniform(0.0, 2.0 * np.pi, size=2)
        height, tilt = SIZE * rng.uniform(0.32, 0.55), rng.normal(0.0, 0.04)
        return cls(float(height), float(tilt), (float(phases[0]), float(phases[1])))

    def at(self, x: float) -> float:
        """The y of the line at column `x`, without its waves."""
        return self.height + self.tilt * (x - SIZE / 2.0)


@dataclass(frozen=True)
class Placed:
    """One thing and the frame it is drawn in."""

    thing: Thing
    frame: Frame


def _stand(rng: np.random.Generator, thing: Thing, horizon: Horizon, *, x: float, scale: float) -> Placed:
    half_width = float(rng.uniform(*HALF_WIDTHS[thing])) * scale
    base = horizon.at(x) + SIZE * float(rng.uniform(0.22, 0.5))
    frame = Frame(
        x=x,
        base=base,
        half_width=half_width,
        half_height=half_width * shape_of(thing).aspect,
        mirrored=bool(rng.random() < 0.5),
        angle=float(rng.normal(0.0, 0.04)),
    )
    return Placed(thing, frame)


def _beside(rng: np.random.Generator, placed: Placed, neighbour: Frame, *, reach: tuple[float, float]) -> Placed:
    """Move a thing next to its neighbour, overlapping it, on the side with more room."""
    side = 1.0 if neighbour.x < SIZE / 2.0 else -1.0
    x = neighbour.x + side * float(rng.uniform(*reach)) * (neighbour.half_width + placed.frame.half_width)
    base = neighbour.base + float(rng.uniform(-2.0, 6.0))
    return replace(placed, frame=replace(placed.frame, x=x, base=base))


def _bottles(rng: np.random.Generator, table: Frame) -> list[Placed]:
    """One or two bottles with their feet on the table top."""
    count = 2 if rng.random() < TWO_BOTTLES else 1
    start = float(rng.uniform(-0.62, 0.62))
    spots = (start, start - float(np.copysign(rng.uniform(0.4, 0.8), start)))[:count]
    bottles = []
    for u, v in zip(spots, sorted(rng.uniform(-0.75, -0.3, size=count)), strict=True):
        x, base = table.to_pixels(np.array([[u, v]], dtype=np.float32))[0].tolist()
        height = float(rng.uniform(22.0, 34.0)) * (0.6 + 0.4 * table.half_width / 45.0)
        frame = Frame(x, base, 0.2 * height, 0.5 * height, mirrored=False, angle=float(rng.normal(0.0, 0.02)))
        bottles.append(Placed(Thing.BOTTLE, frame))
    return bottles


def _rider(bike: Frame) -> Placed:
    """A rider on the saddle of a bike."""
    half_width, half_height = (size * bike.half_width for size in RIDER_SIZE)
    x, base = bike.to_pixels(np.array([[0.0, 0.5]], dtype=np.float32))[0].tolist()
    return Placed(Thing.RIDER, Frame(x, base, half_width, half_height, bike.mirrored, bike.angle))


def place_things(rng: np.random.Generator, plan: ScenePlan, horizon: Horizon) -> list[Placed]:
    """Give every thing of the plan a frame.

    Args:
        rng: the generator of the image.
        plan: what the scene contains.
        horizon: the line on which the ground begins.

    Returns:
        the things in the order of painting; a bottle directly follows its table and a rider its bike.
    """
    anchors = [thing for thing in plan.things if thing not in NEEDS]
    rng.shuffle(anchors)
    scale = float(rng.uniform(0.8, 1.12)) / (1.0 + 0.12 * (len(plan.things) - 1))
    placed: dict[Thing, Placed] = {}
    for index, thing in enumerate(anchors):
        x = SIZE * (index + 0.5) / len(anchors) + float(rng.normal(0.0, 9.0))
        placed[thing] = _stand(rng, thing, horizon, x=x, scale=scale)
    if Thing.DOG in placed and Thing.CAT in placed and rng.random() < DOG_BESIDE_CAT:
        cat, dog = placed[Thing.CAT].frame, placed[Thing.DOG]
        half_width = cat.half_width * float(rng.uniform(0.65, 0.9))
        small = replace(dog.frame, half_width=half_width, half_height=half_width * shape_of(Thing.DOG).aspect)
        placed[Thing.DOG] = _beside(rng, replace(dog, frame=small), cat, reach=(0.45, 0.9))
    order = [thing for thing in PAINT_ORDER if thing in placed]
    if rng.random() < SHUFFLED:
        rng.shuffle(order)
    scene: list[Placed] = []
    for thing in order:
        scene.append(placed[thing])
        if thing is Thing.TABLE and Thing.BOTTLE in plan.things:
            scene += _bottles(rng, placed[thing].frame)
        if thing is Thing.BIKE and Thing.RIDER in plan.things:
            scene.append(_rider(placed[thing].frame))
        if thing is Thing.BUS and plan.extra_car:
            x = placed[thing].frame.x
            car = _stand(rng, Thing.CAR, horizon, x=x, scale=scale)
            scene.append(_beside(rng, car, placed[thing].frame, reach=(0.5, 0.95)))
    return scene
