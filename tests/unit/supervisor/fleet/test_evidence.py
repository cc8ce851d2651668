"""What a host publishes of its canary's calls."""

from __future__ import annotations

import asyncio

import pytest

from atlas_supervisor.fleet.documents import EVIDENCE, Evidence
from atlas_supervisor.fleet.evidence import EvidencePublisher
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine, PlayedMachine

KEY = EVIDENCE + "web1"


def published(engine: PlayedEngine) -> tuple[int, int]:
    """Return calls and errors of the canary of `vision`."""
    found = Evidence.read(KEY, engine.entries[KEY].value).features["vision"].canary
    return found.calls, found.errors


async def test_nothing_is_published_before_there_is_a_call_or_while_none_was_added() -> None:
    engine, machine = PlayedEngine(), PlayedMachine()
    publisher = EvidencePublisher(engine, machine, "web1", lambda: 3)
    await publisher.publish()
    assert KEY not in engine.entries
    machine.counts = {"vision": (10, 1)}
    await publisher.publish()
    revision = engine.revision
    await publisher.publish()
    assert (published(engine), engine.revision) == ((10, 1), revision)
    machine.counts = {"vision": (12, 1)}
    await publisher.publish()
    assert published(engine) == (12, 1)


async def test_a_restart_repeats_no_call() -> None:
    engine, machine = PlayedEngine(), PlayedMachine(counts={"vision": (10, 1)})
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    machine.counts = {"vision": (13, 2)}
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    assert published(engine) == (13, 2)
    machine.counts = {"vision": (11, 2)}  # the machine went down before the rest was on its disk
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    assert published(engine) == (13, 2)


async def test_counts_never_fall_over_the_loss_of_a_hosts_database() -> None:
    engine, machine = PlayedEngine(), PlayedMachine(counts={"vision": (10, 1)})
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    machine.origin, machine.counts = "second", {"vision": (2, 0)}
    again = EvidencePublisher(engine, machine, "web1", lambda: 3)
    await again.publish()
    assert published(engine) == (12, 1)
    machine.counts = {"vision": (5, 1)}
    await again.publish()
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    assert published(engine) == (15, 2)
    machine.origin, machine.counts = "third", {}
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    assert published(engine) == (15, 2)


async def test_an_engine_that_lost_its_data_gets_all_counts_again() -> None:
    engine, machine = PlayedEngine(), PlayedMachine(counts={"vision": (10, 1)})
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    machine.origin, machine.counts = "second", {"vision": (2, 0)}
    publisher = EvidencePublisher(engine, machine, "web1", lambda: 3)
    await publisher.publish()
    engine.remove(KEY)
    machine.counts = {"vision": (3, 0)}
    await publisher.publish()  # notices it
    await publisher.publish()
    assert published(engine) == (13, 1)


async def test_evidence_that_can_not_be_read_is_written_anew_by_its_host() -> None:
    engine, machine = PlayedEngine(), PlayedMachine(counts={"vision": (10, 1)})
    engine.put("evidence/web1", b"no document")
    await EvidencePublisher(engine, machine, "web1", lambda: 3).publish()
    written = Evidence.read("evidence/web1", engine.entries["evidence/web1"].value)
    assert written.features["vision"].canary.calls == 10


async def test_calls_that_go_on_are_published_at_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = list[float]()
    engine, machine = PlayedEngine(), PlayedMachine()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        calls, errors = machine.counts.get("vision", (0, 0))
        machine.counts = {"vision": (calls + 1, errors)}
        await asyncio.sleep(0)

    monkeypatch.setattr("atlas_supervisor.fleet.evidence.anyio.sleep", sleep)
    task = asyncio.create_task(EvidencePublisher(engine, machine, "web1", lambda: 3).run())
    await eventually(lambda: len(pauses) > 10)
    task.cancel()
    assert min(pauses[1:]) >= 10.0
    assert engine.revision <= len(pauses)
