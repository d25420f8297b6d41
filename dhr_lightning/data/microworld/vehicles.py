"""Silhouettes of the `microworld` vehicles with their details: car, bus, train, bike, boat."""

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
    ring,
    rounded,
    smooth,
    stroke,
)

TYRE = (30, 30, 34)
RIM = (150, 152, 158)
PANE = (38, 44, 62)
GLINT = (120, 138, 170)
LAMP = (255, 236, 160)
RED_LAMP = (220, 50, 45)
BRASS = (206, 170, 60)


def _wheel(u: float, v: float, radius: float, aspect: float) -> tuple[Detail, ...]:
    return (
        (TYRE, disc(u, v, radius, aspect)),
        (RIM, disc(u, v, radius * 0.48, aspect)),
        (DARK, disc(u, v, radius * 0.2, aspect)),
    )


def car() -> Shape:
    """The shape of a car."""
    aspect = 0.55
    hull = smooth(
        (-1.0, 0.36), (-0.94, 0.02), (-0.6, -0.12), (0.5, -0.1), (0.9, 0.1), (1.0, 0.42), (0.95, 0.7), (-0.95, 0.7)
    )
    cabin = smooth((-0.68, 0.0), (-0.46, -0.8), (-0.3, -0.99), (0.1, -0.99), (0.27, -0.82), (0.58, 0.0))
    wheels = ((-0.56, 0.6), (0.56, 0.6))
    panes = (
        polygon((-0.52, -0.1), (-0.37, -0.74), (-0.1, -0.78), (-0.1, -0.1)),
        polygon((0.0, -0.1), (0.0, -0.78), (0.16, -0.74), (0.41, -0.1)),
    )
    details: list[Detail] = [(PANE, outline) for outline in panes]
    details += [
        (GLINT, polygon((-0.42, -0.2), (-0.30, -0.7), (-0.22, -0.7), (-0.34, -0.2))),
        (GLINT, polygon((0.1, -0.2), (0.1, -0.7), (0.15, -0.7), (0.2, -0.2))),
        (SHADE, stroke((-0.05, -0.1), (-0.05, 0.62), width=0.014, aspect=aspect)),
        (DARK, box(-0.24, 0.06, -0.13, 0.13)),
        (LAMP, ellipse(0.9, 0.22, 0.07, 0.12)),
        (RED_LAMP, rounded(-0.99, 0.05, -0.9, 0.32, radius=0.03, aspect=aspect)),
        (RIM, box(-0.99, 0.56, -0.82, 0.68)),
        (RIM, box(0.82, 0.56, 0.99, 0.68)),
    ]
    for u, v in wheels:
        details += _wheel(u, v, 0.215, aspect)
    bodies = (hull, cabin, *(disc(u, v, 0.215, aspect) for u, v in wheels))
    return Shape(aspect, bodies, (box(0.0, -0.15, 1.0, 0.72),), tuple(details))


def bus() -> Shape:
    """The shape of a bus."""
    aspect = 0.85
    hull = rounded(-1.0, -1.0, 1.0, 0.82, radius=0.15, aspect=aspect)
    wheels = ((-0.52, 0.8), (0.5, 0.8))
    details: list[Detail] = [
        (PANE, rounded(u, -0.74, u + 0.27, -0.3, radius=0.05, aspect=aspect)) for u in (-0.9, -0.58, -0.26, 0.06)
    ]
    details += [
        (GLINT, polygon((u + 0.04, -0.38), (u + 0.13, -0.68), (u + 0.18, -0.68), (u + 0.09, -0.38)))
        for u in (-0.9, -0.58, -0.26, 0.06)
    ]
    details += [
        (PANE, rounded(0.44, -0.74, 0.66, 0.6, radius=0.04, aspect=aspect)),
        (GLINT, box(0.54, -0.7, 0.56, 0.56)),
        (PANE, polygon((0.76, -0.74), (0.99, -0.74), (0.99, -0.2), (0.76, -0.2))),
        (LAMP, rounded(-0.6, -0.95, 0.3, -0.83, radius=0.04, aspect=aspect)),
        (CREAM, box(-1.0, -0.2, 0.42, -0.13)),
        (LAMP, ellipse(0.92, 0.52, 0.06, 0.08)),
        (RED_LAMP, rounded(-0.99, 0.4, -0.93, 0.62, radius=0.03, aspect=aspect)),
    ]
    for u, v in wheels:
        details += _wheel(u, v, 0.17, aspect)
    bodies = (hull, *(disc(u, v, 0.17, aspect) for u, v in wheels))
    return Shape(aspect, bodies, (box(-1.0, -0.1, 0.42, 0.8),), tuple(details))


def train() -> Shape:
    """The shape of a train."""
    aspect = 0.55
    hull = polygon(
        (-1.0, -0.78),
        (-0.97, -0.85),
        (-0.94, -0.88),
        (0.5, -0.88),
        (0.6, -0.84),
        (0.68, -0.74),
        (0.92, 0.0),
        (0.98, 0.3),
        (1.0, 0.6),
        (0.97, 0.78),
        (-1.0, 0.78),
    )
    wheels = (-0.84, -0.58, -0.02, 0.24, 0.68)
    details: list[Detail] = [((60, 62, 70), box(-0.97, 0.62, 0.93, 0.80))]
    details += [
        (PANE, rounded(u, -0.6, u + 0.19, -0.14, radius=0.04, aspect=aspect)) for u in (-0.9, -0.65, -0.4, -0.02, 0.23)
    ]
    details += [
        (GLINT, polygon((u + 0.03, -0.22), (u + 0.09, -0.54), (u + 0.13, -0.54), (u + 0.07, -0.22)))
        for u in (-0.9, -0.65, -0.4, -0.02, 0.23)
    ]
    details += [
        (PANE, polygon((0.55, -0.6), (0.68, -0.6), (0.84, -0.1), (0.55, -0.1))),
        (GLINT, polygon((0.6, -0.52), (0.64, -0.52), (0.72, -0.2), (0.66, -0.2))),
        (SHADE, box(-0.15, -0.64, -0.06, 0.58)),
        (CREAM, box(-1.0, -0.02, 0.88, 0.05)),
        (LAMP, ellipse(0.9, 0.32, 0.05, 0.09)),
        (RED_LAMP, polygon((0.8, 0.62), (0.96, 0.62), (0.93, 0.8), (0.8, 0.8))),
    ]
    for u in wheels:
        details += _wheel(u, 0.83, 0.085, aspect)
    bodies = (hull, box(-0.8, -1.0, -0.35, -0.8), *(disc(u, 0.83, 0.085, aspect) for u in wheels))
    return Shape(aspect, bodies, (box(-1.0, 0.08, 0.95, 0.6),), tuple(details))


def bike() -> Shape:
    """The shape of a bike."""
    aspect, radius, v = 0.72, 0.42, 0.41
    rear, front, pedal, seat, grip = (-0.57, v), (0.57, v), (-0.06, 0.44), (-0.24, -0.42), (0.36, -0.52)
    tubes = tuple(
        stroke(first, second, width=0.055, aspect=aspect)
        for first, second in ((rear, seat), (seat, pedal), (pedal, grip), (seat, grip), (grip, front), (rear, pedal))
    )
    saddle = stroke((-0.42, -0.52), (-0.1, -0.5), width=0.075, aspect=aspect)
    bar = stroke((0.36, -0.5), (0.34, -0.82), (0.16, -0.84), width=0.055, aspect=aspect)
    wheels = (disc(*rear, radius, aspect), disc(*front, radius, aspect))
    details: list[Detail] = []
    for hub in (rear, front):
        details += [(RIM, ring(*hub, 0.345, 0.04, aspect))]
        details += [
            ((104, 102, 98), stroke((hub[0] - a, hub[1] - b), (hub[0] + a, hub[1] + b), width=0.01, aspect=aspect))
            for a, b in ((0.29, 0.0), (0.145, 0.35), (-0.145, 0.35))
        ]
        details += [(RIM, disc(*hub, 0.055, aspect))]
    details += [
        (BRASS, stroke(pedal, grip, width=0.03, aspect=aspect)),
        (BRASS, stroke(seat, grip, width=0.03, aspect=aspect)),
        (RIM, disc(*pedal, 0.075, aspect)),
        (LAMP, ellipse(0.44, -0.42, 0.05, 0.065)),
    ]
    return Shape(aspect, (*wheels, *tubes, saddle, bar), (box(-1.0, 0.0, 0.0, 1.0),), tuple(details))


def boat() -> Shape:
    """The shape of a boat."""
    aspect = 0.95
    hull = smooth(
        (-0.96, 0.53),
        (-0.72, 0.93),
        (-0.46, 1.0),
        (0.46, 1.0),
        (0.72, 0.9),
        (1.0, 0.5),
        (0.4, 0.56),
        (-0.5, 0.56),
        steps=5,
    )
    mainsail = smooth((-0.06, -1.0), (-0.06, -0.3), (-0.06, 0.34), (-0.3, 0.37), (-0.58, 0.34), (-0.35, -0.26))
    jib = polygon((0.05, -0.74), (0.28, -0.18), (0.46, 0.34), (0.05, 0.38))
    mast = box(-0.06, -1.0, 0.06, 0.6)
    details: list[Detail] = [
        ((92, 60, 40), box(-0.035, -1.0, 0.035, 0.54)),
        (CREAM, polygon((-0.94, 0.57), (0.96, 0.55), (0.92, 0.64), (-0.9, 0.65))),
        ((255, 244, 226, 110), jib),
    ]
    details += [(PANE, disc(u, 0.8, 0.07, aspect)) for u in (-0.4, -0.05, 0.3)]
    details += [(CREAM, disc(u - 0.02, 0.78, 0.025, aspect)) for u in (-0.4, -0.05, 0.3)]
    return Shape(aspect, (hull, mainsail, jib, mast), (box(-1.0, 0.0, 1.0, 1.0),), tuple(details))
