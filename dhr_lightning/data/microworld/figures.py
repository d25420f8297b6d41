"""The `microworld` silhouettes by class; here those of animals, furniture and rider: cat, dog, table, bottle, rider."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from dhr_lightning.data.microworld.grammar import Thing
from dhr_lightning.data.microworld.shapes import (
    CREAM,
    DARK,
    SHADE,
    Detail,
    Shape,
    box,
    disc,
    ellipse,
    polygon,
    rounded,
    smooth,
    stroke,
)
from dhr_lightning.data.microworld.vehicles import bike, boat, bus, car, train

EYE = (240, 240, 190)
NOSE = (70, 38, 34)
INNER_EAR = (222, 150, 138)
LIGHT = (255, 240, 215, 70)
SKIN = (236, 186, 150)


def _cat() -> Shape:
    aspect = 0.85
    ears = (
        polygon((0.16, -0.50), (0.20, -1.0), (0.50, -0.72)),
        polygon((0.52, -0.74), (0.82, -1.0), (0.84, -0.48)),
    )
    inner = (
        polygon((0.25, -0.64), (0.25, -0.87), (0.40, -0.73)),
        polygon((0.64, -0.73), (0.77, -0.87), (0.77, -0.63)),
    )
    legs = tuple(rounded(u, 0.35, u + 0.21, 1.0, radius=0.08, aspect=aspect) for u in (-0.62, -0.34, 0.08, 0.34))
    tail = stroke((-0.55, 0.25), (-0.86, 0.12), (-0.92, -0.32), (-0.72, -0.62), width=0.1, aspect=aspect, taper=0.75)
    body = smooth((-0.68, 0.22), (-0.45, -0.12), (0.0, -0.1), (0.32, -0.22), (0.62, 0.05), (0.52, 0.6), (-0.56, 0.62))
    head = ellipse(0.5, -0.38, 0.37, 0.40)
    details: list[Detail] = [(INNER_EAR, outline) for outline in inner]
    details += [(SHADE, box(u, 0.62, u + 0.035, 1.0)) for u in (-0.4, 0.28)]
    for u in (0.36, 0.64):
        details += [(EYE, ellipse(u, -0.42, 0.085, 0.1)), (DARK, ellipse(u, -0.42, 0.035, 0.095))]
    details += [(NOSE, polygon((0.44, -0.26), (0.56, -0.26), (0.5, -0.18)))]
    details += [
        (CREAM, stroke((u, -0.19), (u + s * 0.28, -0.24), width=0.012, aspect=aspect))
        for u, s in ((0.42, -1), (0.58, 1))
    ]
    details += [
        (CREAM, stroke((u, -0.15), (u + s * 0.27, -0.12), width=0.012, aspect=aspect))
        for u, s in ((0.42, -1), (0.58, 1))
    ]
    return Shape(aspect, (body, head, *ears, *legs, tail), (box(0.08, -1.0, 1.0, 1.0),), tuple(details))


def _dog() -> Shape:
    aspect = 0.80
    body = smooth(
        (-0.72, -0.02),
        (-0.45, -0.2),
        (0.1, -0.16),
        (0.42, -0.3),
        (0.58, 0.05),
        (0.36, 0.42),
        (-0.2, 0.3),
        (-0.62, 0.38),
    )
    neck = stroke((0.36, 0.05), (0.5, -0.5), width=0.19, aspect=aspect)
    head = ellipse(0.48, -0.62, 0.25, 0.3)
    snout = rounded(0.5, -0.7, 0.98, -0.36, radius=0.13, aspect=aspect)
    ear = stroke((0.34, -0.86), (0.2, -0.66), (0.22, -0.34), width=0.1, aspect=aspect, taper=1.15)
    legs = tuple(rounded(u, 0.1, u + 0.17, 1.0, radius=0.06, aspect=aspect) for u in (-0.7, -0.46, 0.12, 0.36))
    tail = stroke((-0.62, 0.02), (-0.86, -0.26), (-0.94, -0.66), width=0.085, aspect=aspect, taper=0.5)
    details: tuple[Detail, ...] = (
        ((60, 30, 14, 150), ear),
        (EYE, disc(0.53, -0.7, 0.07, aspect)),
        (DARK, disc(0.55, -0.7, 0.042, aspect)),
        (DARK, ellipse(0.93, -0.62, 0.08, 0.1)),
        (NOSE, stroke((0.7, -0.44), (0.94, -0.46), width=0.016, aspect=aspect)),
        ((190, 40, 40), stroke((0.3, -0.2), (0.46, -0.12), (0.64, -0.22), width=0.045, aspect=aspect)),
        (SHADE, box(-0.5, 0.5, -0.46, 1.0)),
        (SHADE, box(0.3, 0.5, 0.34, 1.0)),
    )
    return Shape(aspect, (body, neck, head, snout, ear, *legs, tail), (box(0.0, -1.0, 1.0, 1.0),), details)


def _table() -> Shape:
    aspect = 0.62
    top = polygon((-0.7, -1.0), (0.7, -1.0), (1.0, -0.1), (-1.0, -0.1))
    apron = polygon((-1.0, -0.12), (1.0, -0.12), (0.94, 0.11), (-0.94, 0.11))
    front = tuple(polygon((u - 0.08, 0.1), (u + 0.08, 0.1), (u + 0.06, 1.0), (u - 0.06, 1.0)) for u in (-0.84, 0.84))
    back = tuple(polygon((u - 0.06, 0.1), (u + 0.06, 0.1), (u + 0.045, 0.62), (u - 0.045, 0.62)) for u in (-0.52, 0.52))
    details: tuple[Detail, ...] = (
        *((SHADE, outline) for outline in back),
        ((30, 18, 5, 80), apron),
        (SHADE, polygon((-0.93, 0.11), (0.93, 0.11), (0.92, 0.18), (-0.92, 0.18))),
        (LIGHT, polygon((-1.0, -0.14), (1.0, -0.14), (1.0, -0.08), (-1.0, -0.08))),
        (SHADE, polygon((-0.7, -1.0), (0.7, -1.0), (0.72, -0.96), (-0.72, -0.96))),
    )
    return Shape(aspect, (top, apron, *front, *back), (box(-1.0, -1.0, 0.0, -0.14),), details)


def _bottle() -> Shape:
    aspect = 2.5
    flask = rounded(-0.84, -0.22, 0.84, 1.0, radius=0.28, aspect=aspect)
    shoulder = smooth(
        (-0.84, 0.05),
        (-0.8, -0.22),
        (-0.4, -0.46),
        (-0.36, -0.8),
        (0.36, -0.8),
        (0.4, -0.46),
        (0.8, -0.22),
        (0.84, 0.05),
    )
    neck = box(-0.36, -0.98, 0.36, -0.4)
    details: tuple[Detail, ...] = (
        ((214, 62, 52), rounded(-0.42, -1.0, 0.42, -0.84, radius=0.14, aspect=aspect)),
        (CREAM, box(-0.95, 0.44, 0.95, 0.66)),
        ((60, 120, 84), box(-0.5, 0.52, 0.5, 0.58)),
    )
    return Shape(aspect, (flask, shoulder, neck), (box(-1.0, -0.4, 1.0, 0.42),), details)


def _rider() -> Shape:
    aspect = 0.72 / 0.46
    head = disc(0.22, -0.74, 0.33, aspect)
    torso = stroke((-0.44, 0.0), (-0.3, -0.28), (0.06, -0.46), width=0.38, aspect=aspect, taper=0.88)
    arm = stroke((0.06, -0.46), (0.4, -0.22), (0.82, -0.3), width=0.13, aspect=aspect, taper=0.8)
    thigh = stroke((-0.42, 0.08), (0.0, 0.2), (0.26, 0.36), width=0.27, aspect=aspect, taper=0.82)
    shin = stroke((0.24, 0.36), (0.1, 0.64), (-0.06, 0.9), width=0.21, aspect=aspect, taper=0.8)
    shoe = rounded(-0.2, 0.86, 0.34, 1.0, radius=0.09, aspect=aspect)
    details: tuple[Detail, ...] = (
        (SKIN, head),
        ((244, 214, 70), smooth((-0.1, -0.78), (0.0, -0.95), (0.24, -1.0), (0.48, -0.92), (0.52, -0.8), (0.2, -0.82))),
        (DARK, disc(0.38, -0.73, 0.05, aspect)),
        (SKIN, disc(0.82, -0.3, 0.12, aspect)),
        (SHADE, stroke((0.02, -0.36), (0.38, -0.14), (0.7, -0.2), width=0.035, aspect=aspect)),
        (DARK, shoe),
    )
    return Shape(aspect, (head, torso, arm, thigh, shin, shoe), (box(-1.0, -0.6, 1.0, 0.2),), details)


_BUILDERS: Mapping[Thing, Callable[[], Shape]] = MappingProxyType(
    {
        Thing.CAT: _cat,
        Thing.DOG: _dog,
        Thing.CAR: car,
        Thing.BUS: bus,
        Thing.TRAIN: train,
        Thing.TABLE: _table,
        Thing.BOTTLE: _bottle,
        Thing.BIKE: bike,
        Thing.RIDER: _rider,
        Thing.BOAT: boat,
    }
)


@lru_cache(maxsize=len(Thing))
def shape_of(thing: Thing) -> Shape:
    """The shape of a class, built once."""
    return _BUILDERS[thing]()
