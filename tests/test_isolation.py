"""The guards of the test suite itself."""

import socket
import urllib.request

import pytest

from tests.conftest import NetworkBlockedError


def test_connections_that_leave_this_machine_are_refused():
    with socket.socket() as connection, pytest.raises(NetworkBlockedError, match=r"192\.0\.2\.1"):
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(NetworkBlockedError, match=r"example\.org"):
        urllib.request.urlopen("https://example.org/weights.pth", timeout=1)


def test_this_machine_can_talk_to_itself():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]) as client:
        client.sendall(b"x")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"x"


def test_pretrained_weights_are_not_downloaded_by_accident():
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("timm/resnet18.a1_in1k", "model.safetensors")
