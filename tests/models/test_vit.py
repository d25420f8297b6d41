from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.vit import FrozenViT

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit() -> FrozenViT:
    torch.manual_seed(0)
    return FrozenViT(NAME)


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 48), (2, 3)), ((33, 47), (3, 3)), ((16, 16), (1, 1)), ((224, 224), (14, 14))]
)
def test_there_is_one_feature_per_started_patch(vit: FrozenViT, size: tuple[int, int], grid: tuple[int, int]):
    assert vit.patch == 16
    assert vit(torch.zeros(2, 3, *size)).shape == (2, vit.out_channels, *grid)


def test_nothing_is_trained_and_dropout_stays_off(vit: FrozenViT):
    assert not any(p.requires_grad for p in vit.parameters())
    assert not any(module.training for module in vit.modules())
    nn.Sequential(vit).train()
    assert not any(module.training for module in vit.modules())
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not vit(image).requires_grad


def test_features_stand_where_their_patch_is():
    vit = FrozenViT(NAME)
    vit.model.blocks = nn.Identity()  # no attention: a token knows its own patch only
    nn.init.zeros_(vit.model.pos_embed)
    image = torch.zeros(1, 3, 48, 64)
    before = vit(image)
    image[..., 16:32, 48:64] = torch.randn(3, 16, 16)
    changed = (vit(image) - before).abs().amax(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("name", [NAME, "vit_small_patch14_reg4_dinov2"])
def test_features_are_the_patch_tokens_of_the_last_block_after_its_norm(name: str):
    """Compared with timm's own way to give maps; the second model has four registers beside its class token."""
    vit = FrozenViT(name)
    image = torch.randn(2, 3, 2 * vit.patch, 3 * vit.patch)
    (expected,) = vit.model.forward_intermediates(
        image, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    torch.testing.assert_close(vit(image), expected)


def test_position_embeddings_stay_untouched_on_the_native_grid_and_follow_the_image_elsewhere(vit: FrozenViT):
    plain = timm.create_model(NAME, num_classes=0).eval()  # one size only
    plain.load_state_dict(vit.model.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain.forward_features(image)[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    torch.testing.assert_close(vit(image), expected)

    ramped = FrozenViT(NAME)
    ramped.model.blocks = ramped.model.norm = nn.Identity()
    nn.init.zeros_(ramped.model.patch_embed.proj.weight)
    nn.init.zeros_(ramped.model.patch_embed.proj.bias)
    table = torch.zeros(1, 197, vit.out_channels)
    table[0, 1:, 0] = torch.arange(14.0).repeat(14)  # columns
    table[0, 1:, 1] = torch.arange(14.0).repeat_interleave(14)  # rows
    ramped.model.pos_embed.data = table
    found = ramped(torch.zeros(1, 3, 7 * 16, 28 * 16))[0]
    columns, rows = found[0, 0], found[1, :, 0]
    torch.testing.assert_close(columns[4:-4], ((torch.arange(28) + 0.5) / 2 - 0.5)[4:-4], atol=0.02, rtol=0)
    torch.testing.assert_close(rows[2:-2], ((torch.arange(7) + 0.5) * 2 - 0.5)[2:-2], atol=0.05, rtol=0)


def test_weights_from_a_file_are_taken_over(vit: FrozenViT, tmp_path: Path):
    torch.save(vit.model.state_dict(), tmp_path / "vit.pth")
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(FrozenViT(NAME, pretrained=str(tmp_path / "vit.pth"))(image), vit(image))
    assert not torch.equal(FrozenViT(NAME)(image), vit(image))


@pytest.mark.parametrize("content", [None, b"", b"hello", {"pos_embed": torch.zeros(1)}, [1]])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: object):
    path = tmp_path / "vit.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"'{NAME}' (cannot be taken from|are missing:) .*vit\.pth"):
        FrozenViT(NAME, pretrained=str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_huge_patch1", "timm knows no model 'vit_huge_patch1'"),
        (f"{NAME}.no_such_weights", "no_such_weights"),
        ("resnet18", "'resnet18' is no vision transformer"),
        ("swin_tiny_patch4_window7_224", "is no plain vision transformer"),
    ],
)
def test_other_names_are_refused(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        FrozenViT(name)


def test_a_failed_download_says_what_to_do():
    with pytest.raises(DependencyError, match=r"could not be downloaded.*pretrained: PATH"):
        FrozenViT(NAME, pretrained=True)
