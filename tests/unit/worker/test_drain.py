from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_worker.drain import TELLING_SHARE, RemainingWork, StreamKind
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


def test_a_retired_worker_sheds_its_connections_and_stays(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(InstanceRole.RETIRED)
    assert scene.drain.shedding
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1
    assert not scene.after(0.02)
    assert scene.server.open == []
    assert not scene.after(1000)
    assert scene.server.accepting


def test_a_worker_that_is_active_again_keeps_its_connections_again(scene: Scene) -> None:
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.server.connect(idle_at=scene.now)
    assert not scene.drain.shedding
    assert not scene.after(1000)
    assert len(scene.server.open) == 1


def test_the_grace_begins_anew_with_each_retirement(scene: Scene) -> None:
    scene.server.connect()
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(GRACE - 1)
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(GRACE - 0.01)
    assert len(scene.server.open) == 1


def test_being_stopped_does_not_end_when_the_role_changes(scene: Scene) -> None:
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
    scene.drain.set_role(InstanceRole.RETIRED)
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
    [
        (InstanceRole.UNKNOWN, True),
        (InstanceRole.ACTIVE, True),
        (InstanceRole.STAGING, False),
        (InstanceRole.RETIRED, False),
    ],
)
def test_background_work_is_the_active_instances(
    scene: Scene, role: InstanceRole, leading: bool
) -> None:
    scene.drain.set_role(role)
    assert scene.drain.leading is leading
    scene.drain.stop()
    assert not scene.drain.leading


TELLING = TELLING_SHARE * TIMEOUT


# No deadline for an example: the machine may be busy.
@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 300), step=st.floats(0.01, 2.0))
def test_streams_are_told_evenly_over_their_share_of_the_drain_time(
    count: int, step: float
) -> None:
    scene = Scene()
    scene.server.running = [FakeStream() for _ in range(count)]
    scene.drain.stop()
    while (elapsed := scene.now - 100.0) < TELLING:
        scene.drain.tick(scene.server)
        line = 1 + (count - 1) * elapsed / TELLING
        assert line - 1 - 1e-6 <= scene.server.told() <= line + 1e-6
        scene.now += step
    scene.drain.tick(scene.server)
    assert [stream.told for stream in scene.server.running] == [[False]] * count


@settings(deadline=None, max_examples=30)
@given(arrivals=st.lists(st.floats(0, 14), max_size=40))
def test_streams_that_come_during_the_telling_are_told_in_time(arrivals: list[float]) -> None:
    scene = Scene()
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.drain.set_role(InstanceRole.RETIRED)
    waiting = sorted(arrivals)
    while scene.now - 100.0 < TELLING:
        while waiting and waiting[0] <= scene.now - 100.0:
            waiting.pop(0)
            scene.server.running.append(FakeStream())
        scene.after(0.05)
    assert [stream.told for stream in scene.server.running] == [[True]] * len(arrivals)


def test_a_single_stream_is_told_at_once(scene: Scene) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.stop()
    scene.after(0)
    assert scene.server.told() == 1


def test_a_worker_that_is_active_again_tells_no_more_streams(scene: Scene) -> None:
    scene.server.running = [FakeStream() for _ in range(10)]
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(TELLING / 2)
    told = scene.server.told()
    assert 0 < told < 10
    scene.drain.set_role(InstanceRole.ACTIVE)
    scene.after(TELLING)
    assert scene.server.told() == told
    scene.drain.set_role(InstanceRole.RETIRED)
    scene.after(TELLING)
    assert [len(stream.told) for stream in scene.server.running] == [1] * 10


@pytest.mark.parametrize(
    ("role", "replaced"),
    [
        (InstanceRole.UNKNOWN, False),
        (InstanceRole.ACTIVE, False),
        (InstanceRole.STAGING, True),
        (InstanceRole.RETIRED, True),
    ],
)
def test_streams_are_told_whether_another_instance_has_the_traffic(
    scene: Scene, role: InstanceRole, replaced: bool
) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.set_role(role)
    scene.drain.stop()
    scene.after(0)
    assert scene.server.running[0].told == [replaced]


def test_what_becomes_of_its_port_after_it_has_left_its_slot_is_not_its_affair(
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
    assert [stream.told for stream in scene.server.running] == [[True], [True]]


def test_a_stream_that_cannot_be_told_keeps_no_other_from_it(scene: Scene) -> None:
    class Faulty(FakeStream):
        def tell_to_go(self, *, replaced: bool) -> None:
            super().tell_to_go(replaced=replaced)
            raise RuntimeError("the adapter's fault")

    scene.server.running = [Faulty(), FakeStream(), Faulty()]
    scene.drain.stop()
    scene.drain.hurry_streams()
    assert not scene.after(0)
    scene.after(1)
    assert [len(stream.told) for stream in scene.server.running] == [1, 1, 1]


def test_hurried_streams_are_told_at_once_and_the_deadline_stays(scene: Scene) -> None:
    scene.server.running = [FakeStream() for _ in range(10)]
    scene.server.connect(idle_at=None)
    scene.drain.stop()
    scene.drain.hurry_streams()
    assert not scene.after(0.5)
    assert scene.server.told() == 10
    assert scene.drain.remaining == pytest.approx(TIMEOUT - 0.5)


def test_a_drain_waits_for_streams_until_the_deadline(scene: Scene) -> None:
    scene.server.running = [FakeStream()]
    scene.drain.stop()
    scene.after(1)
    assert not scene.after(TIMEOUT - 1.01)
    assert scene.after(0.02)


def test_what_is_left_is_counted_by_kind(scene: Scene) -> None:
    scene.server.running = [FakeStream(), FakeStream(), FakeStream(StreamKind.EVENTS)]
    for idle_at in (None, None, None, None, 1.0):
        scene.server.connect(idle_at=idle_at)
    left = scene.drain.left(scene.server)
    assert left == RemainingWork(requests=1, websockets=2, event_streams=1, idle=1)
    assert left.owed == 4
