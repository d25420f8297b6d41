import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from dhr_lightning.data.preparation.downloads import fetch, verify
from dhr_lightning.errors import DataError

CONTENT = bytes(range(256)) * 20
SHA1 = f"sha1:{hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT`; `/short` breaks off half way, `/whole` knows no ranges, `/moved` sends on to `/file`."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.asked.append(span)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.path != "/whole" else 0
        past = start >= len(CONTENT)
        self.send_response(404 if self.path == "/none" else 416 if past else 206 if start else 200)
        self.send_header("Content-Length", str(max(0, len(CONTENT) - start)))
        if past:
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start : len(CONTENT) // 2 if self.path == "/short" else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["/file", "/whole"])
@pytest.mark.parametrize("part", [0, 1000])
def test_a_file_arrives_whole_and_an_earlier_part_is_continued(tmp_path: Path, server: str, page: str, part: int):
    if part:
        (tmp_path / "file.zip.part").write_bytes(CONTENT[:part])
    fetch(server + page, tmp_path / "file.zip", checksum=SHA1)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert Handler.asked == [f"bytes={part}-" if part else None]
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_a_part_survives_a_server_that_sends_on_to_another_address(tmp_path: Path, server: str):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    fetch(f"{server}/moved", tmp_path / "file.zip", checksum=SHA1)
    assert Handler.asked == ["bytes=1000-"] * 2
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_download_killed_at_its_last_byte_is_completed(tmp_path: Path, server: str):
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    fetch(f"{server}/file", tmp_path / "file.zip", checksum=SHA1)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_begun_again(tmp_path: Path, server: str):
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"x")
    with pytest.raises(DataError, match=r"cannot be downloaded .*416.* Run the same command again"):
        fetch(f"{server}/file", tmp_path / "file.zip")
    fetch(f"{server}/file", tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_without_network_the_file_can_be_put_in_place_by_hand(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=rf"127\.0\.0\.1:{port}/file cannot be downloaded .* put it at .*file\.zip"):
        fetch(f"http://127.0.0.1:{port}/file", tmp_path / "file.zip", checksum=SHA1)
    assert not (tmp_path / "file.zip").exists()


def test_progress_is_told_in_megabytes(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr("dhr_lightning.data.preparation.downloads._BLOCK", 1000)
    monkeypatch.setattr("dhr_lightning.progress._SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level("INFO", logger="dhr_lightning"):
        fetch(f"{server}/file", tmp_path / "file.zip", checksum=SHA1)
    lines = [record.message for record in caplog.records if "(MB)" in record.message]
    assert [line.split(",")[0] for line in lines] == [
        f"file.zip (MB): {done}/6 ({100 * done // 6} %)" for done in range(1, 6)
    ]


def test_what_is_there_is_not_fetched_again(tmp_path: Path, server: str):
    (tmp_path / "file.zip").write_bytes(b"x")
    fetch(f"{server}/file", tmp_path / "file.zip")
    assert not Handler.asked


def test_a_broken_transfer_is_no_file_and_can_be_continued(tmp_path: Path, server: str):
    with pytest.raises(DataError, match=r"/short cannot be downloaded \(.*2560 bytes read.*Run the same command again"):
        fetch(f"{server}/short", tmp_path / "file.zip", checksum=SHA1)
    assert not (tmp_path / "file.zip").exists()
    fetch(f"{server}/file", tmp_path / "file.zip", checksum=SHA1)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file(tmp_path: Path, server: str):
    with pytest.raises(DataError, match=r"file\.zip has md5 [0-9a-f]{32}, expected 0{32}"):
        fetch(f"{server}/file", tmp_path / "file.zip", checksum=f"md5:{'0' * 32}")
    assert not list(tmp_path.iterdir())


def test_an_unreachable_address_says_where_to_put_the_file(tmp_path: Path, server: str):
    with pytest.raises(DataError, match=r"/none cannot be downloaded .*404.* put it at .*file\.zip"):
        fetch(f"{server}/none", tmp_path / "file.zip")


def test_checksums_are_compared(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    verify(path, SHA1)
    verify(path, "")
    with pytest.raises(DataError, match="file has sha1"):
        verify(path, f"sha1:{'0' * 40}")
