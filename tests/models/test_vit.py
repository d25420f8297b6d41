from pathlib import Path

import pytest
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
    with pytest.raises(CheckpointError, match=rf"'{NAME}' cannot be taken from .*vit\.pth"):
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
