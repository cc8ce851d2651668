"""`release.toml`: what is accepted in it, and what each fault says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas_supervisor.workers.release_file import ReleaseFileError, read_release_file
from atlas_supervisor.workers.releases import Releases


def test_it_says_whether_the_release_is_irreversible(tmp_path: Path) -> None:
    file = tmp_path / "release.toml"
    releases = Releases(directory=tmp_path, releases_dir=None)
    found = releases.find(None)
    assert (found.irreversible, found.fault) == (False, None)
    file.write_text('irreversible = true\nprepare = ["./migrate"]\n')
    found = releases.find(None)
    assert (found.irreversible, found.fault) == (True, None)
    file.write_text("irreversible = true\n", encoding="utf-8-sig")
    assert read_release_file(tmp_path).irreversible
    file.write_text("")
    assert not read_release_file(tmp_path).irreversible
    file.write_text("irreversible = yes")
    assert "release.toml: Invalid value" in (releases.find(None).fault or "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"reversible = false", "'reversible' is not an accepted key: these are irreversible, p"),
        (b'irreversible = "yes"', "'irreversible' = 'yes': accepted is true or false"),
        (b"irreversible = 1", "accepted is true or false"),
        (b'prepare = "./migrate"', "'prepare' = './migrate': accepted is a list of texts"),
        (b'prepare = ["a", 1]', "'prepare': accepted is a list of texts"),
        (b'prepare = [""]', "accepted is a list of texts"),
        (b"irreversible", "a TOML file is accepted"),
        (b"irreversible = true\nirreversible = true", "Cannot overwrite"),
        (b"\xff\xfe", "a TOML file is accepted"),
        (b"prepare = " + b"[" * 60_000, "nested too deeply"),
        (b"irreversible = " + b"1" * 5000, "a TOML file is accepted"),
        (b"#" * 65537, "more than 64 KiB"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "release.toml").write_bytes(content)
    with pytest.raises(ReleaseFileError) as refused:
        read_release_file(tmp_path)
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "dangling link"])
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "release.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/etc/hostname" if kind == "link" else "nowhere")
    with pytest.raises(ReleaseFileError, match="a readable file is accepted"):
        read_release_file(tmp_path)
    assert Releases(directory=tmp_path, releases_dir=None).find(None).fault is not None
