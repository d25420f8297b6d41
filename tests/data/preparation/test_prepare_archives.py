import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from dhr_lightning.data.preparation.archives import unpack
from dhr_lightning.errors import DataError


def make_tar(path: Path, *members: tuple[str, bytes], link: tuple[str, str] | None = None, kind: bytes = b"2") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = kind, link[1]
            archive.addfile(info)
    return path


def make_zip(path: Path, *members: tuple[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("make", "name"), [(make_tar, "a.tar"), (make_tar, "a.tgz"), (make_zip, "a.zip")])
def test_the_prefix_is_dropped_and_the_rest_passed_over(tmp_path: Path, make, name: str):
    archive = make(tmp_path / name, ("VOCdevkit/VOC2012/JPEGImages/1.jpg", b"one"), ("VOCdevkit/README", b"x"))
    assert unpack(archive, tmp_path / "root", prefix="VOCdevkit/VOC2012") == 1
    assert files(tmp_path / "root") == {"JPEGImages/1.jpg": b"one"}


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:evil.txt", "..\\evil.txt"])
def test_a_member_outside_of_the_folder_stops_everything_before_the_first_file(tmp_path: Path, make, name: str):
    suffix = ".tar" if make is make_tar else ".zip"
    archive = make(tmp_path / f"bad{suffix}", ("good.txt", b"good"), (name, b"evil"))
    with pytest.raises(DataError, match=r"evil\.txt', which would be written outside of .*root\. Nothing was unpacked"):
        unpack(archive, tmp_path / "box" / "root")
    assert files(tmp_path) == {archive.name: archive.read_bytes()}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes):
    archive = make_tar(tmp_path / "bad.tar", ("good.txt", b"good"), link=("images", "/etc"), kind=kind)
    with pytest.raises(DataError, match="'images', which is a link or a device"):
        unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "bad.zip", ("images", b"/etc"), mode=0o120777)
    with pytest.raises(DataError, match="'images', which is a link or a device"):
        unpack(archive, tmp_path / "root")


def test_a_linked_folder_on_disk_does_not_lead_outside(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "images")
    archive = make_tar(tmp_path / "a.tar", ("images/1.jpg", b"one"))
    with pytest.raises(DataError, match="because a folder there is a link"):
        unpack(archive, tmp_path / "root")
    assert not files(tmp_path / "elsewhere")


def test_a_second_run_writes_only_what_is_missing_or_cut_off(tmp_path: Path):
    archive = make_zip(tmp_path / "a.zip", ("1", b"one"), ("2", b"two"), ("3", b"three"))
    assert unpack(archive, tmp_path / "root") == 3
    (tmp_path / "root" / "1").unlink()
    (tmp_path / "root" / "2").write_bytes(b"t")
    assert unpack(archive, tmp_path / "root") == 2
    assert files(tmp_path / "root") == {"1": b"one", "2": b"two", "3": b"three"}


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str):
    make = make_zip if suffix == ".zip" else make_tar
    archive = make(tmp_path / f"a{suffix}", ("1", os.urandom(50_000)))
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(DataError, match=rf"Archive .*a{suffix} cannot be read"):
        unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root" / "1").exists()
