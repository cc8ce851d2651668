from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from atlas_supervisor.system.descriptors import SPARES, Purpose, has_room, with_spares


@pytest.mark.parametrize(
    ("limit", "relay", "tcp", "unix", "own"),
    [
        (65, 49, 57, 61, 63),
        (128, 96, 112, 120, 124),
        (1024, 960, 992, 1008, 1016),
        (9999, 9935, 9967, 9983, 9991),
    ],
)
def test_each_purpose_leaves_more_to_those_above_it(
    limit: int, relay: int, tcp: int, unix: int, own: int
) -> None:
    assert [purpose.bound(limit) for purpose in Purpose] == [relay, tcp, unix, own]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_there_is_room_below_the_bound_only(listener: socket.socket) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(listener.fileno())
    os.close(lowest)
    limit = 4 * lowest
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    room = Purpose.RELAY.bound(limit) - lowest
    assert has_room(listener, Purpose.RELAY, room)
    assert not has_room(listener, Purpose.RELAY, room + 1)
    assert has_room(listener, Purpose.API_UNIX, room + 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    assert not has_room(listener, Purpose.API_UNIX)


def test_own_work_gets_the_spare_descriptors_and_other_errors_are_raised() -> None:
    SPARES.hold()
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return len(calls)

    assert with_spares(work) == 2

    def other() -> None:
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError), SPARES.released():
        with_spares(other)
    with SPARES.released():
        pass
