"""How a host follows the fleet's kill switch, with an engine in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from atlas_supervisor.fleet import kill_switch
from atlas_supervisor.fleet.documents import KILL, PRESENT, KillSwitch
from atlas_supervisor.fleet.engine import EngineError, Snapshot
from atlas_supervisor.fleet.kill_switch import RECORD_FILE, KillFollower, read_record
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine, PlayedMachine
from tests.unit.supervisor.fleet.support import kill, present_host


class Host:
    """A host that follows the kill switch."""

    def __init__(
        self, folder: Path, engine: PlayedEngine, applied: KillSwitch | None = None
    ) -> None:
        self.engine = engine
        self.machine = PlayedMachine()
        self.acknowledged: list[int] = []
        self.folder = folder
        self.follower = KillFollower(
            engine,
            self.machine,
            "default",
            state_dir=folder,
            applied=applied,
            acknowledge=self.acknowledge,
        )

    def acknowledge(self) -> None:
        """Note what is on the disk and in force at the moment of the acknowledgement."""
        record, applied = read_record(self.folder), self.follower.applied
        assert record is not None
        assert record.switch == applied == self.machine.kills[-1]
        self.acknowledged.append(record.switch.epoch)


@asynccontextmanager
async def following(host: Host) -> AsyncIterator[Host]:
    task = asyncio.create_task(host.follower.run())
    try:
        yield host
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_switch, "READ_SECONDS", 0.02)


async def test_a_kill_is_on_the_disk_and_in_force_before_it_is_acknowledged(tmp_path: Path) -> None:
    engine = PlayedEngine()
    async with following(Host(tmp_path, engine)) as host:
        engine.put(KILL, kill(4, "vision", "unknown_here").written())
        await eventually(lambda: host.acknowledged == [4])
        record = read_record(tmp_path)
    assert record is not None
    assert (record.fleet, record.switch.features) == ("default", ("vision", "unknown_here"))


async def test_a_kill_is_learned_by_the_watch_before_the_next_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_switch, "READ_SECONDS", 3600)
    engine = PlayedEngine()
    async with following(Host(tmp_path, engine)) as host:
        engine.put(KILL, kill(1, "vision").written())
        await eventually(lambda: host.acknowledged == [1])
        engine.put(KILL, kill(2, "web").written())
        await eventually(lambda: host.acknowledged == [1, 2])


async def test_a_kill_is_learned_while_the_watch_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PlayedEngine()
    monkeypatch.setattr(engine, "_changed", asyncio.Event())  # that `put` sets no more
    async with following(Host(tmp_path, engine)) as host:
        await asyncio.sleep(0)
        engine._changed = asyncio.Event()
        engine.put(KILL, kill(1, "vision").written())
        await eventually(lambda: host.acknowledged == [1])


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "etcd has epoch none, this host 7: etcd lost data"),
        (kill(6), "etcd has epoch 6, this host 7: etcd lost data"),
        (kill(7), "etcd has another kill switch of epoch 7: etcd lost data"),
    ],
    ids=["absent", "lower", "another"],
)
async def test_an_engine_that_lost_data_enables_nothing_and_that_is_logged_once(
    tmp_path: Path, found: KillSwitch | None, why: str
) -> None:
    engine = PlayedEngine()
    if found is not None:
        engine.put(KILL, found.written())
    with capture_logs() as logs:
        async with following(Host(tmp_path, engine, kill(7, "vision"))) as host:
            await eventually(lambda: engine.asked > 10)
            assert host.follower.applied == kill(7, "vision")
    assert host.machine.kills == []
    (line,) = [each for each in logs if each["event"] == "fleet_kill_not_applied"]
    assert line["why"] == why


async def test_an_answer_that_a_watch_has_overtaken_is_not_taken_for_lost_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PlayedEngine()
    engine.put(KILL, kill(1, "vision").written())
    answer = engine.read

    async def overtaken(*prefixes: str) -> Snapshot:
        snapshot = await answer(*prefixes)
        if engine.asked == 10:
            engine.put(KILL, kill(2, "web").written())
            await eventually(lambda: 2 in host.acknowledged)
        return snapshot

    monkeypatch.setattr(engine, "read", overtaken)
    with capture_logs() as logs:
        async with following(Host(tmp_path, engine)) as host:
            await eventually(lambda: engine.asked > 20)
    assert host.acknowledged == [1, 2]
    assert [each for each in logs if each["event"] == "fleet_kill_not_applied"] == []


async def test_a_document_that_can_not_be_read_changes_nothing_and_is_logged_once(
    tmp_path: Path,
) -> None:
    engine = PlayedEngine()
    engine.put(KILL, b'{"epoch": "many"}')
    with capture_logs() as logs:
        async with following(Host(tmp_path, engine, kill(1, "vision"))) as host:
            await eventually(lambda: engine.asked > 10)
            engine.put(KILL, kill(2, "web").written())
            await eventually(lambda: host.acknowledged == [2])
    (line,) = [each for each in logs if each["event"] == "fleet_kill_not_applied"]
    assert line["why"].startswith("kill can't be read: epoch")


async def test_a_full_disk_delays_a_kill_and_its_acknowledgement(tmp_path: Path) -> None:
    engine = PlayedEngine()
    host = Host(tmp_path, engine)
    host.machine.full_disk = True
    async with following(host):
        engine.put(KILL, kill(1, "vision").written())
        await eventually(lambda: engine.asked > 10)
        assert host.acknowledged == []
        host.machine.full_disk = False
        await eventually(lambda: host.acknowledged == [1])


async def test_a_host_that_was_down_learns_of_a_kill_at_its_start_or_after_a_moment_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PlayedEngine()
    engine.put(KILL, kill(1, "vision").written())
    host = Host(tmp_path, engine)
    await host.follower.catch_up(within=1)
    assert host.acknowledged == [1]
    engine.is_away = True
    await host.follower.catch_up(within=1)

    async def hangs(*_prefixes: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(engine, "read", hangs)
    await host.follower.catch_up(within=0.01)
    assert host.acknowledged == [1]


async def test_an_engine_that_is_away_is_asked_at_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, pauses = PlayedEngine(), list[float]()
    engine.is_away = True

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr("atlas_supervisor.fleet.kill_switch.anyio.sleep", sleep)
    monkeypatch.setattr(kill_switch, "READ_SECONDS", 1.0)
    async with following(Host(tmp_path, engine)):
        await eventually(lambda: len(pauses) > 20)
    assert 0.75 <= pauses[0] <= 1.25
    assert all(3.75 <= each <= 6.25 for each in pauses[3:])


async def test_each_kill_adds_to_those_before_and_a_reset_ends_all(tmp_path: Path) -> None:
    host = Host(tmp_path, PlayedEngine())
    first = await host.follower.kill("vision", by="uid:0 on web1")
    second = await host.follower.kill("web", by="uid:0 on web1")
    every = await host.follower.kill(None, by="uid:0 on web1")
    reset = await host.follower.reset(by="uid:0 on web1")
    found = [(each.epoch, each.features, each.every_feature) for each in (first, second, every)]
    assert found == [
        (1, ("vision",), False),
        (2, ("vision", "web"), False),
        (3, ("vision", "web"), True),
    ]
    assert (reset.epoch, reset.features, reset.every_feature) == (4, (), False)
    assert host.machine.kills == [first, second, every, reset]


async def test_a_kill_after_a_loss_of_data_has_a_higher_epoch_than_any_host_knows(
    tmp_path: Path,
) -> None:
    engine = PlayedEngine()
    engine.put(PRESENT + "web2", present_host(kill_epoch=9).written())
    engine.put(PRESENT + "web3", b"garbage")
    host = Host(tmp_path, engine, kill(7, "vision"))
    switch = await host.follower.kill("web", by="uid:0 on web1")
    assert (switch.epoch, switch.features) == (10, ("vision", "web"))


async def test_a_kill_is_written_over_a_document_that_can_not_be_read(tmp_path: Path) -> None:
    host = Host(tmp_path, PlayedEngine(), applied=kill(4, "search"))
    host.engine.put(KILL, b"no document")
    host.engine.put(f"{PRESENT}b", present_host(kill_epoch=6).written())
    switch = await host.follower.kill("vision", by="uid:0")
    assert (switch.epoch, switch.features) == (7, ("search", "vision"))
    assert KillSwitch.read(KILL, host.engine.entries[KILL].value) == switch


async def test_a_kill_without_the_engine_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, PlayedEngine())
    host.engine.is_away = True
    with pytest.raises(EngineError):
        await host.follower.kill("vision", by="uid:0 on web1")
    assert host.machine.kills == []
    assert not (tmp_path / RECORD_FILE).exists()


async def test_a_damaged_record_is_logged_and_is_no_record(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("{")
    with capture_logs() as logs:
        assert read_record(tmp_path) is None
    assert [each["event"] for each in logs] == ["fleet_record_unreadable"]
