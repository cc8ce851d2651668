from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from atlas_supervisor.model.canary import CanaryPolicy, FeaturePolicy
from atlas_supervisor.model.release import VersionSource
from atlas_supervisor.model.state import SCHEMA_VERSION, ActiveRelease
from atlas_supervisor.store.state_keeper import StateFile, UnreadableStateError
from atlas_worker.contract import STATE_BYTES_LIMIT
from tests.unit.supervisor.store.support import a_state
from tests.unit.supervisor.support import fill, mounted

RELEASE = ActiveRelease(
    name="r1", version="v1", path=Path("/srv/r1"), identity="1-2.3", source=VersionSource.FILE
)


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "deploy_state.json")


def names(file: StateFile) -> list[str]:
    return sorted(path.name for path in file.path.parent.iterdir())


def test_a_written_state_is_read_back(file: StateFile) -> None:
    assert file.read() is None
    for generation in (1, 2):
        state = a_state(generation=generation)
        file.write(state)
        assert file.read() == state
    assert names(file) == ["deploy_state.json"]


def test_a_state_that_no_worker_would_read_is_refused(file: StateFile) -> None:
    file.write(a_state(generation=1))
    features = {
        f"feature_{number}": FeaturePolicy(share=0.2, epoch=1, ramp=1, stage="steady")
        for number in range(12_000)
    }
    with pytest.raises(OSError, match="which no worker reads"):
        file.write(a_state(canary=CanaryPolicy(enabled=True, salt="", features=features)))
    assert file.read() == a_state(generation=1)
    longest = {f"{number:x>64}": each for number, each in enumerate(features.values())}
    first = dict(list(longest.items())[:1000])
    file.write(a_state(canary=CanaryPolicy(enabled=True, salt="", features=first)))
    assert file.path.stat().st_size < STATE_BYTES_LIMIT / 3


def test_the_file_holds_what_the_contract_names(file: StateFile) -> None:
    file.write(a_state(active_release=RELEASE))
    content = json.loads(file.path.read_text())
    assert content == {
        "schema_version": SCHEMA_VERSION,
        "generation": 7,
        "mode": "bluegreen",
        "active_port": 8791,
        "staging_port": 8792,
        "staging_weight": 0.0,
        "active_release": {
            "name": "r1",
            "version": "v1",
            "path": "/srv/r1",
            "identity": "1-2.3",
            "source": "VERSION",
        },
        "last_deploy_ts": None,
        "last_switch_ts": "2026-01-02T03:04:05.678901Z",
        "canary_disabled_fallback": False,
        "hold": None,
        "announce_close": False,
        "canary": None,
    }


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_group_may_read_it_under_any_umask(file: StateFile, umask: int) -> None:
    before = os.umask(umask)
    try:
        file.write(a_state())
    finally:
        os.umask(before)
    assert file.path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\0" * 4096, "no valid state"),
        (b'{"mode": "bluegreen", "active_po', "no valid state"),
        (b"not json", "no valid state"),
        (b"\xff\xfe{}", "no valid state"),
        (b"[]", "no valid state"),
        (b"null", "no valid state"),
        (b"{}", "mode"),
        (b'{"mode": "green", "active_port": 1, "staging_port": 2}', "mode"),
        (b'{"mode": "single", "active_port": 0, "staging_port": 2}', "active_port"),
        (b'{"mode": "single", "active_port": -1, "staging_port": 2}', "active_port"),
        (b'{"mode": "single", "active_port": "x", "staging_port": 2}', "active_port"),
        (b'{"mode":"single","active_port":1,"staging_port":2,"schema_version":99}', "newer"),
        (b"[" * 100_000, "no valid state"),
    ],
)
def test_a_file_that_is_no_state_says_why(file: StateFile, content: bytes, why: str) -> None:
    file.path.write_bytes(content)
    with pytest.raises(UnreadableStateError, match=why):
        file.read()
    assert file.path.read_bytes() == content


def test_fields_of_a_later_version_of_the_same_schema_are_passed_over(file: StateFile) -> None:
    file.write(a_state())
    content = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**content, "weather": "fine"}))
    assert file.read() == a_state()


def test_a_folder_in_its_place_is_unreadable_and_can_be_set_aside(file: StateFile) -> None:
    file.path.mkdir()
    with pytest.raises(UnreadableStateError, match="can't be read"):
        file.read()
    with pytest.raises(OSError, match="directory"):
        file.write(a_state())
    aside = file.set_aside("now")
    assert aside.is_dir()
    file.write(a_state())
    assert names(file) == ["deploy_state.json", "deploy_state.json.unreadable-now"]


def test_a_file_that_is_set_aside_keeps_its_content(file: StateFile) -> None:
    file.path.write_bytes(b"garbage")
    assert file.set_aside("20260102").read_bytes() == b"garbage"
    assert file.read() is None


def test_a_reader_never_sees_half_of_it(file: StateFile) -> None:
    file.write(a_state(generation=0))
    done = threading.Event()
    seen: list[int] = []
    faults: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(json.loads(file.path.read_bytes())["generation"])
            except (OSError, ValueError) as error:
                faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for generation in range(1, 101):
        file.write(a_state(generation=generation))
    done.set()
    reader.join()
    assert faults == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


def test_a_half_written_file_left_by_a_crash_is_no_obstacle(file: StateFile) -> None:
    file.write(a_state(generation=1))
    file.path.with_name(".deploy_state.json.new").write_text('{"gener')
    assert file.read() == a_state(generation=1)
    file.write(a_state(generation=2))
    assert file.read() == a_state(generation=2)
    assert names(file) == ["deploy_state.json"]


@pytest.mark.needs_root
def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=32k") as disk:
        file = StateFile(disk / "deploy_state.json")
        file.write(a_state(generation=1))
        filler = fill(disk)
        with pytest.raises(OSError, match="No space"):
            file.write(a_state(generation=2))
        assert file.read() == a_state(generation=1)
        assert names(file) == ["deploy_state.json", "filler"]
        filler.unlink()
        file.write(a_state(generation=2))
        assert file.read() == a_state(generation=2)


def test_a_disk_that_does_not_take_it_leaves_the_old_content(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(a_state(generation=1))

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.write(a_state(generation=2))
    assert file.read() == a_state(generation=1)
    assert names(file) == ["deploy_state.json"]


def test_a_folder_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "gone" / "deploy_state.json")
    assert file.read() is None
    with pytest.raises(FileNotFoundError):
        file.write(a_state())


def test_a_fifo_or_a_link_in_place_of_the_new_file_is_replaced_and_never_opened(
    tmp_path: Path,
) -> None:
    file, new = StateFile(tmp_path / "state.json"), tmp_path / ".state.json.new"
    other = tmp_path / "other"
    other.write_text("not ours")
    for place in (os.mkfifo, lambda path: path.symlink_to(other)):
        place(new)
        file.write(a_state())
        assert file.read() == a_state()
        assert other.read_text() == "not ours"
        assert not new.exists()
