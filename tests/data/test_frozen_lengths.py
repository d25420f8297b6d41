"""All cells of a tap of frozen features have one length, if that is asked for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.artifacts.manifest import canonical
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.frozen_features import FrozenSettings, recorded
from tests.data.frozen_samples import VIT, Cells, noise, reader_of, save

TAPS = {"block1": 5, "keys": 3}


class Outlier(Cells):
    """Two taps of very different lengths; one cell of either is many times as long as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = dict(TAPS)

    def forward(self, image: Tensor) -> Tensor:
        colour = F.avg_pool2d(image, self.cell)  # (1, 3, h, w)
        maps = torch.cat([20 * colour, 30 * colour[:, :2] - 9, 0.01 * colour - 0.003], 1)
        maps[..., 1, 2] *= 50
        return maps


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return save(tmp_path, noise((48, 64)))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_every_tap_of_every_cell_has_the_length_of_the_root_of_its_channels(
    record: Record, scales: tuple[float, ...], flip: bool
):
    settings = {"scales": scales, "flip": flip}
    raw = reader_of(Outlier(), **settings).read(record)["features"].float()
    found = reader_of(Outlier(), normalize=True, **settings).read(record)["features"].float()
    assert found.shape == raw.shape == (8, 6, 8)
    lengths = {name: tap.norm(dim=0) for name, tap in zip(TAPS, found.split(list(TAPS.values())), strict=True)}
    for name, size in TAPS.items():
        torch.testing.assert_close(lengths[name], torch.full((6, 8), size**0.5), atol=2e-3, rtol=0)
    for one, other in zip(raw.split(list(TAPS.values())), found.split(list(TAPS.values())), strict=True):
        torch.testing.assert_close(F.cosine_similarity(one, other, dim=0), torch.ones(6, 8), atol=2e-3, rtol=0)


def test_without_it_features_stay_as_the_backbone_gives_them(record: Record):
    reader = reader_of(Outlier(), normalize=False)
    (image,) = reader.images(record)
    assert torch.equal(reader.read(record)["features"], Outlier()(image[None]).half()[0])


def test_it_is_the_default_and_part_of_what_a_manifest_records():
    assert FrozenSettings("cells").normalize
    for normalize in (False, True):
        settings = FrozenSettings(VIT, taps=("block1",), side=32, normalize=normalize, compute="float32")
        assert recorded(canonical(settings.record())).settings.normalize == normalize


def test_a_cell_without_length_stays_zero(record: Record):
    found = reader_of(Cells(factor=0.0), normalize=True).read(record)["features"]
    assert not found.any()
