"""Each job runs once: two instances at once, dead instances, lost leases."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atlas_worker.app.jobs import MAX_ATTEMPTS, JobStore
from atlas_worker.app.memory import Memory
from atlas_worker.app.scheduler import Scheduler
from tests.unit.worker.support import end, until

# A scheduler in its own process, which starts at a line on its standard input.
RUNNER = """
import asyncio, sys
from pathlib import Path
from atlas_worker.app.jobs import JobStore
from atlas_worker.app.memory import Memory
from atlas_worker.app.scheduler import Scheduler

async def main(directory, instance, lease):
    memory = Memory(directory)
    await memory.open()
    store = JobStore(directory, instance=instance, lease_seconds=lease)
    await store.open()
    scheduler = Scheduler(store, memory, may_claim=lambda: True, lease_seconds=lease)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    scheduler.start()
    await asyncio.to_thread(sys.stdin.readline)
    await scheduler.stop()
    await store.close()
    await memory.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
"""


@contextlib.asynccontextmanager
async def opened_store(
    directory: Path, name: str = "a", lease: float = 10
) -> AsyncIterator[JobStore]:
    store = JobStore(directory, instance=name, lease_seconds=lease)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def running_process(
    directory: Path, name: str, *, lease: float = 10
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUNNER, str(directory), name, str(lease),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        yield process
    finally:
        await end(process)


async def tell(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    await process.stdin.drain()


async def all_ended(store: JobStore, count: int) -> list[dict[str, Any]]:
    async def ended() -> Any:
        jobs = await store.newest(count)
        return len(jobs) == count and all(job["ended_at"] for job in jobs) and jobs

    jobs: list[dict[str, Any]] = await until(ended, seconds=40)
    return jobs


async def state_of(store: JobStore, job_id: str) -> str:
    return str((await store.get(job_id) or {})["state"])


async def test_two_instances_never_run_the_same_job(tmp_path: Path) -> None:
    count, jobs = 0, list[dict[str, Any]]()
    async with (
        opened_store(tmp_path) as store,
        running_process(tmp_path, "blue") as blue,
        running_process(tmp_path, "green") as green,
    ):
        for process in (blue, green):
            await tell(process)
        # On a busy machine one of them may be first for a long time: more jobs until both ran some.
        while {job["instance"] for job in jobs} != {"blue", "green"}:
            for number in range(count, count + 100):
                await store.add("remember", {"text": f"note {number}"}, run_at=None)
            count += 100
            jobs = await all_ended(store, count)
        for process in (blue, green):
            await tell(process)
            assert await asyncio.wait_for(process.wait(), 20) == 0
    assert {job["state"] for job in jobs} == {"done"}
    assert {job["attempts"] for job in jobs} == {1}
    with contextlib.closing(sqlite3.connect(tmp_path / "memory.db")) as db:
        texts = [text for (text,) in db.execute("SELECT text FROM notes")]
    assert sorted(texts) == sorted(f"note {number}" for number in range(count))


async def test_a_killed_instances_job_is_taken_over_after_its_lease(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store, running_process(tmp_path, "blue", lease=1) as blue:
        job = await store.add("wait", {"seconds": 20}, run_at=None)
        await tell(blue)

        async def runs() -> bool:
            return await state_of(store, job["id"]) == "running"

        await until(runs)
        assert await store.claim() is None  # the lease holds
        blue.send_signal(signal.SIGKILL)
        claim = await until(store.claim)
        assert (claim.id, claim.attempt, claim.instance) == (job["id"], 2, "a")


async def test_a_lease_is_renewed_while_the_job_runs(tmp_path: Path) -> None:
    # Renewed three times in a lease, which bears a machine that is busy with other tests.
    async with opened_store(tmp_path, "a", 1.0) as store, opened_store(tmp_path, "b", 1.0) as other:
        scheduler = Scheduler(store, None, may_claim=lambda: True, lease_seconds=1.0)
        job = await store.add("wait", {"seconds": 2.0}, run_at=None)
        scheduler.start()
        await until(scheduler.running)
        ended = False
        while not ended:
            assert await other.claim() is None
            await asyncio.sleep(0.02)  # or the holder would hardly get at the database
            ended = await state_of(other, job["id"]) == "done"
        await scheduler.stop()
        assert (await store.get(job["id"]) or {})["attempts"] == 1


@pytest.mark.parametrize("taker", ["another", "a"])
async def test_a_holder_without_its_lease_changes_nothing(tmp_path: Path, taker: str) -> None:
    async with opened_store(tmp_path, "a", 0) as store, opened_store(tmp_path, taker) as other:
        job = await store.add("reindex", {}, run_at=None)
        first = await store.claim()
        second = await other.claim()
        assert first is not None
        assert second is not None
        assert not await store.renew(first)
        assert not await store.release(first)
        assert not await store.finish(first, result="too late")
        assert await other.finish(second, result="in time")
        assert (await store.get(job["id"]) or {})["result"] == "in time"


async def test_a_lease_from_before_a_reboot_has_expired(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await store.add("reindex", {}, run_at=None)
        assert await store.claim() is not None
        assert await store.claim() is None
        with contextlib.closing(sqlite3.connect(tmp_path / "scheduler.db")) as db, db:
            db.execute("UPDATE jobs SET lease_boot = 'another boot'")
        assert await store.claim() is not None


async def test_a_job_that_kills_its_instances_fails_at_last(tmp_path: Path) -> None:
    async with opened_store(tmp_path, lease=0) as store:
        job = await store.add("reindex", {}, run_at=None)
        for _ in range(MAX_ATTEMPTS):
            assert await store.claim() is not None
        assert await store.claim() is None
        found = await store.get(job["id"]) or {}
        assert (found["state"], found["attempts"]) == ("failed", MAX_ATTEMPTS)
        assert str(MAX_ATTEMPTS) in found["error"]


async def test_a_note_of_a_job_that_runs_again_is_kept_once(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    await memory.open()
    first = await memory.remember("once", source="job:1")
    assert await memory.remember("once", source="job:1") == first
    assert len(await memory.find("once", 10)) == 1
    await memory.close()


async def test_jobs_unfinished_at_the_deadline_are_released(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        scheduler = Scheduler(store, None, may_claim=lambda: True)
        job = await store.add("wait", {"seconds": 30}, run_at=None)
        scheduler.start()
        await until(scheduler.running)
        await scheduler.stop(timeout_seconds=0)
        found = await store.get(job["id"]) or {}
        assert (found["state"], found["instance"]) == ("queued", None)


async def test_an_instance_that_may_not_claim_leaves_jobs_alone(tmp_path: Path) -> None:
    asked = asyncio.Event()

    def never() -> bool:
        asked.set()
        return False

    async with opened_store(tmp_path) as store:
        job = await store.add("reindex", {}, run_at=None)
        scheduler = Scheduler(store, None, may_claim=never)
        scheduler.start()
        await asyncio.wait_for(asked.wait(), 10)
        await scheduler.stop()
        assert await state_of(store, job["id"]) == "queued"


@pytest.mark.parametrize("kind", ["from the future", "remember"])
async def test_a_job_that_fails_is_recorded_as_failed(tmp_path: Path, kind: str) -> None:
    async with opened_store(tmp_path) as store:
        scheduler = Scheduler(store, None, may_claim=lambda: True)
        job = await store.add(kind, {"text": "no memory here"}, run_at=None)
        scheduler.start()
        (ended,) = await all_ended(store, 1)
        await scheduler.stop()
        assert (ended["id"], ended["state"]) == (job["id"], "failed")
        assert ended["error"]


async def test_the_scheduler_survives_a_failing_database(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        scheduler = Scheduler(store, None, may_claim=lambda: True)
        with contextlib.closing(sqlite3.connect(tmp_path / "scheduler.db")) as db, db:
            db.execute("ALTER TABLE jobs RENAME TO away")
        scheduler.start()
        await asyncio.sleep(0)
        scheduler.wake()
        with contextlib.closing(sqlite3.connect(tmp_path / "scheduler.db")) as db, db:
            db.execute("ALTER TABLE away RENAME TO jobs")
        await store.add("wait", {"seconds": 0}, run_at=None)
        scheduler.wake()
        (ended,) = await all_ended(store, 1)
        assert ended["state"] == "done"
        await scheduler.stop()
        assert scheduler.silence() == float("inf")


async def test_old_jobs_are_forgotten_and_others_kept(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        for _ in range(3):
            await store.add("reindex", {}, run_at=None)
        old = await store.claim()
        new = await store.claim()
        assert old is not None
        assert new is not None
        await store.finish(old)
        await store.finish(new)
        with contextlib.closing(sqlite3.connect(tmp_path / "scheduler.db")) as db, db:
            db.execute("UPDATE jobs SET ended_at = 1 WHERE id = ?", (old.id,))
        assert await store.forget_old() == 1
        assert await store.get(old.id) is None
        assert len(await store.newest(10)) == 2
