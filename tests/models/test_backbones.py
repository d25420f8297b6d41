from pathlib import Path

import pytest
import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn
from torchvision.models import resnet50

from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.backbones import FrozenEncoder, build_encoder, encoder_stages, load_weights


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


def dilations(encoder: nn.Module) -> set[int]:
    return {side for m in encoder.modules() if isinstance(m, nn.Conv2d) for side in m.dilation}


@torch.no_grad()
def test_without_dilation_the_last_stage_is_that_of_torchvision_with_stride_one():
    torch.manual_seed(0)
    reference = resnet50(weights=None).eval()
    reference.layer4[0].conv2.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    encoder = build_encoder("resnet50", output_stride=16, dilation=False).eval()
    load = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    nn.Module.load_state_dict(encoder, load)
    image = torch.randn(1, 3, 64, 96)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(image))))
    for stage in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        x = stage(x)
    assert x.shape == (1, 2048, 4, 6)
    assert dilations(encoder) == {1}
    torch.testing.assert_close(encoder(image)[-1], x, rtol=1e-4, atol=1e-5)
    plain = build_encoder("resnet50", output_stride=16).eval()
    nn.Module.load_state_dict(plain, load)
    assert (plain(image)[-1] - x).abs().max() > 1e-2, "dilation makes a difference here"


@torch.no_grad()
def test_without_dilation_timm_gives_its_network_of_stride_32_with_the_last_stride_removed():
    encoder = build_encoder("tu-resnet50", output_stride=16, dilation=False).eval()
    reference = timm.create_model("resnet50", features_only=True).eval()
    reference.layer4[0].conv2.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    reference.load_state_dict(encoder.model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(encoder(image)[1:], reference(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet26d", "mobilenet_v2", "tu-tf_efficientnet_lite0"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_without_dilation_feature_maps_keep_their_size(name: str, output_stride: int):
    image = torch.zeros(1, 3, 32, 64)
    plain, undone = (build_encoder(name, output_stride=output_stride, dilation=d).eval() for d in (True, False))
    assert [f.shape for f in undone(image)] == [f.shape for f in plain(image)]
    assert dilations(undone) == {1} < dilations(plain)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [("resnet18", 32, "no dilated convolution"), ("tu-convnext_atto", 8, "a dilated convolution with an even kernel")],
)
def test_dilation_that_cannot_be_undone_is_refused(name: str, output_stride: int, message: str):
    with pytest.raises(ConfigError, match=rf"'{name}' has {message}, .*Set dilation: true"):
        build_encoder(name, output_stride=output_stride, dilation=False)


@pytest.mark.parametrize("name", ["small32", "resnet18", "tu-resnet18", "se_resnet50"])
def test_stages_hold_every_parameter_once_and_end_at_the_feature_maps(name: str):
    encoder = build_encoder(name, output_stride=8).eval()
    stages = encoder_stages(encoder)
    listed = [id(p) for stage in stages for module in stage for p in module.parameters()]
    assert len(stages) == 5
    assert sorted(listed) == sorted(id(p) for p in encoder.parameters())
    features = encoder(torch.randn(1, 3, 32, 32))
    parameters = list(encoder.parameters())
    for index, feature in enumerate(features[1:]):
        gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True, retain_graph=True)
        reached = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None}
        assert reached == {id(p) for stage in stages[: index + 1] for m in stage for p in m.parameters()}


def test_other_encoders_list_no_stages():
    assert encoder_stages(build_encoder("mobilenet_v2")) == []


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
    with pytest.raises(
        CheckpointError, match=r"backbone 'small32' .*linear\.pth.*: 50 of 60 tensors missing, first stages"
    ):
        build_encoder("small32", pretrained=str(tmp_path / "linear.pth"), output_stride=8)


def test_weights_of_another_shape_are_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(
        CheckpointError, match=r"layer cannot be taken from .*linear\.pth.*of another shape, first weight \(4, 2\)"
    ):
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
