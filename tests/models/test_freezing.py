import pytest
import torch
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import build_encoder
from dhr_lightning.models.freezing import frozen_parts


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return build_encoder("resnet18", output_stride=16)


def names(encoder: nn.Module, parts: list[nn.Module]) -> set[str]:
    """Names of all modules without children that some parts hold."""
    held = {id(module) for part in parts for module in part.modules()}
    return {name for name, module in encoder.named_modules() if id(module) in held and not list(module.children())}


def test_nothing_is_frozen_unless_asked(encoder: nn.Module):
    assert frozen_parts(encoder, norm=False, stages=0, whole=False) == ([], [])


def test_statistics_freeze_no_parameter_and_true_freezes_those_of_norms(encoder: nn.Module):
    norms = {name for name, module in encoder.named_modules() if isinstance(module, nn.BatchNorm2d)}
    without_gradient, in_evaluation = frozen_parts(encoder, norm="statistics", stages=0, whole=False)
    assert without_gradient == []
    assert names(encoder, in_evaluation) == norms
    without_gradient, in_evaluation = frozen_parts(encoder, norm=True, stages=0, whole=False)
    assert names(encoder, without_gradient) == names(encoder, in_evaluation) == norms


@pytest.mark.parametrize(("stages", "later"), [(1, "234"), (2, "34"), (4, "")])
def test_early_stages_are_frozen_with_their_norms(encoder: nn.Module, stages: int, later: str):
    without_gradient, in_evaluation = frozen_parts(encoder, norm=False, stages=stages, whole=False)
    free = tuple(f"layer{number}." for number in later)
    leaves = {name for name, module in encoder.named_modules() if not list(module.children())}
    expected = {name for name in leaves if not name.startswith(free)} if free else leaves
    assert names(encoder, without_gradient) == names(encoder, in_evaluation) == expected


def test_the_whole_encoder_is_frozen(encoder: nn.Module):
    assert frozen_parts(encoder, norm=False, stages=0, whole=True) == ([encoder], [encoder])


def test_norms_of_groups_are_left_alone():
    plain = nn.Sequential(nn.GroupNorm(1, 2), nn.SyncBatchNorm(2))
    _, in_evaluation = frozen_parts(plain, norm="statistics", stages=0, whole=False)
    assert in_evaluation == [plain[1]]


@pytest.mark.parametrize("count", [-1, 5])
def test_more_stages_than_there_are_are_refused(encoder: nn.Module, count: int):
    with pytest.raises(ConfigError, match=rf"frozen_stages in \[0, 4\], .* but got {count}\."):
        frozen_parts(encoder, norm=False, stages=count, whole=False)


def test_an_encoder_that_lists_no_stages_is_refused():
    with pytest.raises(ConfigError, match=r"frozen_stages to be 0, but got 2: this backbone does not list"):
        frozen_parts(torch.nn.Conv2d(3, 3, 1), norm=False, stages=2, whole=False)
