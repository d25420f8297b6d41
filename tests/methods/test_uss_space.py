"""How much space features will take, which a prediction says before it starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dhr_lightning.data.catalog import Record
from dhr_lightning.methods.features.images import space_on_disk
from dhr_lightning.progress import human
from tests.methods.uss_samples import attach, make_uss
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


def photos(folder: Path, sizes: list[tuple[int, int]]) -> list[Record]:
    """Photos of these widths and heights."""
    records = []
    for index, size in enumerate(sizes):
        path = folder / f"{index}.png"
        Image.new("RGB", size).save(path)
        records.append(Record(str(index), path, ()))
    return records


def test_the_space_is_that_of_all_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked_at: list[Path] = []
    monkeypatch.setattr(
        "dhr_lightning.data.feature_space.shutil.disk_usage",
        lambda place: looked_at.append(place) or SimpleNamespace(free=5_000_000),
    )
    network = SimpleNamespace(cell=8)
    records = photos(tmp_path, [(64, 32), (64, 48), (33, 64)])
    text = space_on_disk(records, network, 10, 2.0, tmp_path / "not" / "there")
    cells = (8 * 16 + 12 * 16 + 16 * 9) * 10 * 2
    assert text == (
        f"3 images x 10 channels x about 12 x 14 cells x 2 bytes = {cells / 1000:.1f} kB to write, 5.0 MB free"
    )
    assert looked_at == [tmp_path]


def test_of_many_images_every_nth_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr("dhr_lightning.methods.features.images.image_size", lambda path: seen.append(path) or (8, 8))
    for count in (256, 257, 600):
        seen.clear()
        records = [Record(str(index), index, ()) for index in range(count)]
        text = space_on_disk(records, SimpleNamespace(cell=8), 1, 1.0, tmp_path)
        assert seen == list(range(0, count, -(-count // 256)))
        assert text.startswith(
            f"{count} images x 1 channels x about 1 x 1 cells x 2 bytes = {human(2 * count)} to write"
        )


@pytest.mark.parametrize(("skipped", "rank", "said"), [((), 0, 3), (("1",), 0, 2), (("0", "1", "2"), 0, 0), ((), 1, 0)])
def test_a_prediction_says_the_space_of_what_is_left_to_write(
    skipped: tuple[str, ...], rank: int, said: int, tmp_path: Path, lines: Lines
):
    task = make_uss("principal_axes", dimension=5, scales=(2.0, 1.0))
    records = photos(tmp_path, [(32, 32)] * 3)
    datamodule = attach(task)
    datamodule.records = {"train": records}.__getitem__
    datamodule.predict_splits = ("train",)
    datamodule.written = frozenset(("train", name) for name in skipped)
    datamodule.output_folder = lambda kind, split: tmp_path / kind / split
    task._trainer.is_global_zero = rank == 0
    task.on_predict_start()
    size = said * 5 * 16 * 2
    text = f"features: {said} images x 5 channels x about 4 x 4 cells x 2 bytes = {size} B to write, "
    assert len(lines.messages) == bool(said)
    assert all(line.startswith(text) for line in lines.messages)
