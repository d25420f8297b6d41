"""What weights a network starts with: random ones of the published size, or those of a file, whatever wrote it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dhr_lightning.errors import CheckpointError
from dhr_lightning.models.backbones import FrozenEncoder, build_encoder
from dhr_lightning.models.classifier import CAMClassifier
from dhr_lightning.models.deeplab import DeepLabDecoder
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig
from dhr_lightning.models.uss import USSNetwork
from dhr_lightning.models.vit import FrozenViT

VIT = "vit_tiny_patch16_224"
# A network, made from the file of its backbone's weights, and that backbone with other weights.
FROM_FILE: dict[str, tuple[Callable[[str], nn.Module], Callable[[], nn.Module]]] = {
    "encoder": (lambda path: build_encoder("resnet18", pretrained=path), lambda: build_encoder("resnet18")),
    "timm": (lambda path: build_encoder("tu-resnet18", pretrained=path), lambda: build_encoder("tu-resnet18")),
    "frozen": (lambda path: FrozenEncoder("resnet18", pretrained=path).encoder, lambda: build_encoder("resnet18")),
    "vit": (lambda path: FrozenViT(VIT, pretrained=path).model, lambda: FrozenViT(VIT).model),
    "cam": (lambda path: CAMClassifier("resnet18", 2, pretrained=path).encoder, lambda: build_encoder("resnet18")),
    "segmenter": (
        lambda path: Segmenter(SegmenterConfig("resnet18", path, output_stride=16), 2).encoder,
        lambda: build_encoder("resnet18"),
    ),
    "uss": (
        lambda path: USSNetwork("resnet18", "stego", pretrained=path, dimension=4).backbone.encoder,
        lambda: build_encoder("resnet18"),
    ),
    "uss of a vit": (
        lambda path: USSNetwork(VIT, "stego", pretrained=path, dimension=4).backbone.model,
        lambda: FrozenViT(VIT).model,
    ),
}


@pytest.mark.parametrize("kind", FROM_FILE)
def test_weights_saved_on_a_gpu_are_taken_over_without_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file says `cuda:0` of every tensor, as one written during training on a GPU does."""
    take, make = FROM_FILE[kind]
    source = make()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(source.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = take(str(tmp_path / "weights.pth")).state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("kind", ["encoder", "vit"])
def test_a_file_that_could_run_code_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even where the environment allows torch to run it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    take, make = FROM_FILE[kind]
    state = make().state_dict()
    torch.save({**state, "options": argparse.Namespace(learning_rate=0.1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"(?s)cannot be taken from .*weights\.pth: .*Namespace"):
        take(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("kind", ["encoder", "vit"])
def test_a_file_that_lacks_one_tensor_is_refused_and_names_it(kind: str, tmp_path: Path):
    take, make = FROM_FILE[kind]
    state = make().state_dict()
    lacking = list(state)[7]
    del state[lacking]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"(?s)weights\.pth.*{lacking}"):
        take(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CAMClassifier("resnet18", 40),
        lambda: Segmenter(SegmenterConfig("resnet18", output_stride=16), 4, num_tags=40),
    ],
)
def test_a_cam_head_starts_as_small_normal_noise(make: Callable[[], Any]):
    torch.manual_seed(0)
    weight = make().classifier.weight.detach()  # 20480 values
    assert weight.mean().abs() < 5e-4
    assert float(weight.std()) == pytest.approx(0.01, rel=0.05)
    assert (weight.abs() > 0.02).float().mean() > 0.02, "a normal distribution has tails"


def test_the_last_layer_of_deeplab_starts_by_the_rule_of_xavier():
    """Uniform, with a variance of two over inputs plus outputs."""
    torch.manual_seed(0)
    network = Segmenter(SegmenterConfig("small32", decoder_options={"channels": 40}, output_stride=8), 24)
    weight, bound = network.head.weight.detach(), (6 / (40 + 24)) ** 0.5
    assert 0.95 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.06)


def test_convolutions_of_deeplab_start_by_the_rule_of_kaiming_and_its_norms_as_identity():
    torch.manual_seed(0)
    decoder = DeepLabDecoder([3, 4, 16, 4, 4, 32], num_classes=4, output_stride=8, channels=16, low_channels=8)
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            inputs = module.weight[0].numel()
            bound = (6 / inputs) ** 0.5
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
@pytest.mark.parametrize("asked", [True, False])
def test_weights_are_fetched_by_name_only_if_asked(name: str, asked: bool, monkeypatch: pytest.MonkeyPatch):
    """The library that would fetch them is told so; it is replaced, for tests have no network."""
    seen: list[Any] = []

    def without_network(*arguments: Any, weights: Any, **options: Any) -> nn.Module:
        seen.append((weights, options["output_stride"]))
        return nn.Identity()

    monkeypatch.setattr("dhr_lightning.models.backbones.get_encoder", without_network)
    build_encoder(name, pretrained=asked, output_stride=8)
    by_name = True if name.startswith("tu-") else "imagenet"
    assert seen == [(by_name if asked else None, 8)]


@pytest.mark.parametrize("asked", [True, False])
def test_weights_of_a_transformer_are_fetched_by_name_only_if_asked(asked: bool, monkeypatch: pytest.MonkeyPatch):
    real, seen = timm.create_model, []

    def without_network(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        seen.append((name, pretrained))
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    FrozenViT(VIT, pretrained=asked)
    assert seen == [(VIT, asked)]
