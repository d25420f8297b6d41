"""The space that features take, which is said before they are written."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dhr_lightning.data import feature_space
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.feature_space import space_needed
from dhr_lightning.errors import ArtifactError
from dhr_lightning.progress import human

GRIDS = {"a": (8, 16), "b": (12, 16), "c": (16, 9)}


def records(names: str) -> list[Record]:
    return [Record(name, Path(name), ()) for name in names]


def disk(monkeypatch: pytest.MonkeyPatch, free: float) -> list[Path]:
    """A disk with so much room; the places that were looked at."""
    looked_at: list[Path] = []
    usage = lambda place: looked_at.append(place) or SimpleNamespace(free=free)  # noqa: E731
    monkeypatch.setattr(feature_space.shutil, "disk_usage", usage)
    return looked_at


def test_the_space_is_that_of_all_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked_at = disk(monkeypatch, 5_000_000)
    text = space_needed(records("abc"), lambda one: GRIDS[one.id], 10, tmp_path / "not" / "there", advice="write less")
    cells = (8 * 16 + 12 * 16 + 16 * 9) * 10 * 2
    assert text == (
        f"3 images x 10 channels x about 12 x 14 cells x 2 bytes = {cells / 1000:.1f} kB to write, 5.0 MB free"
    )
    assert looked_at == [tmp_path]


def test_of_many_images_every_nth_is_looked_at(tmp_path: Path):
    for count in (256, 257, 600):
        seen: list[str] = []
        every = [Record(str(index), Path(str(index)), ()) for index in range(count)]
        text = space_needed(every, lambda one: seen.append(one.id) or (1, 1), 1, tmp_path, advice="")  # noqa: B023
        assert seen == [str(index) for index in range(0, count, -(-count // 256))]
        assert text.startswith(f"{count} images x 1 channels x about 1 x 1 cells x 2 bytes = {human(2 * count)} to")


@pytest.mark.parametrize(("free", "fits"), [(1020, True), (1019, False), (0, False)])
def test_a_disk_that_is_too_small_is_refused_with_a_way_out(
    free: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    disk(monkeypatch, free)

    def say() -> str:
        return space_needed(records("a"), lambda one: (5, 10), 10, tmp_path, advice="do without")

    if fits:
        assert say().endswith("= 1.0 kB to write, 1.0 kB free")
        return
    with pytest.raises(ArtifactError) as error:
        say()
    assert str(error.value) == (
        f"The disk of {tmp_path} is too small: 1 images x 10 channels x about 5 x 10 cells x 2 bytes = 1.0 kB to "
        f"write, {human(free)} free. Free some space, choose another --workspace, or do without."
    )
