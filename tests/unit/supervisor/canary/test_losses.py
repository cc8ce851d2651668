"""What is lost, refused or not durable: bounded, counted where it survives, and reported."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import sqlite3
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.canary import call_collector
from atlas_supervisor.canary.call_collector import CallCollector
from atlas_supervisor.canary.ring_reader import RingReader
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.health import CheckStatus
from atlas_supervisor.store.statements import StoreError
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import EventKind
from tests.unit.supervisor.canary.support import OPERATOR, Canaries, Process, running

BIG = 2**63


def put(process: Process, offset: int, value: int) -> None:
    with process.path.open("rb+") as file:
        file.seek(offset)
        file.write(struct.pack("<Q", value))


def codes(canaries: Canaries) -> set[str]:
    return {each.code for each in canaries.service.suggestions()}


def counted(canaries: Canaries) -> int:
    return canaries.service.stats().canary.calls


def evidence_calls(canaries: Canaries) -> int:
    return canaries.service._evidence.step_calls(canaries.feature().epoch)


# A bad ring.


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (layout.DROPPED_OFFSET, BIG),
        (layout.KEYED_DROPPED_OFFSET, 2**64 - 1),
        (layout.TAIL_OFFSET, BIG),
        (layout.KEYED_TAIL_OFFSET, 2**62 + 1),
        (layout.RESERVED_OFFSET, BIG),
        (layout.KEYED_RESERVED_OFFSET, layout.KEYED_ENTRIES + 1),
        (layout.HEADER_BYTES, 6 << layout.KIND_SHIFT),
    ],
)
@pytest.mark.parametrize("seen", [True, False], ids=["read before", "new"])
async def test_a_broken_ring_is_set_aside_and_the_calls_of_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, value: int, seen: bool
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        bad, good = canaries.process(), canaries.process()
        if seen:
            await canaries.look()
        bad.calls(1)
        put(bad, offset, value)
        good.calls(3)
        await canaries.look()
        await canaries.look()

        assert counted(canaries) == 3
        assert not bad.path.exists()
        assert bad.path.with_name(bad.path.name + ".refused").exists()
        check = canaries.service.check()
        assert check.status is CheckStatus.WARN
        assert bad.path.name in check.message
        assert "canary_ring_refused" in codes(canaries)
        view = await canaries.service.set_percentage("vision", 0.4, OPERATOR)
        assert view.share == 0.4
    async with running(tmp_path, monkeypatch) as canaries:
        assert (canaries.feature().share, counted(canaries)) == (0.4, 3)


async def test_open_calls_of_a_ring_that_breaks_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.write(EventKind.STARTED, times=2)
        await canaries.look()
        put(process, layout.DROPPED_OFFSET, BIG)
        await canaries.look()
        arm = canaries.service.stats().canary
        assert (arm.calls, arm.errors) == (2, 2)


async def test_of_many_files_that_are_no_rings_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        for number in range(40):
            (tmp_path / "canary" / f"{number}.ring").write_bytes(b"no ring")
        canaries.process().calls(1)
        await canaries.look()

        assert counted(canaries) == 1
        assert len(list((tmp_path / "canary").glob("*.refused"))) == 8
        assert "(and 39 more)" in canaries.service.check().message


# Many rings.


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_rings_beyond_the_bound_wait_until_their_process_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_collector, "MAX_OPEN", 3)
    monkeypatch.setattr(call_collector, "MAX_PER_PROCESS", 100)
    async with running(tmp_path, monkeypatch) as canaries:
        before = descriptors()
        processes = [canaries.process() for _ in range(10)]
        for process in processes:
            process.calls(1)
        await canaries.look()
        assert counted(canaries) == 3
        assert descriptors() == before + 3
        assert "canary_rings_waiting" in codes(canaries)
        waiting = [
            each for each in processes if each.path.name not in canaries.service._collector._rings
        ]
        for process in waiting:
            process.die()
        await canaries.look()
        await canaries.look()
        assert counted(canaries) == 10
        assert descriptors() == before + 3


async def test_a_ring_is_not_refused_for_want_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(1)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(), limits[1]))
        held = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            canaries.service._collector.poll()
            with pytest.raises(OSError, match="Too many open files"):
                RingReader.open(process.path)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await canaries.look()
        assert counted(canaries) == 1
        assert "canary_ring_refused" not in codes(canaries)


async def test_of_one_process_only_its_newest_rings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        before = descriptors()
        for _ in range(20):  # as of a program that replaces itself by exec
            process = canaries.process()
            process.calls(1)
            await canaries.look()
        assert counted(canaries) == 20
        assert descriptors() <= before + call_collector.MAX_PER_PROCESS
        process.calls(1)
        await canaries.look()
        assert counted(canaries) == 21


async def test_a_backlog_is_read_in_parts_and_is_evidence_as_if_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_collector, "UNITS_PER_POLL", 10)
    read: list[int] = []
    poll = CallCollector.poll

    def counting(self: CallCollector) -> Any:
        found = poll(self)
        read.append(sum(sum(each.events.values()) for each in found[0]))
        return found

    monkeypatch.setattr(CallCollector, "poll", counting)
    async with running(tmp_path, monkeypatch) as canaries:
        for _ in range(4):
            process = canaries.process()
            process.calls(8)
            process.calls(8, canary=False)
        canaries.clock.pass_seconds(60)
        await canaries.look()
        assert read == [32, 32, 32, 32]
        assert canaries.service.view().late_calls == 0
        assert evidence_calls(canaries) == 32


def short_process(canaries: Canaries) -> Process:
    process = canaries.process()
    process.calls(5)
    process.die()
    return process


async def test_three_hundred_short_processes_between_two_polls_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        for _ in range(300):
            short_process(canaries)
        await canaries.look()
        await canaries.look()
        assert counted(canaries) == 1500
        assert list((tmp_path / "canary").glob("*.ring")) == []


SHORT = """
import os
from atlas_worker import canary
for _ in range(30):
    if os.fork() == 0:
        for number in range(5):
            with canary.call("vision", key=str(number) if number % 2 else None): pass
        os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: break
"""


async def test_short_processes_of_the_kit_lose_nothing_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch):
        pass
    environment = {"ATLAS_STATE_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    command = (sys.executable, "-c", SHORT)
    program = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment)
    assert await asyncio.wait_for(program.wait(), 30) == 0
    folder = tmp_path / "canary"
    assert len(list(folder.glob("*.ring"))) == 30

    collector, found, more = CallCollector(folder, ()), [], True
    while more:
        collected, more = collector.poll()
        found += collected
    collector.acknowledge(collector.positions(), ())
    collector.close()

    assert [each.exited for each in found] == [True] * 30
    assert sum(sum(each.events.values()) for each in found) == 30 * 2 * 3
    assert sum(len(each.keyed) for each in found) == 30 * 2 * 2
    assert [path.name for path in folder.iterdir()] == [layout.REFUSED_CALLS_FILE]


# Dropped calls.


async def test_calls_dropped_while_the_daemon_was_away_are_counted_and_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        full, gone = canaries.process(), canaries.process()
        put(full, layout.DROPPED_OFFSET, 3)
        put(gone, layout.KEYED_DROPPED_OFFSET, 4)
        await canaries.look()
        assert canaries.service.view().dropped_events == 7
    put(full, layout.DROPPED_OFFSET, 5)
    gone.path.unlink()
    refused = tmp_path / "canary" / layout.REFUSED_CALLS_FILE
    assert refused.stat().st_size == 8
    refused.write_bytes(struct.pack("<Q", 100))
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert canaries.service.view().dropped_events == 109
        assert "canary_events_dropped" in codes(canaries)
        assert "109 canary calls" in canaries.service.check().message
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert canaries.service.view().dropped_events == 109
        assert codes(canaries) == set()  # they are not new


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", BIG)])
async def test_an_invalid_count_of_refused_calls_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        (tmp_path / "canary" / layout.REFUSED_CALLS_FILE).write_bytes(content)
        canaries.process().calls(1)
        await canaries.look()
        assert (counted(canaries), canaries.service.view().dropped_events) == (1, 0)


async def test_a_fifo_in_place_of_the_count_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        path = tmp_path / "canary" / layout.REFUSED_CALLS_FILE
        path.unlink()
        os.mkfifo(path)
        await canaries.look()
        assert canaries.service.view().dropped_events == 0


# Changes that can't be made durable.

Request = Callable[[Canaries], Any]
REQUESTS: dict[str, Request] = {
    "percentage": lambda it: it.service.set_percentage("vision", 0.9, OPERATOR),
    "start": lambda it: it.service.ramp("vision", "start", OPERATOR),
    "promote": lambda it: it.service.ramp("vision", "promote", OPERATOR),
    "reset": lambda it: it.service.reset("vision", OPERATOR),
}


async def fails(*_: Any) -> None:
    raise StoreError("the database could not be written")


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_that_the_database_does_not_take_is_refused_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ramp: dict[str, Any] = {"canary_ramp": (0.1, 0.5, 1.0)}
    async with running(tmp_path, monkeypatch, **ramp) as canaries:
        await canaries.service.set_percentage("vision", 0.3, OPERATOR)
        process = canaries.process()
        process.calls(40)
        process.calls(40, canary=False)
        await canaries.look(after=5)
        before = (canaries.policy, canaries.feature(), await canaries.audited())
        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            with pytest.raises(RefusedError) as caught:
                await REQUESTS[name](canaries)
            assert (caught.value.status, caught.value.code) == (503, "not_durable")
            assert canaries.service.check().status is CheckStatus.WARN
        assert canaries.written.canary == before[0]
        await canaries.look()
        after = (canaries.policy, canaries.feature(), await canaries.audited())
        assert after == before
        assert evidence_calls(canaries) == 40
        assert canaries.service.check().status is CheckStatus.PASS
        await REQUESTS[name](canaries)  # and once the database is back, it is done
        done = (canaries.policy, canaries.feature())
        assert done[0] != before[0]
    async with running(tmp_path, monkeypatch, **ramp) as canaries:
        assert (canaries.policy, canaries.feature().stage) == (done[0], done[1].stage)


async def test_a_reset_of_the_fallback_that_the_database_does_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        canaries.process().calls(30, failed=30)
        await canaries.look()
        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            with pytest.raises(RefusedError):
                await canaries.service.reset(None, OPERATOR)
        assert canaries.written.canary_disabled_fallback
        assert canaries.service.view().canary_disabled_fallback
        await canaries.service.reset(None, OPERATOR)
        assert not canaries.written.canary_disabled_fallback


async def test_a_refused_change_that_can_not_be_undone_in_the_file_is_undone_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        before = canaries.policy
        write, written = canaries.state._file.write, 0

        def full_after_one(state: Any) -> None:
            nonlocal written
            written += 1
            if written > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(state)

        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            patch.setattr(canaries.state._file, "write", full_after_one)
            with pytest.raises(RefusedError):
                await canaries.service.set_percentage("vision", 0.9, OPERATOR)
        assert canaries.feature().share == 0.2
        await canaries.look()
        assert canaries.written.canary == before


# After a fallback.


async def test_after_a_fallback_status_report_and_suggestions_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp: dict[str, Any] = {"canary_ramp": (0.1, 0.25, 1.0), "canary_step_seconds": 60.0}
    async with running(tmp_path, monkeypatch, **ramp) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        await canaries.service.ramp("web", "rollback", OPERATOR)
        canaries.process().calls(43, failed=8)
        await canaries.look()

        reason = "18.6 % of 43 canary calls failed, more than 15.0 %; no stable calls"
        view = canaries.service.view()
        assert view.fallback is not None
        assert view.fallback.reason == reason
        [said] = [
            each.message
            for each in canaries.service.suggestions()
            if each.code == "canary_fallback"
        ]
        assert reason in said
        report = await canaries.service.report(1)
        for name in ("vision", "web"):
            shown = canaries.feature(name)
            [written] = [each for each in report.features if each.feature == name]
            assert shown.judgement.reason == written.reason == written.judgement.reason
            assert shown.judgement.reason.endswith(reason)
            assert (shown.judgement.kind, shown.judgement.needs) == ("fallback", None)
            assert shown.judgement.verdict == written.verdict == "inconclusive"
        assert canaries.feature("vision").waits_for == "an operator's reset of the fallback"
        assert canaries.feature("web").waits_for is None

        await canaries.service.reset(None, OPERATOR)
        assert canaries.feature().judgement.kind != "fallback"
        assert "then the share is 25.0 %" in str(canaries.feature().waits_for)


async def test_an_infinite_latency_counts_as_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(9)
        process.calls(1, ms=float("inf"))
        await canaries.look()
        average = canaries.service.stats().canary.latency_ms.avg
        assert average == pytest.approx((9 * 10 + 60_000) / 10, rel=0.02)


# Other versions of the kit and of the daemon.


async def test_workers_are_told_the_layout_after_an_upgrade_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        file = canaries.state._file.path
    earlier = json.loads(file.read_text())
    del earlier["canary"]["ring_layout"]
    file.write_text(json.dumps(earlier))
    async with running(tmp_path, monkeypatch) as canaries:
        assert json.loads(file.read_text())["canary"]["ring_layout"] == layout.LAYOUT_VERSION
        epochs = {name: each.epoch for name, each in canaries.policy.features.items()}
        assert epochs == {
            name: each["epoch"] for name, each in earlier["canary"]["features"].items()
        }


async def test_keys_saved_by_an_earlier_daemon_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        ramp = canaries.policy.features["vision"].ramp
        await canaries.look()
    with closing(sqlite3.connect(tmp_path / "atlas.db")) as database, database:
        database.execute(
            "INSERT INTO canary_keys (ramp, key) VALUES (?, ?)", (ramp, 7 << 16 | 0x1234)
        )
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        for key in (7, 8):
            process.write(EventKind.STARTED, key=key)
            process.write(EventKind.ENDED, key=key)
        await canaries.look(after=5)
        await canaries.look(after=5)
        assert evidence_calls(canaries) == 1


async def test_a_key_is_the_same_in_rings_of_both_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        old = Process(tmp_path / "canary", canaries.clock, lambda: canaries.policy, version=1)
        new = canaries.process()
        for process, serial in ((old, 0x1234), (new, 0x8000)):
            process.write(EventKind.STARTED, key=7, serial=serial)
            process.write(EventKind.ENDED, key=7, serial=serial)
        await canaries.look(after=5)
        await canaries.look(after=5)
        assert counted(canaries) == 2
        # The earlier layout does not name the call that ends, so its calls are not evidence.
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 1
