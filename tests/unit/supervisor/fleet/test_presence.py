"""How a host joins, announces itself, and notices another one with its name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from atlas_supervisor.errors import RefusedError
from atlas_supervisor.fleet.documents import HOSTS, PRESENT, Presence
from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.presence import Membership, forget, installation_of
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine
from tests.unit.supervisor.fleet.support import fleet_of, present_host, slots_of


def host(engine: PlayedEngine, installation: str = "a", name: str = "web1") -> Membership:
    return Membership(engine, name, installation, lambda: present_host(installation=installation))


def announced(engine: PlayedEngine, name: str = "web1") -> Presence:
    return Presence.read(PRESENT + name, engine.entries[PRESENT + name].value)


def filled(documents: dict[str, object]) -> PlayedEngine:
    engine = PlayedEngine()
    for key, document in documents.items():
        engine.put(key, document.written())  # type: ignore[attr-defined]
    return engine


async def test_a_host_joins_once_and_again_after_it_was_forgotten() -> None:
    engine = PlayedEngine()
    membership = host(engine)
    await membership.announce()
    joined = engine.entries[HOSTS + "web1"]
    engine.remove(PRESENT + "web1")  # its lease has ended
    await membership.announce()
    assert engine.entries[HOSTS + "web1"] == joined
    engine.remove(PRESENT + "web1")
    engine.remove(HOSTS + "web1")
    await membership.announce()
    assert HOSTS + "web1" in engine.entries
    assert membership.alone.is_set()


async def test_the_second_host_with_a_name_takes_no_part_until_the_first_has_gone() -> None:
    engine = PlayedEngine()
    first, second = host(engine, "a"), host(engine, "b")
    await first.announce()
    for _ in range(3):
        await second.announce()
        await first.announce()
    assert announced(engine).installation == "a"
    assert (first.alone.is_set(), second.alone.is_set()) == (True, False)
    assert second.other is not None
    assert second.doubled.is_set()
    engine.remove(PRESENT + "web1")  # its lease has ended
    await second.announce()
    assert announced(engine).installation == "b"
    assert (second.alone.is_set(), second.doubled.is_set()) == (True, False)


async def test_of_two_hosts_that_begin_at_once_one_goes_on() -> None:
    engine = PlayedEngine()
    both = [host(engine, "a"), host(engine, "b")]
    await asyncio.gather(*(each.announce() for each in both))
    assert sorted(each.alone.is_set() for each in both) == [False, True]


async def test_an_announcement_is_kept_and_written_again_only_when_it_has_changed() -> None:
    engine, epochs = PlayedEngine(), [1]
    membership = Membership(
        engine, "web1", "a", lambda: present_host(installation="a", kill_epoch=epochs[-1])
    )
    await membership.announce()
    before, asked = engine.revision, engine.asked
    for _ in range(3):
        await membership.announce()
    assert (engine.revision, engine.asked) == (before, asked + 3)
    epochs.append(2)
    await membership.announce()
    assert announced(engine).kill_epoch == 2
    assert engine.asked == asked + 4


@pytest.mark.parametrize(("hosts", "writes"), [(20, 3), (21, 2)])
async def test_in_a_large_fleet_another_reason_to_wait_is_no_change_to_be_written(
    hosts: int, writes: int
) -> None:
    engine, reasons = PlayedEngine(), [""]
    membership = Membership(
        engine, "web1", "a", lambda: present_host(installation="a", waits_for=reasons[-1])
    )
    membership.fleet_size = hosts
    await membership.announce()
    first = engine.revision
    for reason in ("waits: a has a slot", "waits: b has a slot", ""):
        reasons.append(reason)
        await membership.announce()
    assert engine.revision - first == writes


async def test_an_announcement_that_another_program_wrote_over_is_looked_at_first() -> None:
    engine = PlayedEngine()
    first, second = host(engine, "a"), host(engine, "b")
    await first.announce()
    engine.remove(PRESENT + "web1")
    await second.announce()
    first._presence = lambda: present_host(installation="a", kill_epoch=1)
    await first.announce()
    assert announced(engine).installation == "b"
    assert first.doubled.is_set()


async def test_while_the_engine_is_away_nothing_is_taken_for_announced() -> None:
    engine = PlayedEngine()
    membership = host(engine)
    await membership.announce()
    engine.is_away = True
    with pytest.raises(EngineError):
        await membership.announce()
    engine.is_away = False
    engine.remove(PRESENT + "web1")
    await membership.announce()
    assert announced(engine).installation == "a"


async def test_a_change_is_announced_at_once() -> None:
    engine, epochs = PlayedEngine(), [1]
    membership = Membership(
        engine, "web1", "a", lambda: present_host(installation="a", kill_epoch=epochs[-1])
    )
    task = asyncio.create_task(membership.run())
    try:
        await eventually(lambda: PRESENT + "web1" in engine.entries)
        epochs.append(2)
        membership.wake()
        await eventually(
            lambda: announced(engine).kill_epoch == 2,
            within=2,
            what="an announcement before the next heartbeat",
        )
    finally:
        task.cancel()


def test_two_state_folders_are_two_installations(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert installation_of(tmp_path / "a") == installation_of(tmp_path / "a")
    assert installation_of(tmp_path / "a") != installation_of(tmp_path / "b")


async def test_a_host_that_is_gone_is_forgotten() -> None:
    engine = filled({**fleet_of("web1", "web2", away=("web2",))})
    engine.put("evidence/web2", b"{}")
    await forget(engine, "web2")
    assert sorted(engine.entries) == [HOSTS + "web1", PRESENT + "web1"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("web9", "unknown_host"), ("web1", "host_is_present"), ("web2", "host_holds_a_slot")],
)
async def test_only_a_known_host_without_signs_of_life_and_slot_is_forgotten(
    name: str, code: str
) -> None:
    engine = filled({**fleet_of("web1", "web2", away=("web2",)), **slots_of(web2=4)})
    before = dict(engine.entries)
    with pytest.raises(RefusedError) as refused:
        await forget(engine, name)
    assert refused.value.code == code
    assert engine.entries == before
