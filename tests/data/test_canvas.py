from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import SequentialSampler

from dhr_lightning.artifacts.arrays import features_shape, write_features
from dhr_lightning.data import canvas
from dhr_lightning.data.canvas import Canvas, canvases_of, images_at_once
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.files import image_size, read_image
from dhr_lightning.data.loading import CanvasBatches
from dhr_lightning.data.sample import canvas_size, feature_grid
from dhr_lightning.errors import ArtifactError, DataError
from tests.mixed_photos import MixedPhotos


def save(path: Path, size: tuple[int, int], orientation: int | None = None) -> Record:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return Record(path.stem, path, (1,))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_size_in_the_header_is_that_of_the_upright_photo(tmp_path: Path, orientation: int | None, suffix: str):
    path = save(tmp_path / f"photo{suffix}", (30, 20), orientation).image
    width, height = read_image(path).size
    assert image_size(path) == (height, width)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for path in (broken, tmp_path / "absent.jpg"):
        with pytest.raises(DataError, match=path.name):
            image_size(path)


def test_the_canvas_is_the_own_size_rounded_up():
    assert canvas_size((375, 500), divisor=32) == (384, 512)
    assert canvas_size((384, 512), divisor=32) == (384, 512)
    assert canvas_size((5, 7), divisor=1) == (5, 7)


def test_features_keep_their_density_on_the_canvas():
    assert feature_grid((54, 72), (375, 500), (384, 512)) == (55, 74)
    assert feature_grid((12, 16), (48, 64), (64, 64)) == (16, 16)
    assert feature_grid((1, 1), (1000, 1000), (32, 32)) == (1, 1)


def test_canvases_follow_size_orientation_and_features(tmp_path: Path):
    records = [
        save(tmp_path / "a.jpg", (50, 30)),
        save(tmp_path / "b.jpg", (30, 50), 6),
        save(tmp_path / "c.jpg", (64, 32)),
    ]
    assert canvases_of(records) == [Canvas((32, 64))] * 3
    for record, grid in zip(records, ((8, 13), (8, 13), (16, 32)), strict=True):
        write_features(tmp_path / f"{record.id}.npy", np.zeros((2, *grid), np.float16))
    found = canvases_of(records, features=lambda image_id: tmp_path / f"{image_id}.npy")
    assert found == [Canvas((32, 64), (9, 17)), Canvas((32, 64), (9, 17)), Canvas((32, 64), (16, 32))]


def test_the_grid_of_features_is_read_from_their_header(tmp_path: Path):
    write_features(tmp_path / "a.npy", np.zeros((3, 5, 7), np.float16))
    assert features_shape(tmp_path / "a.npy")[1:] == (5, 7)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:40])
    np.save(tmp_path / "flat.npy", np.zeros((3, 5), np.float16))
    np.save(tmp_path / "object.npy", np.array([None]), allow_pickle=True)
    for name in ("cut", "flat", "object", "absent"):
        with pytest.raises(ArtifactError, match=name):
            features_shape(tmp_path / f"{name}.npy")


def test_large_images_make_smaller_batches_and_every_image_comes_once():
    small, large, huge = (Canvas((512, 512)), Canvas((1216, 1600)), Canvas((4096, 8192)))
    full = images_at_once([small, large, huge, small], 8)
    assert full == {small: 8, large: 1, huge: 1}
    assert images_at_once([Canvas((640, 640)), Canvas((672, 640))], 8) == {Canvas((640, 640)): 8, Canvas((672, 640)): 7}
    canvases = [large if index % 3 == 0 else small for index in range(20)]
    batches = CanvasBatches(SequentialSampler(canvases), 8, canvases=canvases, full=full)
    found = list(batches)
    assert sorted(index for batch in found for index in batch) == list(range(20))
    assert len(batches) == len(found) == 7 + 2
    assert {len(batch) for batch in found if canvases[batch[0]] == large} == {1}


def test_whole_images_are_predicted_in_batches_that_fit_and_trained_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photos = MixedPhotos(tmp_path / "photos", sizes=((64, 64),) * 4)
    photos.datamodule.predict_batch_size = 4
    assert [len(batch) for batch in photos.datamodule.whole_dataloader(photos.records).batch_sampler] == [4]
    monkeypatch.setattr(canvas, "USUAL_PIXELS", 32 * 64)  # of which these have two each
    assert [len(batch) for batch in photos.datamodule.whole_dataloader(photos.records).batch_sampler] == [2, 2]
