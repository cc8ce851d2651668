"""The last hour of requests by version: over writes, failed writes and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.requests import figures as module
from atlas_supervisor.requests.figures import RequestHistory
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.requests import RequestCommit
from atlas_worker.contract import latency_bucket

NOON = 1_800_000_000 // 3600 * 3600


class Clock:
    """The time that the history goes by."""

    now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "steady_time", clock)
    return clock


def served(count: int, *, failed: int = 0, ms: float = 10.0) -> RequestTotals:
    counts = RequestCounts(count, (0, count - failed, 0, 0, failed))
    return RequestTotals(counts, Histogram([(latency_bucket(ms), count)] if count else []))


async def write(history: RequestHistory, database: Database) -> None:
    """Write what is new, as the collector does."""
    rows = history.take()
    await database.requests.commit(RequestCommit(NOON, minutes=rows))
    history.written(rows)


async def seen(history: RequestHistory) -> list[tuple[int, str, int, int, float]]:
    found = await history.last_hour([])
    return [
        (int(each.ts.timestamp()) - NOON, each.version, each.requests, each.failed, each.seconds)
        for each in found.minutes
    ]


async def test_a_minute_grows_until_it_is_over_whichever_slot_serves(
    tmp_path: Path, clock: Clock
) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        history = RequestHistory(database.requests)
        clock.now += 10
        history.note("blue", "1.0", served(5, failed=1, ms=30))
        assert await seen(history) == [(0, "1.0", 5, 1, 10.0)]

        await write(history, database)  # early: a new instance is there
        clock.now += 20
        history.note("green", "1.0", served(2))
        history.note("green", "1.1", served(3))
        assert await seen(history) == [(0, "1.0", 7, 1, 30.0), (0, "1.1", 3, 0, 30.0)]

        clock.now += 30.5
        await write(history, database)
        history.note("green", "1.1", served(4))
        clock.now += 5
        assert await seen(history) == [
            (0, "1.0", 7, 1, 60.0),
            (0, "1.1", 3, 0, 60.0),
            (60, "1.1", 4, 0, 5.5),
        ]


async def test_the_next_daemon_goes_on_with_the_hour(tmp_path: Path, clock: Clock) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        history = RequestHistory(database.requests)
        for number in range(70):
            history.note("blue", "1.0", served(number + 1, ms=number + 1))
            clock.now += 60
            await write(history, database)
            if number in (2, 65):  # whether it is asked early or late
                known = await history.last_hour([])
        following = RequestHistory(database.requests)

        again, once_more = await following.last_hour([]), await following.last_hour([])

        assert [each.requests for each in again.minutes] == list(range(11, 71))
        assert again.minutes[-1].p95_ms == pytest.approx(70, rel=0.01)
        assert again == once_more == await history.last_hour([])
        assert known.minutes[-1] in again.minutes


async def test_counts_that_could_not_be_written_are_not_lost(tmp_path: Path, clock: Clock) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        history = RequestHistory(database.requests)
        history.note("blue", "1.0", served(5))
        clock.now += 60
        history.give_back(history.take())
        history.note("blue", "1.0", served(1))

        assert history.unwritten("1.0").counts.begun == 6
        await write(history, database)

        assert sum(each[2] for each in await seen(history)) == 6


async def test_an_hour_without_requests_is_empty(tmp_path: Path, clock: Clock) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        history = RequestHistory(database.requests)
        history.note("blue", "1.0", served(5))
        await write(history, database)
        clock.now += 3700

        found = await history.last_hour(["1.0"])

        assert (found.minutes, found.switches, found.uncounted) == ([], [], ["1.0"])


async def test_a_version_keeps_its_number_while_it_is_in_the_hour(
    tmp_path: Path, clock: Clock
) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        history = RequestHistory(database.requests)
        seen = []
        for names in (("1.0", "1.1"), ("1.1",), ("1.2", "1.3"), ("1.4",)):
            for name in names:
                history.note("blue", name, served(1))
            clock.now += 60
            await write(history, database)
            seen.append((await history.last_hour([])).versions)
            clock.now += 2400
            await write(history, database)

        assert seen == [
            {"1.0": 0, "1.1": 1},
            {"1.0": 0, "1.1": 1},
            {"1.1": 1, "1.2": 2, "1.3": 3},
            {"1.2": 2, "1.3": 3, "1.4": 0},
        ]
