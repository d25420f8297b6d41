"""Which arguments the operations refuse, by name, and which values at the end of a range they take."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from wrong_arguments import BYTE, CLASSES, INT, ONE, PRESENT, REFUSED_MAPS
from wrong_features import REFUSED_FEATURES

from dhr_lightning.ops import affinity, boundary, cam, confident, correlation, kmeans, mars, seeds
from dhr_lightning.ops._checks import as_float, check_unit, full_precision
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf import dense as crf
from dhr_lightning.ops.crf import lattice
from dhr_lightning.ops.profiles import RebalanceSettings
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ops.transport import plan as transport

REFUSED = {**REFUSED_MAPS, **REFUSED_FEATURES}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_name_and_value(name: str):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


ENDS: dict[str, Callable[[], Any]] = {
    "one pixel": lambda: boundary.boundary_band(INT(1, 1, 1), distance=1),
    "radius 1": lambda: affinity.neighbour_offsets(1),
    "walk of no step": lambda: affinity.random_walk(ONE(1, 1, 2, 2), ONE(1, 4, 2, 2), radius=2, steps=0, beta=0.0),
    "threshold 0": lambda: cam.background_score(ONE(1, 1, 2, 2), threshold=0.0),
    "threshold 1": lambda: cam.background_score(ONE(1, 1, 2, 2), threshold=1.0),
    "no background": lambda: ImageClasses.from_tags(INT(1, 2), offset=0, include_background=False),
    "tau 0": lambda: correlation.correlation_groups(ONE(1, 2, 2), present=PRESENT, tau=0.0),
    "tau 1": lambda: correlation.correlation_groups(ONE(1, 2, 2), present=PRESENT, tau=1.0),
    "as many clusters as rows": lambda: kmeans.kmeans(torch.eye(3), 3, iterations=1),
    "all cells": lambda: mars.debiased_centroids(torch.eye(2), torch.tensor([0, 1]), num_classes=2, alpha=1.0),
    "full size": lambda: Refiner(scale=1.0, workers=4096, pamr_iterations=1),
    "small size": lambda: Refiner(scale=1e-3, sigma=1e-3, workers=0),
    "no kernels": lambda: crf.CRFSettings(gaussian_compat=0.0, bilateral_compat=0.0, iterations=1),
    "CRF of a pixel": lambda: crf.dense_crf(BYTE[:, :1, :1], ONE(1, 1, 1, 1), workers=4096),
    "no limits": lambda: seeds.merge_seed(INT(1, 2, 2), INT(1, 2, 2), CLASSES, min_pixels=0, min_share=0.0),
    "whole seeds": lambda: seeds.merge_seed(INT(1, 2, 2), INT(1, 2, 2), CLASSES, min_share=1.0),
    "one iteration of transport": lambda: transport.transport_plan(ONE(1, 1), max_iter=1, tol=1e-9, epsilon=1e-3),
    "cache of one": lambda: lattice.LatticeCache(1),
    "equal thresholds": lambda: confident.ConfidentThresholds(foreground=0.3, background=0.3),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_a_range_belong_to_it(name: str):
    ENDS[name]()


HINTS = get_type_hints(RebalanceSettings)
CHOICES = {name: choices for name, hint in HINTS.items() if (choices := get_args(hint)) and str not in choices}


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "gamma"])
def test_settings_take_what_their_type_says_and_nothing_else(name: str):
    assert len(CHOICES[name]) > 1
    for choice in CHOICES[name]:
        assert getattr(replace(RebalanceSettings(), **{name: choice}), name) == choice
    with pytest.raises(ValueError, match=rf"Expected `{name}` to be one of .*, but got 'another'\.") as refused:
        RebalanceSettings(**{name: "another"})
    assert all(choice in str(refused.value) for choice in CHOICES[name])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("epsilon", (1e-6, 5.0), (0.0, -1.0)),
        ("temperature", (1e-6, 5.0), (0.0, -1.0)),
        ("gamma", (1e-6, 0.5, "auto"), (0.0, -1.0, "otsu")),
        ("tau", (0.0, 1.0), (-0.1, 1.1)),
        ("min_share", (0.0, 1.0), (-0.1, 1.1)),
        ("min_pixels", (0, 10**9), (-1,)),
    ],
)
def test_settings_take_numbers_in_their_range(name: str, good: tuple[Any, ...], bad: tuple[Any, ...]):
    for value in good:
        assert getattr(RebalanceSettings(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"Expected `{name}` .* but got {re.escape(repr(value))}\."):
            RebalanceSettings(**{name: value})


@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb", "iterations"])
def test_widths_and_iterations_of_the_crf_are_positive(name: str):
    with pytest.raises(ValueError, match=rf"Expected `{name}` > 0, but got 0\."):
        crf.CRFSettings(**{name: 0})


@pytest.mark.parametrize("name", ["gaussian_compat", "bilateral_compat"])
def test_weights_of_the_crf_are_not_negative(name: str):
    with pytest.raises(ValueError, match=rf"Expected `{name}` in \[0\.0, inf\], but got -1\."):
        crf.CRFSettings(**{name: -1})


@pytest.mark.parametrize(("level", "fits"), [(-0.0009, True), (1.0009, True), (-0.0011, False), (1.0011, False)])
def test_maps_of_half_precision_may_leave_their_range_by_rounding(level: float, fits: bool):
    maps = torch.full((2,), level, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"`cam` in \[0, 1\], but got values from {level} to {level}\. Scale it\."):
        check_unit("cam", maps, hint="Scale it.")
    if fits:
        check_unit("cam", maps, hint="Scale it.", tolerance=1e-3)
    else:
        with pytest.raises(ValueError, match="Scale it"):
            check_unit("cam", maps, hint="Scale it.", tolerance=1e-3)
    check_unit("cam", torch.tensor([0.0, 1.0]), hint="", tolerance=0.0)
    check_unit("cam", torch.empty(0), hint="")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_float64_is_kept_and_all_else_is_computed_in_float32(dtype: torch.dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert as_float(torch.ones(2).to(dtype)).dtype == expected


def test_full_precision_switches_autocast_off_for_its_device_only():
    tensor = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (tensor @ tensor).dtype == torch.bfloat16
        with full_precision(tensor):
            assert (tensor @ tensor).dtype == torch.float32
        assert (tensor @ tensor).dtype == torch.bfloat16
