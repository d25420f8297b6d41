import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.uss import USSNetwork

VIT = "vit_tiny_patch16_224"


class Position(nn.Module):
    """Stands in for a backbone: each cell of 8 pixels holds the mean of its pixels and its own column."""

    cell = 8

    def forward(self, images: Tensor) -> Tensor:
        cells = F.avg_pool2d(images.float(), 8)
        columns = torch.arange(cells.shape[-1]).expand(len(cells), 1, *cells.shape[-2:])
        return torch.cat([cells, columns], dim=1)


@pytest.fixture
def network() -> USSNetwork:
    """Without a head and with a backbone whose features depend on content and place."""
    network = USSNetwork("patches", "stego", pretrained=False, dimension=4)
    network.backbone, network.head, network.cell = Position(), nn.Identity(), 8
    return network


@pytest.fixture(scope="module")
def vit() -> USSNetwork:
    torch.manual_seed(0)
    return USSNetwork(VIT, "stego", pretrained=False, dimension=6).eval()


def ramp(height: int, width: int) -> Tensor:
    """An image whose channels are column, row and both, in shares of its sides."""
    rows, columns = ((torch.arange(length) + 0.5) / length for length in (height, width))
    rows, columns = torch.broadcast_tensors(rows[:, None], columns[None])
    return torch.stack([columns, rows, columns * rows])[None]


@pytest.mark.parametrize(
    ("backbone", "cell", "source"), [("patches", 4, "pixels"), ("mobilenet_v2", 16, "image"), (VIT, 16, "image")]
)
@torch.no_grad()
def test_each_backbone_takes_images_of_any_size(backbone: str, cell: int, source: str):
    network = USSNetwork(backbone, "stego", pretrained=False, dimension=4).eval()
    assert (network.cell, network.source) == (cell, source)
    images = torch.zeros(1, 3, 33, 50, dtype=torch.uint8 if source == "pixels" else torch.float32)
    multiples = [-(-length // cell) * cell for length in (33, 50)]
    whole = network.backbone(torch.zeros(1, 3, *multiples))
    assert network.features(images).shape == whole.shape


@pytest.mark.parametrize("size", [(64, 48), (61, 45), (57, 41)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_cells_lie_evenly_over_the_image_whatever_its_size(network: USSNetwork, size: tuple[int, int], scale: float):
    features = network.features(ramp(*size), scale=scale)[0]
    rows, columns = ((torch.arange(count) + 0.5) / count for count in features.shape[-2:])
    assert (features[0] - columns).abs().max() < 0.02
    assert (features[1] - rows[:, None]).abs().max() < 0.02


@pytest.mark.parametrize(("scales", "grid"), [((1.0,), (6, 8)), ((2.0, 1.0, 1.5, 0.5), (12, 16)), ((0.5, 2.0), (3, 4))])
def test_all_scales_land_on_the_grid_of_the_first(
    network: USSNetwork, scales: tuple[float, ...], grid: tuple[int, int]
):
    features = network.multi_scale(ramp(48, 64), scales, flip=False)
    assert features.shape == (1, 4, *grid)
    rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
    inner = slice(1, -1)  # beyond the middle of a coarse map's outermost cells its values are constant
    assert (features[0, 0] - columns)[inner, inner].abs().max() < 0.04
    assert (features[0, 1] - rows[:, None])[inner, inner].abs().max() < 0.04


def test_scales_are_averaged_after_resizing(network: USSNetwork):
    image = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    maps = []
    for height, width in ((80, 112), (40, 56), (64, 88), (24, 32)):  # 2, 1, 1.5 and 0.5 times, up to a multiple of 8
        cells = Position()(F.interpolate(image, (height, width), mode="bilinear", align_corners=False))
        maps.append(F.interpolate(cells, (10, 14), mode="bilinear", align_corners=False))
    expected = (maps[0] + maps[1] + maps[2] + maps[3]) / 4
    torch.testing.assert_close(network.multi_scale(image, (2.0, 1.0, 1.5, 0.5), flip=False), expected)


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 1.0, 0.5)])
@torch.no_grad()
def test_features_of_a_mirrored_image_are_the_mirror_of_its_features(vit: USSNetwork, scales: tuple[float, ...]):
    """The network itself tells left from right: only the mean with the mirror, turned back, does not."""
    image = torch.randn(1, 3, 48, 70, generator=torch.Generator().manual_seed(1))
    features, mirrored = (vit.multi_scale(x, scales, flip=True) for x in (image, image.flip(-1)))
    torch.testing.assert_close(mirrored, features.flip(-1))
    assert (features - features.flip(-1)).abs().max() > 0.05
    alone = [vit.multi_scale(x, scales, flip=False) for x in (image, image.flip(-1))]
    assert (alone[1] - alone[0].flip(-1)).abs().max() > 0.001


def test_without_mirror_an_image_is_seen_as_it_is(network: USSNetwork):
    features = network.multi_scale(ramp(48, 64), (1.0,), flip=False)
    assert torch.equal(features[0, 3, 0], torch.arange(8.0))
    both = network.multi_scale(ramp(48, 64), (1.0,), flip=True)
    assert torch.equal(both[0, 3, 0], torch.full((8,), 3.5))
    torch.testing.assert_close(both[:, :3], features[:, :3])


@torch.no_grad()
def test_codes_are_float32_under_autocast(vit: USSNetwork):
    features = torch.randn(1, 192, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = vit.code(features)
        assert vit.multi_scale(torch.randn(1, 3, 32, 32), (1.0, 0.5), flip=True).dtype == torch.float32
    assert torch.equal(code, vit.head(features))
