import os
import zipfile
from pathlib import Path

import pytest

from dhr_lightning import commands
from dhr_lightning.data.preparation.official_files import BENCHMARKS, describe
from dhr_lightning.data.preparation.prepare import prepare_benchmark
from dhr_lightning.data.registry import DATASETS, read_records
from dhr_lightning.errors import DataError
from dhr_lightning.progress import exit_status
from tests.data.preparation.test_ade import write_ade


def run(name: str, root: Path, **options: bool) -> None:
    prepare_benchmark(name, root, DATASETS[name].classes, {}, **options)


def pack(folder: Path, archive: Path, prefix: str) -> None:
    """An archive of all files of a folder, which are removed."""
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != archive:
                packed.write(path, f"{prefix}/{path.relative_to(folder)}")
                path.unlink()


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_an_empty_folder_lists_every_official_file_and_stops(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="dhr_lightning")
    with pytest.raises(DataError, match=rf"{name} in .* is not complete: .*--download fetches them") as caught:
        run(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert BENCHMARKS[name].licence in caplog.text
    for file in BENCHMARKS[name].files:
        assert file.url in caplog.text
        assert f"MISSING    {file.name}" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_is_in_the_catalog_with_known_checksums_and_counts(name: str):
    benchmark = BENCHMARKS[name]
    assert name in DATASETS
    assert [split for split, _ in benchmark.images] == ["train", "val"]
    for file in benchmark.files:
        kind, _, digest = file.checksum.partition(":")
        assert len(digest) == {"": 0, "md5": 32, "sha1": 40}[kind]


def test_the_command_exits_with_two_and_names_the_missing_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    arguments = ["--data", "ade", "--root", str(tmp_path), "--workspace", str(tmp_path)]
    assert exit_status(lambda: commands.prepare(arguments)) == 2
    assert "1 of 1 official files are missing, first ADEChallengeData2016.zip" in caplog.text


def test_the_command_prepares_checks_and_warns_of_a_subset(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_ade(tmp_path / "ade")
    with caplog.at_level("INFO", logger="dhr_lightning"):
        arguments = ["--data", "ade", "--root", str(tmp_path / "ade"), "--workspace", str(tmp_path)]
        assert exit_status(lambda: commands.prepare(arguments)) == 0
    assert "ade/train has 2 images here and 20210 in the published protocol" in caplog.text
    assert "in place   ADEChallengeData2016.zip" in caplog.text
    assert "ade/val: 1 images, 2.00 tags per image, 1 ground-truth masks" in caplog.text


def test_other_datasets_have_no_official_files(tmp_path: Path):
    prepare_benchmark("microworld", tmp_path, DATASETS["microworld"].classes, {"seed": 1})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ade` as an archive in `downloads`, whose checksum is not compared."""
    root = tmp_path / "ade"
    write_ade(root)
    (file,) = BENCHMARKS["ade"].files
    pack(root, file.archive(root), "ADEChallengeData2016")
    monkeypatch.setattr("dhr_lightning.data.preparation.prepare.verify", lambda *_: None)
    return root


def test_archives_in_the_folder_for_downloads_are_unpacked(packed: Path):
    run("ade", packed)
    assert [record.tags for record in read_records("ade", packed, "val")] == [(2, 12)]


def test_an_archive_with_another_checksum_is_not_unpacked(packed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"ADEChallengeData2016\.zip has sha1 .*, expected 219e1696"):
        run("ade", packed)
    assert not any((packed / "images").rglob("*.jpg"))


def test_a_killed_unpacking_is_continued(packed: Path, monkeypatch: pytest.MonkeyPatch):
    (file,) = BENCHMARKS["ade"].files
    monkeypatch.setattr("dhr_lightning.data.preparation.archives.os.replace", stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        run("ade", packed)
    monkeypatch.undo()
    monkeypatch.setattr("dhr_lightning.data.preparation.prepare.verify", lambda *_: None)
    assert file.missing(packed) == list(file.gives)
    assert any("MISSING" in line for line in describe(BENCHMARKS["ade"], packed))
    run("ade", packed)
    assert not file.missing(packed)
    assert len(read_records("ade", packed, "train")) == 2


def stop_at(call: int):
    """A stand-in for `os.replace` that is interrupted at its n-th call."""
    done: list[str] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        done.append(str(target))
        if len(done) == call:
            raise KeyboardInterrupt
        real(source, target)

    return replace


def test_without_download_nothing_is_fetched_and_with_it_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    monkeypatch.setattr("dhr_lightning.data.preparation.prepare.fetch", lambda url, path, checksum: asked.append(url))
    with pytest.raises(DataError):
        run("coco", tmp_path)
    assert not asked
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "1.jpg").touch()
    with pytest.raises(DataError, match="2 of 3 official files are missing, first annotations_trainval2014"):
        run("coco", tmp_path, download=True)
    assert [url.rpartition("/")[2] for url in asked] == ["annotations_trainval2014.zip", "train2014.zip"]


def test_voc_without_sbd_is_enough_and_says_what_is_lost(voc_copy: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="dhr_lightning"):
        run("voc", voc_copy)
    assert "optional; without it training uses the 1,464 images" in caplog.text
    assert "voc/train has 4 images here and 10582 in the published protocol" in caplog.text
    assert not (voc_copy / "SegmentationClassAug").exists()
