"""The version of a release, and every way in which a look-up fails without passing for another."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from atlas_supervisor.model.release import VersionSource
from atlas_supervisor.workers import release_version
from atlas_supervisor.workers.release_version import Found, version_of
from tests.harness import eventually, missing, processes_with

needs_git = pytest.mark.skipif(bool(missing("git")), reason="git is not installed")
needs_root = pytest.mark.needs_root  # it gives files away
NAME, FILE = VersionSource.NAME, VersionSource.FILE


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True, text=True, check=True, env=environ,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "app.py").write_text("1")
    git(folder, "add", "app.py")
    git(folder, "commit", "-qm", "first")
    git(folder, "tag", "v3")
    return folder


# The file.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1.2.3\n", "1.2.3"),
        (b"\n\n  v1  \nnotes\n\x1b[31m", "v1"),
        (b"v1\r\nnotes", "v1"),
        (b"x" * 500, "x" * 100),
        (b"\xef\xbb\xbf1.2.3\r\n", "1.2.3"),
        ("één 2".encode(), "één 2"),
        (b"1.2.3\n" + b"#" * 4090, "1.2.3"),
    ],
)
def test_the_version_file_comes_first(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "VERSION").write_bytes(content)
    assert version_of(tmp_path, "r1") == Found(expected, FILE)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"", "VERSION is empty"),
        (b"\n \n", "VERSION is empty"),
        (b"\xef\xbb\xbf", "VERSION is empty"),
        (b"\x1b[31m", "VERSION has characters that can't be shown"),
        (b"\0", "VERSION has characters that can't be shown"),
        ("1\N{RIGHT-TO-LEFT OVERRIDE}2".encode(), "VERSION has characters that can't be shown"),
        ("1.2.3".encode("utf-16"), "VERSION is UTF-16, and UTF-8 is read"),
        ("één".encode("latin-1"), "VERSION is not UTF-8"),
        (b"1.2.3\n" + b"#" * 4091, "VERSION is larger than 4 KiB"),
    ],
)
def test_a_version_file_that_gives_none_is_named_as_the_reason(
    tmp_path: Path, content: bytes, note: str
) -> None:
    (tmp_path / "VERSION").write_bytes(content)
    assert version_of(tmp_path, "r1") == Found("r1", NAME, note)


def test_a_version_that_is_no_regular_file_does_not_block(tmp_path: Path) -> None:
    place = tmp_path / "VERSION"
    place.mkdir()
    assert version_of(tmp_path, "r1").note == "VERSION is a folder and not a file"
    place.rmdir()
    os.mkfifo(place)
    assert version_of(tmp_path, "r1").note == "VERSION is a FIFO and not a file"
    place.unlink()
    place.symlink_to("/dev/zero")
    assert version_of(tmp_path, "r1").note == "VERSION is a device and not a file"
    place.unlink()
    place.symlink_to("nothing")
    assert version_of(tmp_path, "r1").note == "VERSION can't be read: No such file or directory"
    place.unlink()
    place.symlink_to("VERSION")
    assert "VERSION can't be read: Too many levels" in str(version_of(tmp_path, "r1").note)


def test_a_huge_file_is_read_for_a_little_only(tmp_path: Path) -> None:
    with (tmp_path / "VERSION").open("wb") as file:
        file.truncate(3 * 1024**3)
    assert version_of(tmp_path, "r1").note == "VERSION is larger than 4 KiB"
    assert len(release_version._read_a_little(tmp_path)) == 4097


def test_a_version_file_that_leads_out_of_the_release_is_not_read(tmp_path: Path) -> None:
    """The version is shown to everyone, and the daemon may read what the author may not."""
    (tmp_path / "control.token").write_text("secret\n")
    release = tmp_path / "r1"
    (release / "build").mkdir(parents=True)
    (release / "VERSION").symlink_to("../control.token")
    note = "VERSION is a link to a file outside of the release"
    assert version_of(release, "r1") == Found("r1", NAME, note)
    (release / "build" / "number").write_text("7\n")
    (release / "VERSION").unlink()
    (release / "VERSION").symlink_to("build/number")
    (tmp_path / "current").symlink_to("r1")
    for path in (release, tmp_path / "current"):
        assert version_of(path, "r1") == Found("7", FILE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "VERSION").touch(mode=0)
    assert version_of(tmp_path, "r1").note == "VERSION can't be read: Permission denied"


# Git.


@needs_git
def test_git_describes_a_checkout_without_a_version_file(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert version_of(checkout, "r1") == Found("v3", VersionSource.GIT)
    git(checkout, "tag", "-d", "v3")
    assert version_of(checkout, "r1").version == git(checkout, "rev-parse", "--short", "HEAD")
    git(checkout, "tag", "v3")
    monkeypatch.setenv("GIT_DIR", "/somewhere/else")
    monkeypatch.setenv("GIT_TRACE", "1")
    assert version_of(checkout, "r1").version == "v3"
    (checkout / "app.py").write_text("22")
    assert version_of(checkout, "r1").version == "v3-dirty"


@needs_git
def test_git_that_reads_a_file_without_an_end_has_bounded_memory(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_version, "_GIT_BYTES", 32 * 1024**2)
    git(checkout, "config", "core.attributesFile", "/dev/zero")
    (checkout / "app.py").write_text("2")  # of the same size, so git has to read it
    note = version_of(checkout, "r1").note
    assert note is not None
    assert "git does not describe it: fatal: Out of memory" in note


@needs_git
def test_a_folder_within_a_checkout_does_not_get_its_version(checkout: Path) -> None:
    inner = checkout / "inner"
    inner.mkdir()
    assert version_of(inner, "r1") == Found("r1", NAME)
    (inner / ".git").mkdir()  # broken, so that git would look further up
    found = version_of(inner, "r1")
    assert (found.version, found.source) == ("r1", NAME)
    assert "git does not describe it: fatal: not a git repository" in str(found.note)


@needs_git
def test_a_linked_worktree_is_a_checkout(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "-q", str(tmp_path / "tree"), "v3")
    assert version_of(tmp_path / "tree", "r1").version == "v3"


@needs_git
@needs_root
@pytest.mark.parametrize("reachable", [True, False])
def test_a_checkout_of_another_owner_is_described(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """Whatever `sudo` has left in the environment, and although pytest's folders are private."""
    with TemporaryDirectory() as place:
        if reachable:
            Path(place).chmod(0o711)
        folder = Path(place) / "checkout"
        shutil.copytree(checkout, folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 12345, 12345)
        monkeypatch.setenv("SUDO_UID", "4321")
        assert version_of(folder, "r1") == Found("v3", VersionSource.GIT)
        (folder / "app.py").write_text("22")
        git_config = ("config", "--file", str(folder / ".git" / "config"))
        git(tmp := Path(place), *git_config, "filter.run.clean", f"touch {tmp / 'ran'}; cat")
        (folder / ".gitattributes").write_text("app.py filter=run")
        expected = "v3-dirty" if reachable else "v3"
        assert version_of(folder, "r1").version == expected
        assert not (tmp / "ran").exists(), "root runs no program that another user names"


@needs_git
def test_no_program_that_a_checkout_names_is_run(checkout: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(program))
    git(checkout, "config", "core.hooksPath", str(tmp_path / "hooks"))
    git(checkout, "config", "core.pager", str(program))
    (tmp_path / "hooks").mkdir()
    shutil.copy(program, tmp_path / "hooks" / "post-index-change")
    os.utime(checkout / "app.py", (1, 1))
    assert version_of(checkout, "r1").version == "v3"
    assert not ran.exists()


def program_called_git(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (folder / "bin").mkdir()
    program = folder / "bin" / "git"
    script = program.with_suffix(".py")
    script.write_text(f"{code}\n")
    # The interpreter's path may have a space, which a first line of a script can't have.
    program.write_text(f"#!/bin/sh\nexec {shlex.join((sys.executable, str(script)))}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


async def test_a_git_that_takes_too_long_is_ended_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    code = f"""
import os
os.environ["SLOW"] = {str(tmp_path)!r}
os.execv("/bin/sh", ["sh", "-c", "sleep 60 & sleep 60"])
"""
    program_called_git(tmp_path, monkeypatch, code)
    monkeypatch.setattr(release_version, "_SECONDS", 0.5)
    began = time.monotonic()
    assert version_of(tmp_path, "r1") == Found("r1", NAME, "git took longer than 0.5 s")
    assert time.monotonic() - began < 5
    await eventually(lambda: processes_with("SLOW", str(tmp_path)) == [])


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import sys; sys.stdout.buffer.write(b'v\\xff3\\n')", "git's description is not UTF-8"),
        ("", "git's description is empty"),
        ("print('v\\x1b3')", "git's description has characters that can't be shown"),
        ("raise SystemExit('fatal: no \\x1bway')", "git does not describe it: fatal: no way"),
        ("raise SystemExit(3)", "git does not describe it: exit status 3"),
    ],
)
def test_an_answer_of_git_is_a_version_or_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, note: str
) -> None:
    (tmp_path / ".git").mkdir()
    program_called_git(tmp_path, monkeypatch, code)
    assert version_of(tmp_path, "r1") == Found("r1", NAME, note)


def test_a_missing_git_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "VERSION").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    note = "VERSION is a folder and not a file; git is not installed"
    assert version_of(tmp_path, "r1") == Found("r1", NAME, note)


# The digest.


def digest(folder: Path) -> str:
    found = version_of(folder, None)
    assert (found.source, found.note) == (VersionSource.DIGEST, None)
    return found.version


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "package").mkdir(parents=True)
    for name in ("app.py", "package/one.py", "package/two.py"):
        (folder / name).write_text("1")
    return folder


def test_a_digest_is_that_of_a_copy_with_its_times(code: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(code, copy)
    assert digest(copy) == digest(code)
    os.utime(copy)
    os.utime(copy / "package", (1, 1))
    assert digest(copy) == digest(code), "the folders' own times say nothing"


def test_caches_and_sockets_are_no_part_of_a_digest(code: Path) -> None:
    before = digest(code)
    (code / "package" / "__pycache__").mkdir()
    (code / "package" / "__pycache__" / "one.pyc").write_text("1")
    os.mkfifo(code / "pipe")
    assert digest(code) == before


def test_every_change_of_name_size_or_time_is_another_digest(code: Path) -> None:
    seen = {digest(code)}
    (code / "app.py").write_text("22")
    seen.add(digest(code))
    os.utime(code / "app.py", ns=(0, 1))
    seen.add(digest(code))
    (code / "app.py").rename(code / "main.py")
    seen.add(digest(code))
    (code / "package").rename(code / "other")
    seen.add(digest(code))
    (code / "link").symlink_to("main.py")
    seen.add(digest(code))
    assert len(seen) == 6


def test_a_digest_never_leaves_its_folder(code: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (code / "link").symlink_to(outside)
    (code / "package" / "loop").symlink_to(code)
    before = digest(code)
    (outside / "file").write_text("1")
    assert digest(code) == before


def test_a_folder_too_large_for_a_digest_says_so(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_version, "_DIGEST_FILES", 2)
    assert version_of(code, None) == Found("code", NAME, "it has more than 2 files")
    monkeypatch.undo()
    monkeypatch.setattr(release_version, "_SECONDS", -1.0)
    note = "its files took longer than -1 s to read"
    assert version_of(code, None) == Found("code", NAME, note)
