"""What a configuration may leave out, and that what it says reaches the part that it is about."""

from collections import Counter
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

from dhr_lightning.data.crops import FiveCrop
from dhr_lightning.methods import segmentation
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features import collecting
from dhr_lightning.methods.features.fitted.task import FittedTask
from dhr_lightning.methods.features.stego.task import StegoTask
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.masks.mars.task import MARSTask
from dhr_lightning.methods.propagation.task import PropagationTask
from dhr_lightning.methods.seeds.cam import task as cam
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.segmenters.wss.task import WSSTask
from dhr_lightning.models.segmenter import SegmenterConfig
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.provenance.start_checks import backbone_of
from dhr_lightning.steps import StepSpec, get_method, methods
from tests.task_samples import NAMES

CPU = torch.device("cpu")
OPTIMISER = {
    "optimizer": "sgd", "lr": 1e-3, "head_lr_factor": 10.0, "momentum": 0.9, "weight_decay": 4e-5, "power": 0.9,
    "warmup": 0.0, "frozen_norm": False, "frozen_stages": 0, "frozen_encoder": False, "from_scratch": False,
}  # fmt: skip
FOUR = (1.0, 0.5, 1.5, 2.0)
SEGMENTER = {
    "backbone": "resnet101", "pretrained": False, "output_stride": 8, "decoder": "deeplabv3plus",
    "decoder_options": None, "loss_size": "decoder", "ema": 0.999, "ema_warmup": True,
    "scales": FOUR, "test_crf": None, "force_masks": False,
}  # fmt: skip
REFINE = {"refine": "auto", "workers": 2, "refine_scale": 1.0}
DEFAULTS: dict[type[BaseTask], dict[str, Any]] = {
    CAMTask: {
        "backbone": "resnet50", "pretrained": False, "output_stride": 16, "dilation": True, "scales": FOUR,
        "cam_stride": 4, "pooling": None,
    },
    PropagationTask: {"background": "auto", "confident": None, "crf": None, **REFINE},
    FittedTask: {
        "backbone": "vit_base_patch8_224.dino", "pretrained": False, "head": "principal_axes", "dimension": 70,
        "cells": 60_000, "patches": 30_000, "scales": (2.0, 1.0, 1.5, 0.5), "flip": True,
    },
    StegoTask: {
        "backbone": "vit_base_patch8_224.dino", "pretrained": False, "dimension": 70, "patches": 30_000, "stego": None,
        "scales": (2.0, 1.0, 1.5, 0.5), "flip": True,
    },
    WSSTask: SEGMENTER,
    MARSTask: {
        "k_fg": 2, "k_bg": 2, "alpha": 0.4, "weighting": "cells", "rejected": "background",
        "threshold": 0.5, "max_lost_tags": 0.05, "max_rejected": 0.45, "force_masks": False, "crf": None, **REFINE,
    },
    DHRTask: {
        **SEGMENTER, "seed_view": "default", "cam_scales": (1.0, 1.5), "rebalance": None,
        "crf_seed": None, "crf_final": None, "weight_cls": 1.0, **REFINE,
    },
}  # fmt: skip
Made = Callable[..., tuple[BaseTask, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Construct a task on an empty network, and tell what its network was asked for."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def network(*arguments: Any, **options: Any) -> nn.Module:
        asked.append((arguments, options))
        empty = nn.Module()
        empty.cell = 8
        return empty

    for module, name in (
        (cam, "CAMClassifier"),
        (collecting, "USSNetwork"),
        (segmentation, "build_segmenter"),
    ):
        monkeypatch.setattr(module, name, network)

    def make(task_class: type[BaseTask], **options: Any) -> tuple[BaseTask, tuple[Any, ...], dict[str, Any]]:
        task = task_class(class_names=NAMES, **options)
        return task, *(asked[-1] if asked else ((), {}))

    return make


@pytest.mark.parametrize("task_class", DEFAULTS)
def test_settings_that_may_be_left_out(made: Made, task_class: type[BaseTask]):
    task, _, _ = made(task_class)
    expected = {"class_names": NAMES, "has_background": True, **OPTIMISER, **DEFAULTS[task_class]}
    found = dict(task.hparams)
    for name in expected:
        assert found[name] == expected[name], name
    assert task.classes.names == tuple(NAMES)
    assert task.classes.has_background


@pytest.mark.parametrize("name", sorted(name for name, one in methods().items() if one.spec.trains_backbone))
def test_weights_are_checked_for_the_backbone_that_is_built_where_none_is_named(made: Made, name: str):
    spec = get_method(name).spec
    task, _, _ = made(spec.task_class())
    assert backbone_of({"model": {"class_path": spec.task}, "data": {"method": name}}) == task.hparams.backbone


@pytest.mark.parametrize("task_class", [CAMTask, FittedTask, StegoTask, WSSTask, DHRTask])
def test_a_class_list_without_background_has_one_tag_for_each_class(made: Made, task_class: type[BaseTask]):
    task, arguments, options = made(task_class, has_background=False)
    assert task.classes.offset == 0
    assert task.classes.num_tags == 5
    tags = {CAMTask: arguments[1], DHRTask: options.get("num_tags")}
    assert tags.get(task_class, 5) == 5


def test_the_classifier_is_built_as_asked(made: Made):
    _, arguments, options = made(CAMTask, backbone="b", pretrained="path", output_stride=8, dilation=False)
    assert arguments == ("b", 4)
    assert options == {"pretrained": "path", "output_stride": 8, "dilation": False}
    assert made(CAMTask)[2] == {"pretrained": False, "output_stride": 16, "dilation": True}


@pytest.mark.parametrize("task_class", [WSSTask, DHRTask])
def test_the_segmenter_is_built_as_asked(made: Made, task_class: type[BaseTask]):
    settings = {"decoder": "fpn", "decoder_options": {"a": 1}, "pretrained": "path", "output_stride": 16}
    _, arguments, options = made(task_class, backbone="b", **settings)
    assert arguments == (SegmenterConfig("b", **settings), 5)
    assert options == {"num_tags": 4 if task_class is DHRTask else 0}


def test_the_network_of_stage_2_is_built_as_asked(made: Made):
    _, arguments, options = made(FittedTask, backbone="b", head="whitening", pretrained="path", dimension=7)
    assert (arguments, options) == (("b", "whitening"), {"pretrained": "path", "dimension": 7})
    _, arguments, options = made(StegoTask, backbone="b", pretrained="path", dimension=7)
    assert (arguments, options) == (("b", "stego"), {"pretrained": "path", "dimension": 7})


def test_training_batches_are_crops_where_a_network_is_trained_on_them(made: Made):
    assert all(made(task_class)[0].augment for task_class in (CAMTask, WSSTask, DHRTask))
    assert made(CAMTask)[0].five_crop is None
    assert not made(MARSTask)[0].augment
    stego = made(StegoTask, stego={"crop_size": 32, "crop_ratio": 0.6})[0]
    assert stego.augment
    assert stego.five_crop == FiveCrop(32, 0.6)
    assert made(StegoTask)[0].five_crop == FiveCrop(224, 0.5)
    fitted = made(FittedTask)[0]
    assert (fitted.augment, fitted.five_crop) == (False, None)


def ports(spec: StepSpec) -> dict[str, str]:
    """When each input is read: f in training batches, p in prediction, r in a mask refresh, w weights, ? optional."""
    found = {}
    for port, read in spec.reads.items():
        letters = {"f": read.fit, "p": read.predict, "r": read.refresh, "w": read.weights, "?": read.optional}
        found[port] = "".join(letter for letter, set_ in letters.items() if set_)
    return found


def test_every_method_says_what_it_reads_and_writes():
    reads = {name: ports(method.spec) for name, method in methods().items()}
    assert reads["cam"] == reads["patches"] == reads["fitted"] == {}
    assert reads["crf"] == reads["pamr"] == {"cam": "p"}
    assert reads["wss"] == {"masks": "f", "init": "w?"}
    assert reads["mars"] == {"masks": "fp", "features": "fp"}
    assert reads["dhr"] == {"masks": "r", "features": "r?", "init": "w?"}
    assert reads["rebalance"] == {"masks": "p", "features": "p?", "init": "w"}
    writes = {
        name: {kind: one.splits for kind, one in method.spec.writes.items()} for name, method in methods().items()
    }
    train, others = ("train",), ("val", "test")
    assert writes["cam"] == {"cam": train}
    assert writes["crf"] == writes["pamr"] == writes["mars"] == writes["rebalance"] == {"mask": train}
    assert writes["stego"] == writes["patches"] == writes["fitted"] == {"features": train}
    assert writes["wss"] == writes["dhr"] == {"mask": train, "prediction": others}
    assert writes["crops"] == {"crops": train}
    assert [name for name, method in methods().items() if method.spec.has_rounds] == ["dhr", "light_dhr"]
    assert sorted(name for name, method in methods().items() if not method.spec.fits) == [
        "crf", "crops", "frozen", "pamr", "rebalance", "rebalance_stored"
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(methods()))
def test_only_the_ground_truth_of_a_segmenter_may_be_learnt_from(name: str):
    truth = {port for port, read in get_method(name).spec.reads.items() if read.truth}
    assert truth == ({"masks"} if name in ("wss", "light") else set())


def declared_arguments(task_class: type[BaseTask]) -> Counter[str]:
    """How many constructors of a task and its bases name each argument."""
    constructors = [
        signature(one) for one in task_class.__mro__ if issubclass(one, BaseTask) and "__init__" in vars(one)
    ]
    return Counter(name for one in constructors for name, p in one.parameters.items() if p.kind != p.VAR_KEYWORD)


@pytest.mark.parametrize("name", sorted(methods()))
def test_each_argument_of_a_task_is_declared_once(name: str):
    task_class = get_method(name).spec.task_class()
    assert {argument for argument, times in declared_arguments(task_class).items() if times > 1} == set()


@pytest.mark.parametrize("name", sorted(methods()))
def test_settings_that_a_method_calls_special_are_arguments_of_its_task(name: str):
    spec = get_method(name).spec
    assert set(spec.predict_only) <= set(declared_arguments(spec.task_class()))
    assert set(spec.forwards) <= set(spec.writes)
    assert set(spec.forwards.values()) <= set(spec.reads)


@pytest.mark.parametrize(("task_class", "name"), [(PropagationTask, "crf"), (MARSTask, "crf")])
def test_the_refinement_is_that_of_the_settings(made: Made, task_class: type[BaseTask], name: str):
    task, _, _ = made(
        task_class, refine="pamr", workers=3, refine_scale=0.5, **{name: {"iterations": 7, "bilateral_sxy": 20.0}}
    )
    refiner = task.refiner
    assert (refiner.backend, refiner.workers, refiner.scale) == ("pamr", 3, 0.5)
    assert refiner.settings == CRFSettings(iterations=7, bilateral_sxy=20.0)
    plain = made(task_class)[0].refiner
    assert (plain.backend, plain.workers, plain.scale, plain.settings) == ("auto", 2, 1.0, CRFSettings())


def test_seeds_and_final_masks_have_kernels_of_their_own_and_one_cache(made: Made):
    task, _, _ = made(
        DHRTask, refine="lattice", workers=3, refine_scale=0.5, crf_seed={"iterations": 7}, crf_final={"iterations": 3}
    )
    for refiner, iterations in ((task.refine_seed, 7), (task.refine_final, 3)):
        assert (refiner.backend, refiner.workers, refiner.scale) == ("lattice", 3, 0.5)
        assert refiner.settings == CRFSettings(iterations=iterations)
    assert task.refine_seed.cache is task.refine_final.cache
    plain = made(DHRTask)[0]
    assert plain.refine_seed.settings == plain.refine_final.settings == CRFSettings()


@pytest.mark.parametrize("task_class", [WSSTask, DHRTask])
def test_the_protocol_of_predictions_is_that_of_the_settings(made: Made, task_class: type[BaseTask]):
    crf = {"backend": "lattice", "workers": 3, "iterations": 4, "prune": 0.2}
    task, _, _ = made(task_class, scales=[1.0, 0.75], test_crf=crf)
    record = task.inference.protocol("val", CPU).record()
    assert (record["scales"], record["flip"], record["backend"]) == ([1.0, 0.75], True, "lattice")
    assert (record["prune"], record["crf"]["iterations"], record["ignore_index"]) == (0.2, 4, 255)
    assert task.inference.refiner.workers == 3
    plain = made(task_class)[0].inference
    assert plain.refiner is None
    assert plain.protocol("val", CPU).record()["scales"] == list(FOUR)
    assert len(task.confusion.matrix) == 5


def test_settings_of_the_mask_step_and_of_stego_are_handed_on(made: Made):
    settings = made(DHRTask, rebalance={"profile": "reference", "tau": 0.3})[0].rebalance_settings
    assert settings.tau == 0.3
    assert settings != made(DHRTask, rebalance={"tau": 0.3})[0].rebalance_settings
    assert made(StegoTask, stego={"neighbours": 4})[0].stego.neighbours == 4


@pytest.mark.parametrize("task_class", [CAMTask, PropagationTask, WSSTask, FittedTask, StegoTask, DHRTask, MARSTask])
def test_options_of_the_optimiser_reach_the_base(made: Made, task_class: type[BaseTask]):
    options = {
        "optimizer": "adamw", "lr": 0.5, "head_lr_factor": 3.0, "momentum": 0.5, "weight_decay": 0.25, "power": 2.0,
        "warmup": 0.125, "frozen_norm": "statistics", "frozen_stages": 2, "frozen_encoder": True,
    }  # fmt: skip
    task, _, _ = made(task_class, **options)
    assert {name: task.hparams[name] for name in options} == options
    assert task.inference_info() == {}


def test_an_epoch_of_a_fit_is_written_by_hand_where_nothing_or_two_things_are_optimised(made: Made):
    automatic = {task_class: made(task_class)[0].automatic_optimization for task_class in DEFAULTS}
    assert automatic == {
        CAMTask: True,
        PropagationTask: True,
        WSSTask: True,
        DHRTask: True,
        FittedTask: False,
        StegoTask: False,
        MARSTask: False,
    }
    assert made(MARSTask)[0].configure_optimizers() is None
    assert made(FittedTask)[0].configure_optimizers() is None


def test_nothing_has_been_found_before_the_fit(made: Made):
    task = made(MARSTask)[0]
    assert task.centroids.shape == task.found.shape == (0,)
    assert task.found.dtype == torch.bool
    assert {"centroids", "found"} <= set(task.state_dict())
