from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_supervisor.system import files
from atlas_supervisor.system.files import open_regular, read_regular


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(path.parent)  # the path of a socket is short
        sock.bind(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, _socket, _device])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT])
def test_anything_but_a_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], flags: int
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "file")
    with pytest.raises(OSError, match="it is not a regular file"):
        open_regular(tmp_path / "file", flags, follow=True)


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="it is a link"):
        read_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link", follow=True) == b"content"


def test_a_descriptor_of_a_regular_file_blocks_as_any_other(tmp_path: Path) -> None:
    descriptor = open_regular(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    assert os.get_blocking(descriptor)  # a worker inherits the flag with its log
    os.close(descriptor)


def test_a_file_is_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LIMIT_BYTES", 10)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_regular(path) == b"0123456789"
    path.write_bytes(b"0123456789+")
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular(path)
