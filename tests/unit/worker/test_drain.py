from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from worker.kit.drain import Drain
from worker.kit.role import Role

GRACE, SETTLE, TIMEOUT = 5.0, 0.25, 30.0


@dataclass(eq=False)
class FakeConnection:
    server: FakeServer
    idle_at: float | None
    unread: bool = False

    def idle_since(self) -> float | None:
        return self.idle_at

    def close_if_unread(self) -> None:
        if not self.unread:
            self.server.open.remove(self)


@dataclass
class FakeServer:
    open: list[FakeConnection] = field(default_factory=list)
    queue: int = 0
    accepting: bool = True

    def connections(self) -> list[FakeConnection]:
        return self.open

    def queue_length(self) -> int:
        return self.queue

    def stop_accepting(self) -> None:
        self.accepting = False

    def connect(self, *, idle_at: float | None = 0.0, unread: bool = False) -> FakeConnection:
        connection = FakeConnection(self, idle_at, unread)
        self.open.append(connection)
        return connection


class Scene:
    """A drain of a server, with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.server = FakeServer()
        self.drain = Drain(idle_grace=GRACE, timeout=TIMEOUT, settle=SETTLE, clock=lambda: self.now)

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.drain.tick(self.server)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("role", [Role.UNKNOWN, Role.STAGING, Role.ACTIVE])
def test_a_worker_that_is_not_retired_keeps_its_connections(scene: Scene, role: Role) -> None:
    scene.drain.set_role(role)
    scene.server.connect()
    assert not scene.after(1000)
    assert not scene.drain.shedding
    assert len(scene.server.open) == 1


def test_a_retired_worker_sheds_its_connections_and_stays(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(Role.RETIRED)
    assert scene.drain.shedding
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1
    assert not scene.after(0.02)
    assert scene.server.open == []
    assert not scene.after(1000)
    assert scene.server.accepting


def test_a_worker_that_is_active_again_keeps_its_connections_again(scene: Scene) -> None:
    scene.drain.set_role(Role.RETIRED)
    scene.drain.set_role(Role.ACTIVE)
    scene.server.connect(idle_at=scene.now)
    assert not scene.drain.shedding
    assert not scene.after(1000)
    assert len(scene.server.open) == 1


def test_the_grace_begins_anew_with_each_retirement(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(Role.RETIRED)
    scene.after(GRACE - 1)
    scene.drain.set_role(Role.ACTIVE)
    scene.drain.set_role(Role.RETIRED)
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1


def test_being_stopped_does_not_end_when_the_role_changes(scene: Scene) -> None:
    scene.drain.stop()
    scene.drain.set_role(Role.ACTIVE)
    assert scene.drain.shedding


def test_a_connection_has_the_whole_grace_from_when_it_became_idle(scene: Scene) -> None:
    connection = scene.server.connect(idle_at=None)
    scene.drain.stop()
    scene.after(10)
    connection.idle_at = scene.now
    scene.after(GRACE - 0.01)
    assert scene.server.open == [connection]
    scene.after(0.02)
    assert scene.server.open == []


def test_a_connection_with_something_to_read_is_not_closed(scene: Scene) -> None:
    connection = scene.server.connect(unread=True)
    scene.drain.stop()
    scene.after(GRACE + 1)
    assert scene.server.open == [connection]


def test_a_drain_with_no_connections_ends_after_settling(scene: Scene) -> None:
    scene.drain.stop()
    assert not scene.after(SETTLE - 0.01)
    assert scene.server.accepting
    assert not scene.after(0.02)
    assert not scene.server.accepting
    assert scene.after(0.02)


def test_a_worker_that_was_retired_long_ago_need_not_settle_again(scene: Scene) -> None:
    scene.drain.set_role(Role.RETIRED)
    scene.after(60)
    scene.drain.stop()
    assert not scene.after(0)
    assert scene.after(0)


def test_accepting_goes_on_while_connections_are_queued(scene: Scene) -> None:
    scene.server.queue = 3
    scene.drain.stop()
    scene.after(10)
    assert scene.server.accepting
    scene.server.queue = 0
    scene.after(0.02)
    assert not scene.server.accepting


def test_a_connection_accepted_with_the_last_look_is_still_served(scene: Scene) -> None:
    scene.drain.stop()
    assert not scene.after(SETTLE)
    late = scene.server.connect(idle_at=None)
    assert not scene.after(1)
    scene.server.open.remove(late)
    assert scene.after(0.02)


def test_requests_in_flight_are_waited_for_until_the_deadline(scene: Scene) -> None:
    scene.server.connect(idle_at=None)
    scene.drain.stop()
    assert not scene.after(TIMEOUT - 0.01)
    assert scene.after(0.02)


def test_a_queue_that_never_empties_ends_at_the_deadline(scene: Scene) -> None:
    scene.server.queue = 1
    scene.drain.stop()
    scene.after(TIMEOUT)
    assert not scene.server.accepting
    assert scene.after(0)


def test_a_second_stop_does_not_move_the_deadline(scene: Scene) -> None:
    scene.drain.stop()
    scene.now += 20
    scene.drain.stop()
    assert scene.drain.remaining == pytest.approx(TIMEOUT - 20)


def test_hurrying_ends_the_drain_now(scene: Scene) -> None:
    scene.server.connect(idle_at=None)
    scene.drain.stop()
    scene.drain.hurry()
    assert not scene.after(0)
    assert scene.after(0)


@pytest.mark.parametrize(
    ("role", "leading"),
    [(Role.UNKNOWN, True), (Role.ACTIVE, True), (Role.STAGING, False), (Role.RETIRED, False)],
)
def test_background_work_is_the_active_instances(scene: Scene, role: Role, leading: bool) -> None:
    scene.drain.set_role(role)
    assert scene.drain.leading is leading
    scene.drain.stop()
    assert not scene.drain.leading
