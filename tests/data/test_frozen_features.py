"""Features of a photo: what they depend on, and what they do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dhr_lightning.artifacts.manifest import canonical
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.frozen_features import FeatureDataset, FrozenSettings, recorded
from dhr_lightning.errors import CheckpointError, ConfigError, DataError
from dhr_lightning.models.cards import WeightsCard
from tests.data.frozen_samples import PLAIN, VIT, Cells, marked, noise, reader_of, save


def test_features_are_the_normalised_cells_of_the_photo_in_half_precision(tmp_path: Path):
    card = WeightsCard((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    record = save(tmp_path, noise((48, 64)))
    found = reader_of(Cells(card=card)).read(record)
    pixels = torch.from_numpy(np.array(Image.open(record.image))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    expected = F.avg_pool2d((pixels - mean) / std, 8)
    assert found["id"] == ["photo"]
    assert found["features"].dtype == torch.float16
    assert torch.allclose(found["features"].float(), expected, atol=2e-3)
    for wrong in (WeightsCard((0.4, 0.25, 0.0), card.std), WeightsCard(card.mean, (0.5, 0.5, 2.0))):
        assert not torch.equal(reader_of(Cells(card=wrong)).read(record)["features"], found["features"])


def test_a_photo_is_resized_as_the_card_says(tmp_path: Path):
    record = save(tmp_path, noise((50, 100)))
    found = [
        reader_of(Cells(card=WeightsCard(PLAIN.mean, PLAIN.std, way))).read(record)["features"]
        for way in ("bilinear", "bicubic", "nearest")
    ]
    assert [tuple(one.shape) for one in found] == [(3, 4, 8)] * 3
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_first_scale_gives_the_grid_and_all_count_alike(tmp_path: Path):
    record = save(tmp_path, noise((48, 64)))
    one, half, large = (reader_of(Cells(), side=side).read(record)["features"].float() for side in (64, 32, 96))
    (both,) = (reader_of(Cells(), scales=(1.0, 0.5, 1.5)).read(record)["features"],)

    def on_the_grid(maps: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps[None], one.shape[-2:], mode="bilinear", align_corners=False)[0]

    expected = (one + on_the_grid(half) + on_the_grid(large)) / 3
    assert torch.allclose(both.float(), expected, atol=2e-3)
    assert reader_of(Cells(), scales=(0.5, 1.0)).read(record)["features"].shape == half.shape
    assert reader_of(Cells(), scales=(0.5, 1.0)).grid(record) == half.shape[-2:]


def test_a_scale_below_a_cell_is_one_cell_wide(tmp_path: Path):
    record = save(tmp_path, noise((48, 64)))
    images = reader_of(Cells(), scales=(1.0, 0.01)).images(record)
    assert [tuple(image.shape) for image in images] == [(3, 48, 64), (3, 8, 8)]


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_a_mirrored_photo_gives_mirrored_features_if_the_mirror_counts(tmp_path: Path, scales: tuple[float, ...]):
    photo = noise((48, 64))
    records = save(tmp_path, photo), save(tmp_path, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "mirrored")
    network = Cells(slope=1.0)
    one, mirrored = (reader_of(network, flip=True, scales=scales).read(record)["features"] for record in records)
    assert torch.allclose(mirrored, one.flip(-1), atol=1e-3)
    one, mirrored = (reader_of(network, scales=scales).read(record)["features"] for record in records)
    assert not torch.allclose(mirrored, one.flip(-1), atol=0.1)


def test_with_the_mirror_features_are_the_mean_of_both_views(tmp_path: Path):
    record = save(tmp_path, noise((48, 64)))
    symmetric = reader_of(Cells()).read(record)["features"]
    weight = 1 + (torch.linspace(1, 0, 64) + torch.linspace(0, 1, 64)) / 2  # the mean of a slope and its mirror
    found = reader_of(Cells(slope=1.0), flip=True).read(record)["features"]
    assert torch.allclose(found.float(), symmetric.float() * weight[0], atol=2e-3)


def test_features_depend_on_no_other_photo_and_no_order(tmp_path: Path):
    sizes = [(48, 64), (61, 40), (64, 64)]
    records = [save(tmp_path, noise(size, seed), str(seed)) for seed, size in enumerate(sizes)]
    reader = reader_of(Cells(slope=1.0), flip=True, scales=(1.0, 0.5))
    dataset = FeatureDataset(records, reader)
    assert len(dataset) == 3
    forwards = [dataset[index] for index in range(3)]
    backwards = [FeatureDataset(records[::-1], reader)[index] for index in range(3)][::-1]
    for one, other, record in zip(forwards, backwards, records, strict=True):
        assert one["id"] == other["id"] == [record.id]
        assert torch.equal(one["features"], other["features"])
        assert one["features"].shape[-2:] == reader.grid(record)


def test_a_reader_that_computes_nothing_gives_what_the_network_wants_to_see(tmp_path: Path):
    record = save(tmp_path, noise((50, 70)))
    settings: dict[str, Any] = {"flip": True, "scales": (1.0, 1.5)}
    given = reader_of(Cells(slope=1.0), computes=False, **settings).read(record)
    assert set(given) == {"id", "images"}
    assert [image.dtype for image in given["images"]] == [torch.float32] * 2
    computing = reader_of(Cells(slope=1.0), **settings)
    assert torch.equal(computing.features(given["images"], "photo"), computing.read(record)["features"])


def test_no_gradient_is_kept(tmp_path: Path):
    network = Cells()
    network.weight = torch.nn.Parameter(torch.ones(()))
    network.forward = lambda image: F.avg_pool2d(image, 8) * network.weight
    assert not reader_of(network).read(save(tmp_path, noise((48, 64))))["features"].requires_grad


@pytest.mark.parametrize("factor", [1e6, float("nan")])
def test_features_that_are_no_numbers_in_half_precision_name_the_photo(tmp_path: Path, factor: float):
    record = save(tmp_path, marked((48, 64), (6, 8), (2, 3))[0], "bright")  # one cell alone becomes too large
    with pytest.raises(DataError, match=r"The features of .*bright\.png are not finite\. Look at the photo and at the"):
        reader_of(Cells(factor=factor)).read(record)


def test_a_photo_smaller_than_a_cell_is_enlarged(tmp_path: Path):
    reader, record = reader_of(Cells(16)), save(tmp_path, noise((5, 7)))
    assert reader.read(record)["features"].shape == (3, 3, 4)
    assert reader.grid(record) == (3, 4)


def test_a_photo_that_is_too_narrow_is_named(tmp_path: Path):
    reader, record = reader_of(Cells(16)), save(tmp_path, noise((3, 200)), "narrow")
    for read in (reader.read, reader.grid):
        with pytest.raises(DataError, match=r"narrow\.png is 200x3 pixels.*would be stretched"):
            read(record)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        reader_of(Cells()).read(Record("broken", tmp_path / "broken.png", ()))


@pytest.mark.parametrize("changes", [{"scales": ()}, {"scales": (1.0, 0.0)}, {"scales": (-1.0,)}, {"side": 0}])
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"Expected side >= 1 and scales > 0, but got \d+ and \["):
        FrozenSettings("cells", **changes)
    assert FrozenSettings("cells", side=1, scales=(0.1,)).side == 1


SETTINGS = FrozenSettings(VIT, taps=("keys", "block1"), side=32, scales=(1.0, 0.5), flip=True, compute="float32")


def test_a_recorded_reader_is_the_same_reader_and_made_once():
    record = canonical(SETTINGS.record())  # as a manifest gives it back
    reader = recorded(record)
    assert reader.settings == SETTINGS
    assert reader.computes
    assert list(reader.network.channels) == ["keys", "block1"]
    assert reader.network.dtype == torch.float32
    assert recorded(dict(reversed(record.items()))) is reader
    assert recorded({**record, "compute": "bfloat16", "taps": ["block1"]}).network.dtype == torch.bfloat16


def test_a_recorded_reader_whose_weights_are_gone_names_the_file(tmp_path: Path):
    missing = str(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"are missing: .*gone\.safetensors"):
        recorded({**SETTINGS.record(), "pretrained": missing})
