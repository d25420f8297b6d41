"""Stages of convolutional networks on one grid."""

import pytest
import timm
import torch
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import build_encoder
from dhr_lightning.models.cnn_taps import StageTaps, to_grid

STAGES = [f"stage{level}" for level in range(1, 6)]


def cell_means(maps: torch.Tensor, width: int) -> torch.Tensor:
    """Mean of each square of `width` cells, in a plain loop."""
    rows, columns = maps.shape[2] // width, maps.shape[3] // width
    result = torch.zeros(*maps.shape[:2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            square = maps[:, :, row * width : (row + 1) * width, column * width : (column + 1) * width]
            result[:, :, row, column] = square.sum((2, 3)) / width**2
    return result


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet18", "tu-test_resnet"])
@torch.no_grad()
def test_finer_stages_are_averaged_and_the_grid_is_the_same_for_all(name: str):
    torch.manual_seed(0)
    taps = StageTaps(name, taps=STAGES, pretrained=False)
    image = torch.randn(2, 3, 48, 80)
    maps = taps.network(image)[-5:]
    found = taps(image)
    assert list(found) == list(taps.sizes) == STAGES
    for level, stage in enumerate(STAGES, start=1):
        assert found[stage].shape == (2, taps.sizes[stage], 3, 5)
        assert taps.strides[stage] == 2**level
        if level <= 4:
            torch.testing.assert_close(
                found[stage], cell_means(maps[level - 1], 2 ** (4 - level)), atol=1e-4, rtol=1e-4
            )


@torch.no_grad()
def test_taps_are_the_feature_maps_of_timm():
    torch.manual_seed(0)
    taps = StageTaps("test_efficientnet", taps=["stage4", "stage2"], pretrained=False)
    reference = timm.create_model("test_efficientnet", features_only=True).eval()
    reference.load_state_dict(taps.network.state_dict(), strict=False)  # the first has what comes behind, too
    image = torch.randn(1, 3, 32, 64)
    maps = reference(image)
    torch.testing.assert_close(taps(image)["stage4"], maps[3])
    torch.testing.assert_close(taps(image)["stage2"], cell_means(maps[1], 4))


@torch.no_grad()
def test_stages_behind_the_last_tap_are_not_built():
    short, whole = (StageTaps("resnet18", taps=taps, pretrained=False) for taps in (["stage3"], ["stage3", "stage5"]))
    assert short.network._depth == 3
    assert whole.network._depth == 5
    parts = [
        sum(p.numel() for p in StageTaps("test_resnet", taps=[tap], pretrained=False).parameters()) for tap in STAGES
    ]
    assert parts == sorted(set(parts))


def test_the_small_encoder_keeps_its_stride():
    taps = StageTaps("small32", taps=["stage1", "stage5"], pretrained=False)
    assert taps.strides == {"stage1": 2, "stage5": 8}
    assert build_encoder("small32", output_stride=8).out_channels[-1] == taps.sizes["stage5"]


def test_a_coarse_map_is_enlarged_between_the_middles_of_its_cells():
    """A ramp of cells of 32 px on a grid of 16 px: cell i of the grid lies at (i - 0.5) / 2 of the ramp."""
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    found = to_grid(ramp, 2.0, (6, 8))
    assert found.shape == (1, 1, 6, 8)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(found, expected.expand(1, 1, 6, 8))


def test_what_reaches_beyond_the_grid_is_cut_off_at_its_end():
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    torch.testing.assert_close(to_grid(ramp, 2.0, (5, 7)), to_grid(ramp, 2.0, (6, 8))[..., :5, :7])
    torch.testing.assert_close(to_grid(ramp, 1.0, (2, 3)), ramp[..., :2, :3])
    torch.testing.assert_close(to_grid(ramp[..., :2, :], 0.5, (1, 1)), torch.full((1, 1, 1, 1), 0.5))


@pytest.mark.parametrize(
    ("name", "stage", "centre"),
    [
        ("convnext_atto", "stage4", 7.5),  # patches without padding: the middle
        ("resnet18", "stage4", 0.0),  # symmetric padding: the first pixel
        ("resnet18", "stage3", 4.0),  # mean of two cells that are centred on their first pixels
        ("tf_efficientnet_lite0", "stage4", 15.0),  # padding at the end: the last pixel
    ],
)
def test_where_a_cell_looks_is_centred_at_most_half_a_cell_from_its_middle(name: str, stage: str, centre: float):
    torch.manual_seed(0)
    taps = StageTaps(name, taps=[stage], pretrained=False)
    image = torch.randn(4, 3, 224, 224, requires_grad=True)
    taps(image)[stage][..., 7, 7].square().sum().backward()
    weight = image.grad.square().sum((0, 1))
    pixels = torch.arange(224.0) - 7 * 16  # from the first pixel of the cell
    for axis in (0, 1):
        assert abs(float((weight.sum(1 - axis) * pixels).sum() / weight.sum()) - centre) < 3


def test_a_network_whose_strides_do_not_double_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Flat(nn.Module):
        class feature_info:
            @staticmethod
            def reduction() -> list[int]:
                return [16, 16]

    monkeypatch.setattr("dhr_lightning.models.cnn_taps.create_timm", lambda *_, **__: Flat())
    with pytest.raises(ConfigError, match="neither a plain vision transformer nor a convolutional network"):
        StageTaps("beit_base_patch16_224", taps=["stage4"], pretrained=False)
