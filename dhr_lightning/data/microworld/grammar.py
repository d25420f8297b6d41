"""What a `microworld` scene may contain: classes, stuffs, scene kinds and their co-occurrence."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import numpy as np


class Thing(IntEnum):
    """Foreground classes; the value is the class value in the mask (0 is background)."""

    CAT = 1
    DOG = 2
    CAR = 3
    BUS = 4
    TRAIN = 5
    TABLE = 6
    BOTTLE = 7
    BIKE = 8
    RIDER = 9
    BOAT = 10


class Stuff(IntEnum):
    """Background kinds; the value is the id in the stuff map."""

    WALL = 0
    SKY = 1
    CARPET = 2
    ROAD = 3
    GRASS = 4
    RAILS = 5
    WATER = 6
    CLUTTER = 7


MAX_CLASSES = 4
BUS_WITH_EXTRA_CAR = 0.4
NEEDS: Mapping[Thing, Thing] = MappingProxyType({Thing.BOTTLE: Thing.TABLE, Thing.RIDER: Thing.BIKE})


@dataclass(frozen=True)
class SceneKind:
    """One row of the scene grammar: its weight, its two stuffs and the inclusion probability of each class."""

    weight: float
    backs: tuple[Stuff, ...]
    grounds: tuple[Stuff, ...]
    things: Mapping[Thing, float]


@dataclass(frozen=True)
class ScenePlan:
    """The content of one image before anything is placed."""

    back: Stuff
    ground: Stuff
    things: tuple[Thing, ...]
    extra_car: bool


_WALL, _SKY = Stuff.WALL, Stuff.SKY
_HOME_GROUNDS = (Stuff.CARPET, Stuff.ROAD)

TRAIN_SCENES = (
    SceneKind(0.42, (_WALL,), _HOME_GROUNDS, {Thing.CAT: 0.50, Thing.DOG: 0.12, Thing.TABLE: 0.75, Thing.BOTTLE: 0.45}),
    SceneKind(
        0.30,
        (_WALL, _SKY),
        (Stuff.ROAD,),
        {Thing.CAT: 0.22, Thing.CAR: 0.80, Thing.BUS: 0.15, Thing.BIKE: 0.42, Thing.RIDER: 0.5},
    ),
    SceneKind(0.14, (_SKY,), (Stuff.GRASS,), {Thing.CAT: 0.85, Thing.DOG: 0.20, Thing.CAR: 0.30}),
    SceneKind(0.11, (_SKY, _WALL), (Stuff.RAILS,), {Thing.TRAIN: 0.75, Thing.CAT: 0.35, Thing.CAR: 0.35}),
    SceneKind(0.085, (_SKY,), (Stuff.WATER,), {Thing.BOAT: 0.70, Thing.CAT: 0.5, Thing.DOG: 0.08}),
)

VAL_SCENES = (
    SceneKind(0.28, (_WALL,), _HOME_GROUNDS, {Thing.CAT: 0.5, Thing.DOG: 0.3, Thing.TABLE: 0.75, Thing.BOTTLE: 0.6}),
    SceneKind(
        0.26,
        (_WALL, _SKY),
        (Stuff.ROAD,),
        {Thing.CAT: 0.2, Thing.CAR: 0.6, Thing.BUS: 0.35, Thing.BIKE: 0.5, Thing.RIDER: 0.6},
    ),
    SceneKind(0.14, (_SKY,), (Stuff.GRASS,), {Thing.CAT: 0.7, Thing.DOG: 0.5, Thing.CAR: 0.3}),
    SceneKind(0.16, (_SKY, _WALL), (Stuff.RAILS,), {Thing.TRAIN: 1.0, Thing.CAT: 0.2, Thing.CAR: 0.3}),
    SceneKind(0.16, (_SKY,), (Stuff.WATER,), {Thing.BOAT: 1.0, Thing.CAT: 0.3, Thing.DOG: 0.1}),
)


def _draw_things(rng: np.random.Generator, odds: Mapping[Thing, float]) -> set[Thing]:
    """Draw each class on its own; a class in `NEEDS` only where its carrier was drawn."""
    things: set[Thing] = set()
    draws = dict(zip(odds, rng.random(len(odds)), strict=True))
    for thing, chance in odds.items():
        if draws[thing] < chance and (thing not in NEEDS or NEEDS[thing] in things):
            things.add(thing)
    return things


def plan_scene(rng: np.random.Generator, *, is_val: bool) -> ScenePlan:
    """Draw the scene kind, its two stuffs and 1 to 4 classes.

    Args:
        rng: the generator of the image.
        is_val: use the validation mix, in which the rare classes are more frequent.

    Returns:
        the plan; `things` ascending and never empty.
    """
    kinds = VAL_SCENES if is_val else TRAIN_SCENES
    weights = np.array([kind.weight for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    back = kind.backs[int(rng.integers(len(kind.backs)))]
    ground = kind.grounds[int(rng.integers(len(kind.grounds)))]
    while True:
        things = _draw_things(rng, kind.things)
        extra_car = Thing.BUS in things and rng.random() < BUS_WITH_EXTRA_CAR
        if extra_car:
            things.add(Thing.CAR)
        if 1 <= len(things) <= MAX_CLASSES:
            return ScenePlan(back, ground, tuple(sorted(things)), extra_car)
