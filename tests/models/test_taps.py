"""One interface to the taps of any backbone, with timm's smallest networks and random weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.normalize import normalize
from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.cards import IMAGENET_CARD
from dhr_lightning.models.taps import TapEncoder
from dhr_lightning.models.weights import create_timm

VIT, CNN = "test_vit", "test_resnet"
NAMES = {VIT: ["block1", "keys", "vv", "qk", "attention"], CNN: ["stage2", "stage4", "stage5"], "small32": ["stage3"]}


def encoder_of(name: str, *taps: str, pretrained: bool | str = False, dtype: str = "float32") -> TapEncoder:
    torch.manual_seed(0)
    return TapEncoder(name, taps=taps or NAMES[name], pretrained=pretrained, dtype=dtype)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_maps_follow_one_another_in_the_order_of_the_taps(name: str):
    encoder, image = encoder_of(name), noise(2, 3, 48, 80)
    found, whole = encoder.encode(image), encoder(image)
    assert list(encoder.channels) == list(found) == NAMES[name]
    assert (encoder.cell, encoder.name) == (16, name)
    assert whole.shape == (2, sum(encoder.channels.values()), 3, 5)
    assert whole.dtype == torch.float32
    for tap, part in zip(found, whole.split(list(encoder.channels.values()), dim=1), strict=True):
        assert torch.equal(part, found[tap])
    backwards = encoder_of(name, *NAMES[name][::-1])
    assert list(backwards.channels) == NAMES[name][::-1]


def test_a_vector_is_encoded_but_is_no_map():
    encoder, image = encoder_of(VIT, "class_token", "tokens"), noise(2, 3, 32, 48)
    assert encoder.channels == {"tokens": 64}
    assert encoder.encode(image)["class_token"].shape == (2, 64)
    assert torch.equal(encoder(image), encoder.encode(image)["tokens"])
    with pytest.raises(ConfigError, match=r"taps of 'test_vit' \(class_token\) hold no map"):
        encoder_of(VIT, "class_token")(image)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_same_features_alone_in_a_batch_and_in_any_order(name: str):
    encoder, image = encoder_of(name), noise(3, 3, 48, 64)
    together = encoder(image)
    for index in range(3):
        torch.testing.assert_close(encoder(image[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(image.flip(0)), together.flip(0), rtol=1e-4, atol=1e-5)
    encoder(noise(1, 3, 32, 32))  # an image of another size in between changes nothing
    assert torch.equal(encoder(image), together)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_trained_and_norms_keep_their_statistics(name: str):
    encoder = encoder_of(name)
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert not encoder(noise(2, 3, 32, 32).requires_grad_()).requires_grad
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32_and_its_maps_are_float32(name: str):
    exact, fast = encoder_of(name), encoder_of(name, dtype="bfloat16")
    assert {m.weight.dtype for m in fast.modules() if isinstance(m, nn.Linear | nn.Conv2d)} == {torch.bfloat16}
    norms = [m for m in fast.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    assert {m.weight.dtype for m in norms} == {torch.float32}
    image = noise(1, 3, 48, 64)
    for tap, found in fast.encode(image).items():
        expected = exact.encode(image)[tap]
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert F.cosine_similarity(found.flatten(1), expected.flatten(1)).item() > 0.999, tap


@pytest.mark.parametrize("name", [VIT, CNN])
def test_a_wrong_mean_changes_the_features(name: str):
    encoder = encoder_of(name)
    pixels = (noise(1, 3, 32, 32) * 60 + 128).clamp(0, 255).to(torch.uint8)
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    right, wrong = (encoder(normalize(pixels, valid, card)) for card in (encoder.card, IMAGENET_CARD))
    assert encoder.card.mean == (0.5, 0.5, 0.5)
    assert (right - wrong).abs().max() > 1e-3
    torch.testing.assert_close(right, encoder((pixels.float() / 255 - 0.5) / 0.5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 40), (33, 32), (0, 32)])
def test_sides_that_are_no_whole_cells_are_refused(name: str, size: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"sides of whole 16 px, but got \(1, 3, {size[0]}, {size[1]}\)"):
        encoder_of(name)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        (
            "vit_smal_patch14_dinov2",
            ["keys"],
            r"Unknown backbone 'vit_smal_patch14_dinov2'\. .*vit_small_patch14_dinov2",
        ),
        ("mobilenetv2_10", ["stage4"], r"Unknown backbone .*The nearest: .*mobilenetv2_100"),
        ("0", ["stage4"], r"Unknown backbone '0'\. Look names up with timm\.list_models"),
        ("resnet18.no_such_weights", ["stage4"], r"no weights 'no_such_weights' of 'resnet18', only .*a1_in1k"),
        (VIT, [], "different names, at least one"),
        (VIT, ["keys", "keys"], "different names, at least one"),
        (VIT, ["key"], r"'test_vit' has no tap 'key'\. It has: .*keys"),
        (VIT, ["projection"], "no head that projects"),
        (CNN, ["stage6"], r"'test_resnet' has no tap 'stage6'\. It has: stage1, stage2, stage3, stage4, stage5\."),
        (CNN, ["keys"], "'test_resnet' has no tap 'keys'"),
        ("small32", ["stage0"], "It has: stage1, stage2, stage3, stage4, stage5"),
        ("swin_tiny_patch4_window7_224", ["stage3"], "neither a plain vision transformer nor a convolutional network"),
        ("deit_tiny_distilled_patch16_224", ["keys"], "timm builds VisionTransformerDistilled"),
        ("mixer_s32_224", ["stage3"], "neither a plain vision transformer nor a convolutional network"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(name: str, taps: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        TapEncoder(name, taps=taps)


def test_an_unknown_number_type_is_refused():
    with pytest.raises(ConfigError, match="dtype to be float32 or bfloat16, but got 'float16'"):
        encoder_of(VIT, dtype="float16")


@pytest.mark.parametrize("name", [VIT, CNN, "resnet18"])
def test_weights_by_name_are_asked_for_and_a_failed_download_says_what_to_do(name: str):
    with pytest.raises(DependencyError, match=r"could not be downloaded.*pretrained: PATH"):
        encoder_of(name, "stage4" if name != VIT else "keys", pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_file_are_taken_over(name: str, tmp_path: Path):
    source, image = encoder_of(name), noise(1, 3, 32, 48)
    network = source.body.model if name == VIT else source.body.network
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.pth.json").write_text('{"mean": [0.1, 0.2, 0.3], "supervision": "self"}')
    torch.manual_seed(5)
    loaded = TapEncoder(name, taps=NAMES[name], pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(loaded(image), source(image))
    assert not torch.equal(TapEncoder(name, taps=NAMES[name])(image), source(image))
    assert (loaded.card.mean, loaded.card.supervision) == ((0.1, 0.2, 0.3), "self")


def test_weights_of_another_architecture_are_refused_with_the_first_keys(tmp_path: Path):
    torch.save(encoder_of(CNN).body.network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"'test_vit' .*weights\.pth, which does not fit: .*missing, first cls_tok"
    ):
        encoder_of(VIT, pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", [VIT, CNN])
def test_a_missing_file_says_which_where_and_how(name: str, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=rf"'{name}' are missing: {path}\. Put .*huggingface\.co/timm/{name}"):
        encoder_of(name, pretrained=str(path))


@pytest.mark.parametrize(
    ("name", "offers"),
    [("vit_base_patch16_clip_quickgelu_224.openai", {"projection": 512}), ("test_vit4", None)],
)
def test_only_weights_that_saw_texts_have_a_projection(name: str, offers: dict[str, int] | None):
    if offers is None:
        with pytest.raises(ConfigError, match="projects into a space shared with texts"):
            encoder_of(name, "projection")
    else:
        assert encoder_of(name, "projection").channels == offers


def test_a_card_can_say_that_weights_saw_texts(tmp_path: Path):
    whole = create_timm(VIT, pretrained=False, kind="network", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.pth.json").write_text('{"supervision": "language"}')
    with pytest.raises(CheckpointError, match=r"of another shape, first head\.weight \(7, 64\) for \(1000, 64\)"):
        encoder_of(VIT, "projection", pretrained=str(tmp_path / "weights.pth"))
