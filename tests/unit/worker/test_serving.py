"""What the supervisor hears during a drain, and how much time looking costs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from atlas_worker import serving
from atlas_worker.drain import StreamKind
from atlas_worker.notify import Notifier
from tests.unit.worker.fakes import FakeServer, FakeStream, Scene


class Heard(Notifier):
    """Notes the words; delivers none while `deaf`."""

    def __init__(self) -> None:
        super().__init__(None)
        self.words: list[object] = []
        self.deaf = False

    def not_accepting(self, *, wait: bool = True) -> bool:
        self.words.append("not accepting" if wait else "not accepting, again")
        return not self.deaf

    def left(self, counts: Mapping[str, int]) -> bool:
        self.words.append(counts)
        return not self.deaf

    def cut(self, counts: Mapping[str, int]) -> bool:
        self.words.append(("cut", counts))
        return True


def counts(websockets: int, event_streams: int = 0) -> dict[str, int]:
    return {"requests": 0, "websockets": websockets, "event_streams": event_streams, "idle": 0}


def test_remaining_work_is_reported_on_change_at_most_every_half_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, heard = Scene(), Heard()
    monkeypatch.setattr("atlas_worker.serving.time.monotonic", lambda: scene.now)
    reporter = serving._Reporter(scene.drain, scene.server, heard)
    streams = scene.server.running = [FakeStream(), FakeStream(), FakeStream(StreamKind.EVENTS)]
    reporter.report()
    assert heard.words == []  # nothing is reported before the drain

    scene.drain.stop()
    reporter.report()
    assert heard.words == [counts(2, 1)]
    streams.pop()
    scene.now += 0.4
    reporter.report()
    assert heard.words == [counts(2, 1)]
    scene.now += 0.2
    reporter.report()
    assert heard.words == [counts(2, 1), counts(2)]
    scene.now += 1
    reporter.report()
    assert heard.words == [counts(2, 1), counts(2)]

    heard.words.clear()
    heard.deaf = True
    streams.pop()
    for _ in range(2):
        scene.now += 1
        reporter.report()
    assert heard.words == [counts(1), counts(1)]  # an undelivered report is repeated
    reporter.report_end()
    assert heard.words[-1] == ("cut", counts(1))


def test_the_end_of_accepting_is_reported_at_once_and_until_a_supervisor_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, heard = Scene(), Heard()
    monkeypatch.setattr("atlas_worker.serving.time.monotonic", lambda: scene.now)
    reporter = serving._Reporter(scene.drain, scene.server, heard)
    scene.drain.stop()
    reporter.report()
    heard.words.clear()
    scene.drain.accepting, heard.deaf = False, True
    for _ in range(2):
        reporter.report()
    assert heard.words == ["not accepting"]
    scene.now += 1
    heard.deaf = False
    for _ in range(2):
        reporter.report()
    assert heard.words == ["not accepting", "not accepting, again"]


@pytest.mark.parametrize(
    ("took", "stopping", "pause"),
    [(0.0001, True, 0.02), (0.0001, False, 0.05), (0.005, True, 0.1), (3, False, 0.25)],
)
def test_ticks_over_many_connections_take_a_small_share_of_the_time(
    took: float, stopping: bool, pause: float
) -> None:
    drain = Scene().drain
    assert serving._pause(drain, took) is None
    drain.shedding, drain.stopping = True, stopping
    assert serving._pause(drain, took) == pytest.approx(pause)


def test_nothing_is_reported_as_cut_when_nothing_is_left() -> None:
    heard = Heard()
    serving._Reporter(Scene().drain, FakeServer(), heard).report_end()
    assert heard.words == []
