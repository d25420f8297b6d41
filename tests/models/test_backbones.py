from pathlib import Path

import pytest
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn

from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.backbones import FrozenEncoder, build_encoder, load_weights


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [
        ("small32", 8, [1, 2, 4, 8, 8, 8]),
        ("resnet18", 8, [1, 2, 4, 8, 8, 8]),
        ("resnet18", 16, [1, 2, 4, 8, 16, 16]),
        ("tu-resnet18", 16, [1, 2, 4, 8, 16, 16]),
    ],
)
def test_feature_maps_have_the_promised_strides_and_channels(name: str, output_stride: int, strides: list[int]):
    encoder = build_encoder(name, output_stride=output_stride).eval()
    features = encoder(torch.zeros(1, 3, 32, 64))
    assert [tuple(f.shape[-2:]) for f in features] == [(32 // stride, 64 // stride) for stride in strides]
    assert [f.shape[1] for f in features] == list(encoder.out_channels)


def test_the_small_encoder_is_small_and_random():
    first, second = (build_encoder("small32", output_stride=8) for _ in range(2))
    assert 0.4e6 < sum(p.numel() for p in first.parameters()) < 0.8e6
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize("name", ["resnet5000", "tu-resnet5000", "small"])
def test_an_unknown_backbone_is_refused(name: str):
    with pytest.raises(ConfigError, match=rf"Unknown backbone '{name}'\. Known: small32, tu-"):
        build_encoder(name)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("small32", 16, "output stride 8, but got 16"),
        ("resnet18", 12, "'resnet18' .*output_stride: 12"),
        ("tu-swin_tiny_patch4_window7_224", 8, "'tu-swin_tiny_patch4_window7_224' .*output_stride: 8"),
        ("tu-resnet18.no_such_weights", 16, "tu-resnet18"),
    ],
)
def test_a_backbone_that_cannot_do_what_is_asked_is_refused(name: str, output_stride: int, message: str):
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, output_stride=output_stride)


def test_weights_that_do_not_exist_by_name_are_refused():
    with pytest.raises(ConfigError, match="'small32' has no pretrained weights"):
        build_encoder("small32", pretrained=True, output_stride=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders["resnet18"], "pretrained_settings", {})
        with pytest.raises(ConfigError, match=r"'resnet18' cannot have pretrained: True .*imagenet"):
            build_encoder("resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
def test_a_failed_download_says_what_to_do(name: str):
    with pytest.raises(DependencyError, match=rf"'{name}' could not be downloaded.*pretrained: PATH"):
        build_encoder(name, pretrained=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file_are_taken_over(tmp_path: Path, wrapped: bool):
    source = build_encoder("resnet18")
    state = {**source.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "weights.pth")
    loaded = build_encoder("resnet18", pretrained=str(tmp_path / "weights.pth"))
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"Weights of backbone 'small32' are missing: .*gone\.pth"):
        build_encoder("small32", pretrained=str(tmp_path / "gone.pth"), output_stride=8)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"linear\.pth does not fit backbone 'small32': \d+ tensors missing"):
        build_encoder("small32", pretrained=str(tmp_path / "linear.pth"), output_stride=8)


def test_weights_of_another_shape_are_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"(?s)layer cannot be taken from .*linear\.pth.*size mismatch"):
        load_weights(nn.Linear(2, 3), tmp_path / "linear.pth", what="layer")


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "weights.pth"
    torch.save([1, 2], path) if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layer cannot be taken from .*weights\.pth"):
        load_weights(nn.Linear(2, 3), path, what="layer")


def test_a_frozen_encoder_gives_one_map_without_gradient():
    encoder = FrozenEncoder("mobilenet_v2", level=2)
    features = encoder.train()(torch.randn(2, 3, 64, 96))
    assert tuple(features.shape) == (2, 96, 4, 6) == (2, encoder.out_channels, 4, 6)
    assert not features.requires_grad
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("level", [0, 6])
def test_a_map_that_the_encoder_lacks_is_refused(level: int):
    with pytest.raises(ConfigError, match=rf"level of 'mobilenet_v2' in \[1, 5\], but got {level}"):
        FrozenEncoder("mobilenet_v2", level=level)
