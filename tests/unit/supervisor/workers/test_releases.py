from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from atlas_supervisor.workers.releases import Releases, UnknownReleaseError, version_of
from tests.harness import missing

needs_git = pytest.mark.skipif(bool(missing("git")), reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True, text=True, check=True, env=environ,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    for name in ("2024.1", "v2", ".hidden", "with space", "-dash"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    (tmp_path / "releases" / "file").touch()
    (tmp_path / "releases" / "current").symlink_to(tmp_path / "releases" / "v2")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "VERSION").write_text("v1\n")
    return Releases(directory=tmp_path / "work", releases_dir=tmp_path / "releases")


def test_no_name_is_the_worker_directory(releases: Releases, tmp_path: Path) -> None:
    found = releases.find(None)
    assert (found.name, found.path, found.version) == (None, tmp_path / "work", "v1")


def test_only_plain_folders_with_plain_names_are_releases(releases: Releases) -> None:
    assert releases.names() == ["2024.1", "v2"]
    assert releases.find("v2").name == "v2"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../work", "v2/", "v2/../../work", "/etc", "current", "file", "nope", ".hidden",
     "with space", "-dash", "v2\n", "v2\0", "x" * 300, "\udcff"],
)  # fmt: skip
def test_no_other_name_leads_anywhere(releases: Releases, name: str) -> None:
    with pytest.raises(UnknownReleaseError, match=r"there is: 2024\.1, v2"):
        releases.find(name)


def test_a_name_needs_a_folder_of_releases(tmp_path: Path) -> None:
    without = Releases(directory=tmp_path, releases_dir=None)
    assert without.names() == []
    with pytest.raises(UnknownReleaseError, match="RELEASES_DIR is not set"):
        without.find("v1")


def test_missing_folders_are_reported(tmp_path: Path) -> None:
    gone = Releases(directory=tmp_path / "gone", releases_dir=tmp_path / "gone-too")
    with pytest.raises(UnknownReleaseError, match="is gone"):
        gone.find(None)
    with pytest.raises(UnknownReleaseError, match="there is: none"):
        gone.find("v1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("1.2.3\n", "1.2.3"), ("  v1  \nnotes\n", "v1"), ("x" * 500, "x" * 100)],
)
def test_the_version_file_comes_first(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "VERSION").write_text(content)
    assert version_of(tmp_path) == expected


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1b[31m", b"\0"])
def test_an_empty_version_file_is_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "VERSION").write_bytes(content)
    os.utime(tmp_path, (0, 0))
    assert version_of(tmp_path) == "1970-01-01T00:00:00Z"


@needs_git
def test_git_describes_a_folder_without_a_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "app.py").write_text("1")
    git(tmp_path, "add", "app.py")
    git(tmp_path, "commit", "-qm", "first")
    assert version_of(tmp_path) == git(tmp_path, "rev-parse", "--short", "HEAD")
    git(tmp_path, "tag", "v3")
    assert version_of(tmp_path) == "v3"
    monkeypatch.setenv("GIT_DIR", "/somewhere/else")
    assert version_of(tmp_path) == "v3"
    (tmp_path / "app.py").write_text("22")
    assert version_of(tmp_path) == "v3-dirty"


@needs_git
def test_a_folder_within_a_repository_does_not_get_its_version(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "first", "--allow-empty")
    (tmp_path / "release").mkdir()
    os.utime(tmp_path / "release", (0, 0))
    assert version_of(tmp_path / "release") == "1970-01-01T00:00:00Z"


def test_a_broken_repository_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /no/such/place\n")
    os.utime(tmp_path, (0, 0))
    assert version_of(tmp_path) == "1970-01-01T00:00:00Z"
