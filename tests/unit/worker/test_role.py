from __future__ import annotations

import json
import threading
from pathlib import Path
from queue import Queue

import pytest

from atlas_worker.role import InstanceRole, RoleWatcher, next_role
from tests.unit.worker.support import write_state

OWN, OTHER = 8791, 8792


@pytest.mark.parametrize(
    ("role", "active_port", "expected"),
    [
        (InstanceRole.UNKNOWN, OTHER, InstanceRole.STAGING),
        (InstanceRole.UNKNOWN, OWN, InstanceRole.ACTIVE),
        (InstanceRole.STAGING, OTHER, InstanceRole.STAGING),
        (InstanceRole.STAGING, OWN, InstanceRole.ACTIVE),
        (InstanceRole.ACTIVE, OTHER, InstanceRole.RETIRED),
        (InstanceRole.RETIRED, OTHER, InstanceRole.RETIRED),
        (InstanceRole.RETIRED, OWN, InstanceRole.ACTIVE),
    ],
)
def test_the_role_follows_the_active_port(
    role: InstanceRole, active_port: int, expected: InstanceRole
) -> None:
    assert next_role(role, own_port=OWN, active_port=active_port) is expected


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (InstanceRole.STAGING, InstanceRole.STAGING),
        (InstanceRole.ACTIVE, InstanceRole.HELD_BACK),
        (InstanceRole.RETIRED, InstanceRole.HELD_BACK),
        (InstanceRole.HELD_BACK, InstanceRole.HELD_BACK),
    ],
)
def test_a_version_that_was_active_is_held_back_while_staging_has_a_share(
    role: InstanceRole, expected: InstanceRole
) -> None:
    assert next_role(role, own_port=OWN, active_port=OTHER, shared=True) is expected
    assert next_role(role, own_port=OWN, active_port=OWN, shared=True) is InstanceRole.ACTIVE


class Followed:
    """A watch on a file, and the roles that it reported."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.roles: Queue[InstanceRole] = Queue()
        path = state_dir / "deploy_state.json"
        self.watch = RoleWatcher(path, OWN, lambda role, _held: self.roles.put(role))

    def check(self) -> InstanceRole:
        self.watch.check()
        return self.watch.role


def test_without_a_file_the_role_is_unknown(tmp_path: Path) -> None:
    assert Followed(tmp_path / "absent").check() is InstanceRole.UNKNOWN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"active_port": null}',
        b'{"active_port": true}',
        b'{"active_port": "8792"}',
        b'{"active_port": 8792.0}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_bad_file_leaves_the_role_as_it_was(tmp_path: Path, content: bytes) -> None:
    followed = Followed(tmp_path)
    write_state(tmp_path, OWN)
    assert followed.check() is InstanceRole.ACTIVE
    (tmp_path / "deploy_state.json").write_bytes(content)
    assert followed.check() is InstanceRole.ACTIVE
    write_state(tmp_path, OTHER)
    assert followed.check() is InstanceRole.RETIRED


def test_a_deleted_file_leaves_the_role_as_it_was(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    write_state(tmp_path, OWN)
    followed.check()
    (tmp_path / "deploy_state.json").unlink()
    assert followed.check() is InstanceRole.ACTIVE


def test_only_changes_are_reported(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    for port in (OTHER, OTHER, OWN, OWN, OTHER, OWN):
        write_state(tmp_path, port)
        followed.check()
    reported = [followed.roles.get_nowait() for _ in range(followed.roles.qsize())]
    assert reported == [
        InstanceRole.STAGING,
        InstanceRole.ACTIVE,
        InstanceRole.RETIRED,
        InstanceRole.ACTIVE,
    ]


def test_a_hold_is_reported_besides_the_role(tmp_path: Path) -> None:
    seen: list[tuple[InstanceRole, bool]] = []
    watch = RoleWatcher(tmp_path / "deploy_state.json", OWN, lambda *each: seen.append(each))
    for announces in (False, True, True, "yes", False):
        state = {"active_port": OWN, "announce_close": announces}
        (tmp_path / "deploy_state.json").write_text(json.dumps(state))
        watch.check()
    assert [held for _, held in seen] == [False, True, False]
    assert {role for role, _ in seen} == {InstanceRole.ACTIVE}


def test_other_fields_of_the_file_do_not_matter(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    state = {"schema_version": 99, "active_port": OWN, "mode": "from the future"}
    (tmp_path / "deploy_state.json").write_text(json.dumps(state))
    assert followed.check() is InstanceRole.ACTIVE


def test_the_file_is_followed_until_stop(tmp_path: Path) -> None:
    threads = threading.active_count()
    followed = Followed(tmp_path)
    followed.watch.start()
    write_state(tmp_path, OWN)
    assert followed.roles.get(timeout=5) is InstanceRole.ACTIVE
    write_state(tmp_path, OTHER)
    assert followed.roles.get(timeout=5) is InstanceRole.RETIRED
    write_state(tmp_path, OWN)
    assert followed.roles.get(timeout=5) is InstanceRole.ACTIVE
    followed.watch.stop()
    assert threading.active_count() == threads


def test_a_watcher_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    Followed(tmp_path).watch.stop()
