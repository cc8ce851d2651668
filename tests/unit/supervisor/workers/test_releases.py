from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from atlas_supervisor.model.release import Release, VersionSource
from atlas_supervisor.workers import releases as releases_module
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError, missing

WRITTEN = "1.2.3"


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
    ["", ".", "..", "../work", "v2/", "v2/../../work", "/etc", "file", "nope", ".hidden",
     "with space", "-dash", "v2\n", "v2\0", "x" * 300, "\udcff"],
)  # fmt: skip
def test_no_other_name_leads_anywhere(releases: Releases, name: str) -> None:
    with pytest.raises(UnknownReleaseError, match=r"there is: 2024\.1, v2"):
        releases.find(name)


@pytest.mark.parametrize("name", ["with space", "-dash", ".hidden", "ñ", "a:b"])
def test_a_folder_whose_name_is_none_of_a_release_is_refused_by_saying_so(
    releases: Releases, tmp_path: Path, name: str
) -> None:
    (tmp_path / "releases" / name).mkdir(exist_ok=True)
    with pytest.raises(UnknownReleaseError, match=r"ASCII letters.* rename the folder; there is: "):
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
    for look in (lambda: gone.find("v1"), gone.names, lambda: gone.all(with_git=False)):
        with pytest.raises(UnknownReleaseError, match=r"RELEASES_DIR .* can't be read: No such"):
            look()
    (tmp_path / "gone-too").mkdir()
    with pytest.raises(UnknownReleaseError, match="there is: none"):
        gone.find("v1")


def test_a_link_in_the_folder_of_releases_is_refused_by_saying_so(releases: Releases) -> None:
    with pytest.raises(UnknownReleaseError, match=r"'current' in RELEASES_DIR is a link to .*/v2"):
        releases.find("current")


def test_a_release_is_pinned_to_its_real_path(tmp_path: Path) -> None:
    """Links on the way may be changed later: of the worker directory and of RELEASES_DIR."""
    for name in ("v1", "v2"):
        (tmp_path / "all" / name).mkdir(parents=True)
    (tmp_path / "current").symlink_to("all/v1")
    (tmp_path / "releases").symlink_to("all")
    linked = Releases(directory=tmp_path / "current", releases_dir=tmp_path / "releases")
    for found in (linked.find(None), linked.find("v1")):
        assert (found.path, found.version) == (tmp_path / "all" / "v1", "v1")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("all/gone")
    with pytest.raises(UnknownReleaseError, match=r"current \(a link to all/gone\) is gone"):
        linked.find(None)


def test_without_a_better_source_a_release_has_its_folders_name(
    releases: Releases, tmp_path: Path
) -> None:
    found = releases.find("2024.1")
    assert (found.version, found.source, found.note) == ("2024.1", VersionSource.NAME, None)
    (tmp_path / "releases" / "2024.1" / "VERSION").write_text("1.0")
    assert releases.find("2024.1").version == "1.0"


def test_the_worker_directory_has_a_digest_because_its_name_never_changes(tmp_path: Path) -> None:
    """A link is no name for its code either, unless what it leads to has one of its own."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "app.py").write_text("1")
    plain = Releases(directory=work, releases_dir=None)
    assert plain.find(None).source is VersionSource.DIGEST
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "work").symlink_to(work)
    linked = Releases(directory=tmp_path / "other" / "work", releases_dir=None)
    assert linked.find(None).version == plain.find(None).version
    listed = Releases(directory=work, releases_dir=tmp_path)
    assert listed.find(None).version == "work"


def test_the_state_folder_is_no_part_of_the_digest(tmp_path: Path) -> None:
    releases_dir, state_dir = tmp_path / "releases", tmp_path / "state"
    for folder in (releases_dir, state_dir):
        folder.mkdir()
    own = Releases(directory=tmp_path, releases_dir=releases_dir, state_dir=state_dir)
    before = own.find(None).version
    for folder in (releases_dir, state_dir):
        (folder / "new").write_text("1")
    assert own.find(None).version == before
    (tmp_path / "app.py").write_text("1")
    assert own.find(None).version != before


def pinned(releases: Releases, tmp_path: Path) -> Release:
    (tmp_path / "releases" / "v2" / "VERSION").write_text(WRITTEN)
    return releases.find("v2")


def test_a_recorded_release_is_the_same_folder_or_it_is_gone(
    releases: Releases, tmp_path: Path
) -> None:
    release = pinned(releases, tmp_path)
    folder, aside = release.path, tmp_path / "aside"
    assert releases.recorded(release) == release
    folder.rename(aside)
    with pytest.raises(UnknownReleaseError, match=r"release v2 is gone: its folder .* not exist"):
        releases.recorded(release)
    folder.symlink_to(aside)
    assert missing(release) is None, "the same folder again, if by a link"
    folder.unlink()
    folder.write_text("a file")
    assert "is no folder any more" in str(missing(release))
    folder.unlink()
    aside.rename(folder)
    assert releases.recorded(release) == release


@pytest.mark.parametrize("keeps_inode", [True, False])
def test_a_folder_that_was_replaced_in_place_is_another_one(
    releases: Releases, tmp_path: Path, keeps_inode: bool
) -> None:
    """Even where the file system gives its inode number to the next folder."""
    release = pinned(releases, tmp_path)
    if keeps_inode:
        shutil.rmtree(release.path)
    else:
        release.path.rename(tmp_path / "aside")
    release.path.mkdir()
    (release.path / "VERSION").write_text(WRITTEN)
    assert "was replaced by another one" in str(missing(release))
    with pytest.raises(UnknownReleaseError, match="was replaced by another one"):
        releases.recorded(release)


def test_a_release_from_before_folders_were_recorded_is_found_by_its_name(
    releases: Releases, tmp_path: Path
) -> None:
    old = Release(name="v2", path=tmp_path / "elsewhere", version="of then")
    assert releases.recorded(old) == releases.find("v2")
    assert releases.checked(old) == old


def test_another_version_in_the_same_folder_is_a_problem_until_it_is_the_old_one_again(
    releases: Releases, tmp_path: Path
) -> None:
    release = pinned(releases, tmp_path)
    assert releases.checked(release) == release
    (release.path / "VERSION").write_text("2.0")
    changed = releases.checked(release)
    assert changed.version == "2.0"
    assert "now holds version 2.0, and version 1.2.3 was deployed" in str(changed.problem)
    assert releases.checked(changed) == changed, "at the next crash, too"
    (release.path / "VERSION").write_text(WRITTEN)
    assert releases.checked(changed) == release


def test_a_folder_that_is_gone_is_not_said_to_hold_another_version(
    releases: Releases, tmp_path: Path
) -> None:
    release = pinned(releases, tmp_path)
    release.path.rename(tmp_path / "moved")
    assert releases.checked(release) == release
    assert "does not exist any more" in str(missing(release))


def test_a_file_that_the_application_wrote_into_its_own_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("1")
    found = Releases(directory=tmp_path, releases_dir=None)
    release = found.find(None)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/out.log").write_text("a line")
    assert "the file that changed last is logs/out.log" in str(found.checked(release).problem)


def test_without_a_look_at_the_files_a_folder_holds_what_it_held_at_the_last_look(
    tmp_path: Path,
) -> None:
    code = tmp_path / "main.py"
    code.write_text("1")
    then = code.stat().st_mtime_ns
    found = Releases(directory=tmp_path, releases_dir=None)
    first = found.find(None)
    assert found.why_gone(first, thorough=False) is None
    code.write_text("2")
    second = found.find(None)
    # Which of them is active does not matter: after a rollback the folder still holds the second.
    assert found.why_gone(second, thorough=False) is None
    why = f"{tmp_path} held version {second.version} when it was last looked up"
    assert found.why_gone(first, thorough=False) == why
    code.write_text("1")
    os.utime(code, ns=(then, then))
    assert found.why_gone(first, thorough=True) is None, "brought back by hand"
    assert found.why_gone(first, thorough=False) is None
    after_a_restart = Releases(directory=tmp_path, releases_dir=None)
    assert after_a_restart.why_gone(second, thorough=False) is None, "nothing was looked up yet"


def test_a_look_up_that_fails_at_a_restart_is_no_other_version(
    releases: Releases, tmp_path: Path
) -> None:
    release = pinned(releases, tmp_path)
    (release.path / "VERSION").unlink()
    os.mkfifo(release.path / "VERSION")
    assert releases.checked(release) == release
    (release.path / "VERSION").unlink()
    assert "now holds no VERSION any more" in str(releases.checked(release).problem)


def test_a_restart_does_not_wait_for_a_slow_git(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(git.parent), prepend=os.pathsep)
    monkeypatch.setattr("atlas_supervisor.workers.releases._RESTART_SECONDS", 0.1)
    release = releases.find("v2").model_copy(update={"source": VersionSource.GIT})
    (release.path / ".git").mkdir()
    assert releases.checked(release) == release


def test_the_list_of_releases_runs_git_only_if_it_may(releases: Releases, tmp_path: Path) -> None:
    (tmp_path / "releases" / "v2" / ".git").write_text("gitdir: /no/such/place")
    named, unknown = releases.all(with_git=False)
    assert (named.version, unknown.version) == ("2024.1", "")
    described = releases.all(with_git=True)[1]
    assert (described.version, described.source) == ("v2", VersionSource.NAME)
    assert "git does not describe it" in str(described.note)


def test_a_slow_git_bounds_the_list_of_releases_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("r1", "r2", "r3"):
        (tmp_path / "all" / name / ".git").mkdir(parents=True)
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 0.1\necho described\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(releases_module, "_LIST_SECONDS", 0.05)
    listed = Releases(directory=tmp_path, releases_dir=tmp_path / "all").all(with_git=True)
    assert [each.version for each in listed] == ["described", "", ""]
    assert listed[2].note == "git was too slow for the releases before"


def test_a_worker_directory_that_can_t_be_used_is_not_called_gone(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to("other")
    (tmp_path / "other").symlink_to("current")
    with pytest.raises(UnknownReleaseError, match=r"\(a link to other\) can't be used: Too many"):
        Releases(directory=link, releases_dir=None).find(None)
    link.unlink()
    link.touch()
    with pytest.raises(UnknownReleaseError, match="can't be used: it is no folder"):
        Releases(directory=link, releases_dir=None).find(None)
