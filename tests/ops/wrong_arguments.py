"""Calls that the operations refuse, and what they say: the name of the argument, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import torch

from dhr_lightning.ops import affinity, boundary, cam, confident, correlation
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf import dense as crf

KEYS = torch.tensor([[0, 1]])
PRESENT = KEYS >= 0
NAN = torch.nan
CLASSES = ImageClasses(KEYS, 1)
BYTE = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
RGB = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
ONE = torch.ones


def INT(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long)


def of_shape(name: str, letters: str, expected: tuple[int, ...] | None, found: tuple[int, ...]) -> str:
    exact = "" if expected is None else f" = {expected}"
    return f"Expected `{name}` of shape ({', '.join(letters.split())}){exact}, but got {found}."


Refused = tuple[Callable[[], Any], str]
REFUSED_MAPS: dict[str, Refused] = {
    "offsets": (lambda: affinity.neighbour_offsets(0), "Expected `radius` > 0, but got 0."),
    "affinity of maps": (
        lambda: affinity.feature_affinity(ONE(2, 3, 4)),
        of_shape("features", "B D H W", None, (2, 3, 4)),
    ),
    "affinity not finite": (
        lambda: affinity.feature_affinity(ONE(1, 2, 3, 3) * NAN),
        "`features` to be finite, but 18 of 18",
    ),
    "walk on maps": (lambda: affinity.random_walk(ONE(2, 3, 4), ONE(1)), of_shape("score", "B K H W", None, (2, 3, 4))),
    "walk, affinity": (
        lambda: affinity.random_walk(ONE(1, 2, 4, 5), ONE(1, 4, 5, 4), radius=2),
        of_shape("affinity", "B P H W", (1, 4, 4, 5), (1, 4, 5, 4)),
    ),
    "walk, valid": (
        lambda: affinity.random_walk(ONE(1, 2, 4, 5), ONE(1, 2, 4, 5), radius=2, valid=ONE(1, 5, 4) > 0),
        of_shape("valid", "B H W", (1, 4, 5), (1, 5, 4)),
    ),
    "walk, valid elsewhere": (
        lambda: affinity.random_walk(
            ONE(1, 2, 4, 5), ONE(1, 2, 4, 5), radius=2, valid=torch.ones(1, 4, 5, device="meta")
        ),
        "Expected `valid` on the device of `score`, cpu, but got meta.",
    ),
    "walk, boundary": (
        lambda: affinity.random_walk(ONE(1, 2, 4, 5), ONE(1, 2, 4, 5), radius=2, boundary=ONE(1, 5, 4)),
        of_shape("boundary", "B H W", (1, 4, 5), (1, 5, 4)),
    ),
    "band of an image": (
        lambda: boundary.boundary_band(INT(4, 5), distance=1),
        of_shape("mask", "B H W", None, (4, 5)),
    ),
    "min-max of three axes": (
        lambda: cam.min_max_normalize(ONE(3, 4, 4), spatial_dims=3),
        "`spatial_dims` to be one of 1, 2, but got '3'",
    ),
    "min-max without classes": (
        lambda: cam.min_max_normalize(ONE(4), spatial_dims=1),
        "Expected `x` of shape (..., K, N), but got (4,).",
    ),
    "background of a map": (
        lambda: cam.background_score(ONE(2, 3), exponent=1.0),
        of_shape("cam", "B K h w", None, (2, 3)),
    ),
    "background, threshold": (
        lambda: cam.background_score(ONE(1, 1, 2, 2), threshold=-0.1),
        "`threshold` in [0.0, 1.0], but got -0.1",
    ),
    "background, exponent": (
        lambda: cam.background_score(ONE(1, 1, 2, 2), exponent=-2.0),
        "Expected `exponent` > 0, but got -2.0.",
    ),
    "background, exponents": (
        lambda: cam.background_score(ONE(2, 1, 2, 2), exponent=torch.tensor([1.0, 0.0])),
        "`exponent` > 0, but got [1.0, 0.0]",
    ),
    "keys of one image": (
        lambda: ImageClasses.from_tags(INT(3), offset=1, include_background=True),
        of_shape("tags", "B T", None, (3,)),
    ),
    "keys, offset": (
        lambda: ImageClasses.from_tags(INT(1, 3), offset=2, include_background=True),
        "`offset` in [0, 1], but got 2",
    ),
    "gather of a map": (
        lambda: cam.gather_classes(ONE(2, 3), CLASSES),
        of_shape("maps", "B T h w", None, (2, 3)),
    ),
    "classes of a key": (lambda: ImageClasses(KEYS[0], 1), of_shape("keys", "B K", None, (2,))),
    "classes, offset": (lambda: ImageClasses(KEYS, -1), "`offset` in [0, 1], but got -1"),
    "classes, area of an image": (
        lambda: ImageClasses(KEYS, 1, ONE(4, 4) > 0),
        of_shape("valid", "B H W", None, (4, 4)),
    ),
    "classes, area of more images": (
        lambda: ImageClasses(KEYS, 1, ONE(2, 4, 4) > 0),
        of_shape("valid", "B H W", (1, 4, 4), (2, 4, 4)),
    ),
    "classes without background": (
        lambda: ImageClasses(KEYS, 0).with_background(),
        "Expected `offset` = 1 for a background, but got 0: the set has no background class.",
    ),
    "labels of a map": (lambda: cam.labels_from_scores(ONE(2, 3), KEYS), of_shape("scores", "B K h w", None, (2, 3))),
    "labels of a key": (lambda: cam.labels_from_scores(ONE(1, 3, 2, 2), KEYS), of_shape("keys", "B K", (1, 3), (1, 2))),
    "index of an image": (lambda: cam.index_classes(INT(4, 4), KEYS), of_shape("mask", "B H W", None, (4, 4))),
    "index of a key": (lambda: cam.index_classes(INT(1, 4, 4), KEYS[0]), of_shape("keys", "B K", None, (2,))),
    "trust in labels": (
        lambda: confident.label_probability(INT(4, 4), PRESENT),
        of_shape("index", "B H W", None, (4, 4)),
    ),
    "trust in a class": (
        lambda: confident.label_probability(INT(1, 4, 4), PRESENT[0]),
        of_shape("present", "B K", None, (2,)),
    ),
    "groups of a class": (
        lambda: correlation.correlation_groups(ONE(3, 4), present=PRESENT),
        of_shape("centroids", "B K D", None, (3, 4)),
    ),
    "groups, present": (
        lambda: correlation.correlation_groups(ONE(1, 3, 4), present=PRESENT),
        of_shape("present", "B K", (1, 3), (1, 2)),
    ),
    "groups, tau": (
        lambda: correlation.correlation_groups(ONE(1, 2, 4), present=PRESENT, tau=-0.1),
        "`tau` in [0.0, 1.0], but got -0.1",
    ),
    "CRF without classes": (
        lambda: crf.dense_crf(BYTE, ONE(1, 0, 4, 4)),
        "but got torch.float32 of shape (1, 0, 4, 4)",
    ),
    "CRF without rows": (lambda: crf.dense_crf(BYTE, ONE(1, 2, 0, 4)), "but got torch.float32 of shape (1, 2, 0, 4)"),
    "CRF without columns": (
        lambda: crf.dense_crf(BYTE, ONE(1, 2, 4, 0)),
        "but got torch.float32 of shape (1, 2, 4, 0)",
    ),
    "CRF of counts": (lambda: crf.dense_crf(BYTE, INT(1, 2, 4, 4)), "but got torch.int64 of shape (1, 2, 4, 4)"),
    "CRF of a map": (lambda: crf.dense_crf(BYTE, ONE(4, 4)), of_shape("probability", "B C H W", None, (4, 4))),
    "CRF, image": (
        lambda: crf.dense_crf(BYTE, ONE(1, 2, 4, 5)),
        of_shape("image", "B H W 3", (1, 4, 5, 3), (1, 4, 4, 3)),
    ),
    "CRF of floats": (
        lambda: crf.dense_crf(BYTE.float(), ONE(1, 2, 4, 4)),
        "`image` of type uint8 with levels 0-255, but got torch.float32",
    ),
    "CRF, present": (
        lambda: crf.dense_crf(BYTE, ONE(1, 2, 4, 4), present=ONE(1, 3) > 0),
        of_shape("present", "B C", (1, 2), (1, 3)),
    ),
    "CRF, workers": (
        lambda: crf.dense_crf(BYTE, ONE(1, 2, 4, 4), workers=4097),
        "`workers` in [0, 4096], but got 4097",
    ),
}
