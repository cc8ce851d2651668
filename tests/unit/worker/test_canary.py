"""The application's side: decisions, calls and records, and their events."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from atlas_worker import canary, is_canary_enabled, record_canary_call, use_canary_version
from atlas_worker.canary import calls, policy
from atlas_worker.canary.process import process
from atlas_worker.contract import SLOWEST_BUCKET, bucket_milliseconds, latency_bucket
from atlas_worker.contract.ring import EventKind, Outcome, RingEvent, decode
from tests.unit.worker.canary_support import Canaries, canaries, eventually, output

__all__ = ["canaries"]


def outcomes(events: list[RingEvent]) -> Counter[tuple[int, int]]:
    return Counter((event.kind, event.outcome) for event in events)


def until_next_slice() -> None:
    before = process.rules["vision"].canary
    eventually(lambda: process.rules["vision"].canary is not before)


# No supervisor.


@pytest.mark.parametrize("left", ["nothing", "no ring folder", "no state file"])
def test_without_a_supervisor_everything_is_stable_and_nothing_is_raised(
    canaries: Canaries, left: str
) -> None:
    if left != "no state file":
        (canaries.folder / "canary").rmdir()
    if left == "no ring folder":
        canaries.decide({"vision": 1})

    assert is_canary_enabled() is (left == "no ring folder")
    assert use_canary_version("vision", key="me") is (left == "no ring folder")
    record_canary_call("vision", True, True, 1.0)
    with canary.call("vision") as call:
        assert call.is_canary is (left == "no ring folder")
    assert canaries.rings == []


def test_events_dropped_before_there_is_a_ring_are_counted(canaries: Canaries) -> None:
    (canaries.folder / "canary").rmdir()
    canaries.decide({"vision": 1})
    for _ in range(3):
        with canary.call("vision"):
            pass
    (canaries.folder / "canary").mkdir(mode=0o700)

    eventually(lambda: canaries.rings)

    assert canaries.dropped() == 3
    with canary.call("vision"):
        pass
    eventually(lambda: process.main.capacity)
    with canary.call("vision"):
        pass
    assert canaries.kinds()[EventKind.ENDED] >= 1


# The first answer and later ones.


def test_the_first_answer_is_right_in_every_thread(tmp_path: Path) -> None:
    (tmp_path / "canary").mkdir()
    Canaries(tmp_path).decide({"vision": 1})
    code = """
import threading
answers = []
start = threading.Barrier(8)
def ask():
    start.wait()
    answers.append(use_canary_version("vision"))
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(answers.count(True))
"""
    assert output(tmp_path, code) == "8\n"
    assert Canaries(tmp_path).kinds() == {EventKind.ASKED: 8}


def test_small_shares_are_kept(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.005})

    drawn = sum(use_canary_version("vision") for _ in range(20_000))

    assert 100 - 6 * 10 < drawn < 100 + 6 * 10  # six standard deviations
    events = canaries.events()
    assert sum(event.is_canary for event in events) == drawn
    assert {event.epoch for event in events} == {17}


@pytest.mark.parametrize(
    "name", ["nosuch", "", None, 7, ["vision"], b"vision", "vision\0", "x" * 10_000]
)
def test_a_feature_that_is_not_listed_is_stable_and_not_recorded(
    canaries: Canaries, name: Any
) -> None:
    canaries.decide({"vision": 1})

    assert use_canary_version(name) is False
    assert use_canary_version(name, key="me") is False
    record_canary_call(name, True, True, 1.0)
    with canary.call(name) as call:
        assert not call.is_canary

    assert canaries.kinds() == {}


# Records.


def test_a_decision_and_its_record_are_one_call(canaries: Canaries) -> None:
    canaries.decide({"vision": 1, "web": 0})

    use_canary_version("vision")
    use_canary_version("web")
    record_canary_call("vision", True, False, 20.0)
    record_canary_call("web", False, True, 5.0)
    record_canary_call("web", False, True, 5.0)

    events = canaries.events()
    assert outcomes(events) == {
        (EventKind.ASKED, 0): 2,
        (EventKind.REPORTED, Outcome.OK): 1,
        (EventKind.REPORTED, Outcome.ERROR): 1,
        (EventKind.RECORDED, Outcome.OK): 1,  # a decision is reported once
    }
    failed = next(event for event in events if event.outcome == Outcome.ERROR)
    assert failed.is_canary
    assert failed.bucket == latency_bucket(20.0)


def test_a_record_of_the_other_arm_is_a_call_of_its_own(
    canaries: Canaries,
) -> None:
    canaries.decide({"vision": 1})

    use_canary_version("vision")
    record_canary_call("vision", False, True, 1.0)
    record_canary_call("vision", True, True, 1.0)

    reported = {(event.kind, event.is_canary) for event in canaries.events()}
    assert reported == {
        (EventKind.ASKED, True),
        (EventKind.RECORDED, False),
        (EventKind.REPORTED, True),
    }


def test_a_record_keeps_the_epoch_of_its_decision(canaries: Canaries) -> None:
    canaries.decide({"vision": 1}, epoch=1)
    use_canary_version("vision")
    canaries.decide({"vision": 0}, epoch=2)
    eventually(lambda: process.rules["vision"].share == 0)

    record_canary_call("vision", True, True, 1.0)
    use_canary_version("vision")
    canaries.decide({"vision": 1}, epoch=3)
    eventually(lambda: process.rules["vision"].share == 1)
    record_canary_call("vision", False, True, 1.0)

    reported = [event for event in canaries.events() if event.kind == EventKind.REPORTED]
    assert sorted((event.epoch, event.is_canary) for event in reported) == [(1, True), (2, False)]


async def test_each_task_reports_the_decision_it_was_started_with(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})

    async def work(used: bool) -> None:
        record_canary_call("vision", used, True, 1.0)

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(work(use_canary_version("vision"))))
        if len(tasks) % 7 == 0:
            await asyncio.sleep(0)  # some report before the next decision, some after it
    await asyncio.gather(*tasks)

    assert canaries.kinds() == {EventKind.ASKED: 200, EventKind.REPORTED: 200}


def test_decisions_of_several_slices_are_all_reported(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    for _ in range(3):
        use_canary_version("vision")
        use_canary_version("vision")
        until_next_slice()
        record_canary_call("vision", True, True, 1.0)
    for _ in range(4):
        record_canary_call("vision", True, True, 1.0)

    events = canaries.events()
    assert outcomes(events) == {
        (EventKind.ASKED, 0): 6,
        (EventKind.REPORTED, Outcome.OK): 6,
        (EventKind.RECORDED, Outcome.OK): 1,
    }
    slices = Counter(event.slice_number for event in events if event.kind == EventKind.ASKED)
    assert slices == Counter(
        event.slice_number for event in events if event.kind == EventKind.REPORTED
    )


@pytest.mark.parametrize("ring", [True, False])
def test_unreported_decisions_are_bounded(
    canaries: Canaries, ring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_UNREPORTED", 30)
    monkeypatch.setattr(policy, "MAX_UNREPORTED", 30)
    if not ring:
        (canaries.folder / "canary").rmdir()
    canaries.decide({"vision": 1})
    for _ in range(3):
        for _ in range(100):
            use_canary_version("vision")
        until_next_slice()

    remembered, unreported = 0, process.rules["vision"].canary.unreported(None)
    while unreported is not None:
        remembered += len(unreported)
        unreported = getattr(unreported, "older", None)
    assert 0 < remembered <= (130 if ring else 1)  # all of this slice, and some earlier ones


async def test_tasks_do_not_report_each_others_decisions(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})

    async def work() -> None:
        used = use_canary_version("vision")
        await asyncio.sleep(0)
        record_canary_call("vision", used, True, 1.0)

    await asyncio.gather(*(work() for _ in range(200)))

    assert canaries.kinds() == {EventKind.ASKED: 200, EventKind.REPORTED: 200}


async def test_a_decision_inherited_by_two_tasks_is_reported_once(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    use_canary_version("vision")

    await asyncio.gather(
        *(asyncio.to_thread(record_canary_call, "vision", True, True, 1.0) for _ in range(4))
    )

    assert canaries.kinds() == {EventKind.ASKED: 1, EventKind.REPORTED: 1, EventKind.RECORDED: 3}


class Odd:
    """Raises on every operation."""

    def __bool__(self) -> bool:
        raise RuntimeError("no")

    __gt__ = __ge__ = __float__ = __str__ = __bool__  # type: ignore[assignment]  # raises like the others


@pytest.mark.parametrize(
    ("ok", "latency"),
    [(True, None), (True, "12"), (True, []), (True, Odd()), (Odd(), 1.0), (True, 1j)],
)
def test_an_invalid_record_is_ignored(canaries: Canaries, ok: Any, latency: Any) -> None:
    canaries.decide({"vision": 1})

    record_canary_call("vision", True, ok, latency)
    record_canary_call("vision", Odd(), True, 1.0)  # type: ignore[arg-type]  # on purpose

    assert canaries.kinds() == {}


@pytest.mark.parametrize(
    ("latency", "bucket"),
    [(math.nan, 0), (-5.0, 0), (0, 0), (math.inf, SLOWEST_BUCKET), (1e300, SLOWEST_BUCKET),
     (60_001, SLOWEST_BUCKET), (10**400, SLOWEST_BUCKET),
     (Decimal("1.5"), latency_bucket(1.5)), (True, latency_bucket(1.0))],
)  # fmt: skip
def test_an_invalid_latency_is_tolerated(canaries: Canaries, latency: Any, bucket: int) -> None:
    canaries.decide({"vision": 1})

    record_canary_call("vision", True, True, latency)

    assert [(event.kind, event.bucket) for event in canaries.events()] == [
        (EventKind.RECORDED, bucket)
    ]


@pytest.mark.parametrize("key", ["", "ü", 7, b"k", Odd(), ("a", 1), "x" * 100_000])
def test_any_key_gets_a_decision(canaries: Canaries, key: Any) -> None:
    canaries.decide({"vision": 1})

    with canary.call("vision", key) as call:
        assert call.is_canary is not isinstance(key, Odd)  # unusable, so stable
    use_canary_version("vision", key=key)


def test_a_bucket_is_within_one_percent_of_a_latency() -> None:
    for exponent in range(-29, 106):
        latency = 1.11**exponent
        assert bucket_milliseconds(latency_bucket(latency)) == pytest.approx(latency, rel=0.0101)
    buckets = range(SLOWEST_BUCKET + 1)
    assert all(latency_bucket(bucket_milliseconds(one)) == one for one in buckets)
    assert bucket_milliseconds(SLOWEST_BUCKET) == pytest.approx(60_000, rel=0.0101)


# Calls.


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.OK),
        (ValueError, Outcome.ERROR),
        (TimeoutError, Outcome.ERROR),
        (SystemExit, Outcome.ERROR),
        (asyncio.CancelledError, Outcome.CANCELLED),
        (KeyboardInterrupt, Outcome.CANCELLED),
        (GeneratorExit, Outcome.CANCELLED),
    ],
)
async def test_a_call_reports_its_outcome_and_propagates_the_exception(
    canaries: Canaries, error: type[BaseException] | None, outcome: Outcome
) -> None:
    canaries.decide({"vision": 1})

    def plain() -> None:
        with canary.call("vision"):
            if error:
                raise error

    async def in_a_task() -> None:
        async with canary.call("vision", key="me") as call:
            assert call.is_canary
            if error:
                raise error

    if error is None:
        plain()
        await in_a_task()
    else:
        with pytest.raises(error):
            plain()
        with pytest.raises(error):
            await in_a_task()

    [(_, batch)] = canaries.drain()
    for words in (list(batch.events), [word for word, _, _ in batch.keyed]):
        assert outcomes([decode(word) for word in words]) == {
            (EventKind.STARTED, 0): 1,
            (EventKind.ENDED, outcome): 1,
        }
    assert len({unit[1:] for unit in batch.keyed}) == 1


def test_a_calls_latency_is_measured(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})

    with canary.call("vision"):
        threading.Event().wait(0.02)

    ended = next(event for event in canaries.events() if event.kind == EventKind.ENDED)
    assert 19 < bucket_milliseconds(ended.bucket) < 5000


def test_a_call_is_reusable_and_calls_can_be_nested(canaries: Canaries) -> None:
    canaries.decide({"vision": 1, "web": 0})
    call = canary.call("vision")

    for _ in range(2):
        with call, canary.call("web") as inner:
            assert (call.arm, inner.arm) == ("canary", "stable")

    assert canaries.kinds() == {EventKind.STARTED: 4, EventKind.ENDED: 4}


async def test_the_end_of_a_keyed_call_names_its_call(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    calls = [canary.call("vision", key="me") for _ in range(3)]
    for call in calls:
        call.__enter__()
    calls[1].__exit__(ValueError, None, None)
    calls[2].__exit__(None, None, None)
    calls[0].__exit__(None, None, None)
    use_canary_version("vision", key="me")
    record_canary_call("vision", True, False, 1.0)

    [(_, batch)] = canaries.drain()
    events = [(decode(word), key, serial) for word, key, serial in batch.keyed]

    assert len({key for _, key, _ in events}) == 1
    started = [serial for event, _, serial in events if event.kind == EventKind.STARTED]
    assert len(set(started)) == 3
    assert 0 not in started
    ended = [(one.outcome, serial) for one, _, serial in events if one.kind == EventKind.ENDED]
    assert ended == [
        (Outcome.ERROR, started[1]), (Outcome.OK, started[2]), (Outcome.OK, started[0]),
    ]  # fmt: skip
    asked, reported = events[-2:]
    assert (asked[0].kind, reported[0].kind) == (EventKind.ASKED, EventKind.REPORTED)
    assert asked[2] == reported[2]


# The package.


def test_importing_the_worker_loads_nothing_else(tmp_path: Path) -> None:
    code = """
import subprocess, sys
code = "import sys, __future__; a = {*sys.modules}; import atlas_worker; print(*{*sys.modules} - a)"
print(subprocess.check_output([sys.executable, "-S", "-c", code], text=True), end="")
"""
    assert output(tmp_path, code) == "atlas_worker\n"


def test_the_worker_has_no_other_names() -> None:
    import atlas_worker

    assert atlas_worker.canary is canary
    with pytest.raises(AttributeError, match="nosuch"):
        _ = atlas_worker.nosuch
