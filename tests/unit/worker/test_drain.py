from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_worker.drain import CLOSING_SHARE, HELD_BACK_SECONDS, RemainingWork, StreamKind
from atlas_worker.role import InstanceRole
from tests.unit.worker.fakes import GRACE, SETTLE, TIMEOUT, FakeStream, Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("role", [InstanceRole.UNKNOWN, InstanceRole.STAGING, InstanceRole.ACTIVE])
def test_a_worker_that_is_not_retired_keeps_its_connections(
    scene: Scene, role: InstanceRole
) -> None:
    scene.drain.set_role(role)
    scene.server.connect()
    assert not scene.after(1000)
    assert not scene.drain.shedding
    assert len(scene.server.open) == 1


def test_a_retired_worker_sheds_its_connections_and_continues(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(InstanceRole.RETIRED)
    assert scene.drain.shedding
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1
    assert not scene.after(0.02)
    assert scene.server.open == []
    assert not scene.after(1000)
    assert scene.server.accepting


@pytest.mark.parametrize("noticed", [True, False])
def test_a_version_that_is_held_back_lets_its_clients_go_and_keeps_those_that_come(
    scene: Scene, noticed: bool
) -> None:
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.server.connect()
    if noticed:  # the moment between the switch and the holdback
        scene.drain.set_role(InstanceRole.RETIRED)
    scene.drain.set_role(InstanceRole.HELD_BACK)
    assert scene.drain.shedding
    assert not scene.drain.leading
    scene.after(GRACE + HELD_BACK_SECONDS)
    assert scene.server.open == []
    assert not scene.drain.shedding
    scene.server.connect(idle_at=scene.now)
    assert not scene.after(1000)
    assert len(scene.server.open) == 1
    scene.drain.set_role(InstanceRole.RETIRED)  # the holdback ends
    assert scene.drain.shedding
    scene.after(GRACE)
    assert scene.server.open == []


def test_a_version_that_is_held_back_and_stops_sheds_to_its_end(scene: Scene) -> None:
    scene.drain.set_role(InstanceRole.HELD_BACK)
    scene.drain.stop()
    scene.after(GRACE + 2 * HELD_BACK_SECONDS)
    assert scene.drain.shedding


def test_a_worker_that_is_active_again_keeps_its_connections_again(scene: Scene) -> None:
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.server.connect(idle_at=scene.now)
    assert not scene.drain.shedding
    assert not scene.after(1000)
    assert len(scene.server.open) == 1


def test_in_a_hold_connections_are_shed_and_streams_stay(scene: Scene) -> None:
    scene.server.running.append(FakeStream())
    scene.server.connect()
    scene.drain.set_role(InstanceRole.ACTIVE, held=True)
    assert scene.drain.shedding
    assert scene.drain.leading
    scene.after(GRACE + 1)
    assert (scene.server.open, scene.server.closed()) == ([], 0)
    scene.drain.set_role(InstanceRole.ACTIVE)
    assert not scene.drain.shedding


def test_a_switch_in_a_hold_closes_the_streams_from_then_on(scene: Scene) -> None:
    scene.server.running.extend(FakeStream() for _ in range(10))
    scene.drain.set_role(InstanceRole.ACTIVE, held=True)
    scene.after(1000)
    assert scene.server.closed() == 0
    scene.drain.set_role(InstanceRole.RETIRED, held=True)
    scene.after(0.1)
    assert 0 < scene.server.closed() < 10
    scene.after(TIMEOUT)
    assert scene.server.closed() == 10


def test_the_grace_restarts_with_each_retirement(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(GRACE - 1)
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1


def test_a_change_of_role_does_not_end_the_stop(scene: Scene) -> None:
    scene.drain.stop()
    scene.drain.set_role(InstanceRole.ACTIVE)
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


def test_a_connection_with_unread_bytes_is_not_closed(scene: Scene) -> None:
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
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(60)
    scene.drain.stop()
    assert not scene.after(0)
    assert scene.after(0)


def test_connections_are_accepted_while_the_queue_is_not_empty(scene: Scene) -> None:
    scene.server.queue = 3
    scene.drain.stop()
    scene.after(10)
    assert scene.server.accepting
    scene.server.queue = 0
    scene.after(0.02)
    assert not scene.server.accepting


def test_a_connection_accepted_at_the_last_moment_is_served(scene: Scene) -> None:
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


def test_expire_ends_the_drain_now(scene: Scene) -> None:
    scene.server.connect(idle_at=None)
    scene.drain.stop()
    scene.drain.expire()
    assert not scene.after(0)
    assert scene.after(0)


@pytest.mark.parametrize(
    ("role", "leading"),
    [
        (InstanceRole.UNKNOWN, True),
        (InstanceRole.ACTIVE, True),
        (InstanceRole.STAGING, False),
        (InstanceRole.RETIRED, False),
    ],
)
def test_background_work_belongs_to_the_active_instance(
    scene: Scene, role: InstanceRole, leading: bool
) -> None:
    scene.drain.set_role(role)
    assert scene.drain.leading is leading
    scene.drain.stop()
    assert not scene.drain.leading


CLOSING = CLOSING_SHARE * TIMEOUT


# No deadline for an example: the machine may be busy.
@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 300), step=st.floats(0.01, 2.0))
def test_streams_are_closed_evenly_over_their_share_of_the_timeout(count: int, step: float) -> None:
    scene = Scene()
    scene.server.running = [FakeStream() for _ in range(count)]
    scene.drain.stop()
    while (elapsed := scene.now - 100.0) < CLOSING:
        scene.drain.tick(scene.server)
        line = 1 + (count - 1) * elapsed / CLOSING
        assert line - 1 - 1e-6 <= scene.server.closed() <= line + 1e-6
        scene.now += step
    scene.drain.tick(scene.server)
    assert [stream.closed for stream in scene.server.running] == [[False]] * count


@settings(deadline=None, max_examples=30)
@given(arrivals=st.lists(st.floats(0, 14), max_size=40))
def test_streams_that_start_during_the_drain_are_closed_in_time(arrivals: list[float]) -> None:
    scene = Scene()
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.drain.set_role(InstanceRole.RETIRED)
    waiting = sorted(arrivals)
    while scene.now - 100.0 < CLOSING:
        while waiting and waiting[0] <= scene.now - 100.0:
            waiting.pop(0)
            scene.server.running.append(FakeStream())
        scene.after(0.05)
    assert [stream.closed for stream in scene.server.running] == [[True]] * len(arrivals)


def test_a_single_stream_is_closed_at_once(scene: Scene) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.stop()
    scene.after(0)
    assert scene.server.closed() == 1


def test_a_worker_that_is_active_again_closes_no_more_streams(scene: Scene) -> None:
    scene.server.running = [FakeStream() for _ in range(10)]
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(CLOSING / 2)
    closed = scene.server.closed()
    assert 0 < closed < 10
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.after(CLOSING)
    assert scene.server.closed() == closed
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(CLOSING)
    assert [len(stream.closed) for stream in scene.server.running] == [1] * 10


@pytest.mark.parametrize(
    ("role", "replaced"),
    [
        (InstanceRole.UNKNOWN, False),
        (InstanceRole.ACTIVE, False),
        (InstanceRole.STAGING, True),
        (InstanceRole.RETIRED, True),
    ],
)
def test_streams_know_whether_another_instance_is_active(
    scene: Scene, role: InstanceRole, replaced: bool
) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.set_role(role)
    scene.drain.stop()
    scene.after(0)
    assert scene.server.running[0].closed == [replaced]


def test_the_role_is_ignored_once_nothing_is_accepted(
    scene: Scene,
) -> None:
    scene.server.running += [FakeStream(), FakeStream()]
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.drain.stop()
    while scene.server.accepting:
        scene.after(SETTLE)
    scene.drain.set_role(InstanceRole.ACTIVE)  # the next instance in this slot
    scene.after(TIMEOUT)
    assert [stream.closed for stream in scene.server.running] == [[True], [True]]


def test_a_stream_that_fails_to_close_does_not_keep_others_open(scene: Scene) -> None:
    class Faulty(FakeStream):
        def begin_close(self, *, replaced: bool) -> None:
            super().begin_close(replaced=replaced)
            raise RuntimeError("the adapter's fault")

    scene.server.running = [Faulty(), FakeStream(), Faulty()]
    scene.drain.stop()
    scene.drain.close_streams_now()
    assert not scene.after(0)
    scene.after(1)
    assert [len(stream.closed) for stream in scene.server.running] == [1, 1, 1]


def test_close_streams_now_closes_all_and_keeps_the_deadline(scene: Scene) -> None:
    scene.server.running = [FakeStream() for _ in range(10)]
    scene.server.connect(idle_at=None)
    scene.drain.stop()
    scene.drain.close_streams_now()
    assert not scene.after(0.5)
    assert scene.server.closed() == 10
    assert scene.drain.remaining == pytest.approx(TIMEOUT - 0.5)


def test_a_drain_waits_for_streams_until_the_deadline(scene: Scene) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.stop()
    scene.after(1)
    assert not scene.after(TIMEOUT - 1.01)
    assert scene.after(0.02)


def test_remaining_work_is_counted_by_kind(scene: Scene) -> None:
    scene.server.running = [FakeStream(), FakeStream(), FakeStream(StreamKind.EVENTS)]
    for idle_at in (None, None, None, None, 1.0):
        scene.server.connect(idle_at=idle_at)
    left = scene.drain.remaining_work(scene.server)
    assert left == RemainingWork(requests=1, websockets=2, event_streams=1, idle=1)
    assert left.unfinished == 4
