"""What a host asks of the engine while all is well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.fleet.documents import HOSTS, PRESENT
from atlas_supervisor.fleet.fleet import Fleet
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine, PlayedMachine
from tests.unit.supervisor.fleet.support import fleet_of

WHOLE = ("",)


@asynccontextmanager
async def running(engine: PlayedEngine, state_dir: Path) -> AsyncIterator[Fleet]:
    settings = Settings.model_construct(
        base_dir=state_dir, state_dir=state_dir, fleet_name="shop", fleet_host="web1"
    )
    fleet = Fleet(settings, engine, PlayedMachine(), None, kills=None)  # type: ignore[arg-type]
    task = asyncio.create_task(fleet.run())
    try:
        await eventually(lambda: PRESENT + "web1" in engine.entries)
        yield fleet
    finally:
        await fleet.stop()
        await task


@pytest.mark.parametrize(("hosts", "reads_all"), [(2000, False), (0, True)])
async def test_a_host_that_starts_counts_the_hosts_and_reads_all_of_them_only_if_they_are_few(
    tmp_path: Path, hosts: int, reads_all: bool
) -> None:
    engine = PlayedEngine()
    for key, document in fleet_of(*(f"host-{number}" for number in range(hosts))).items():
        engine.put(key, document.written())
    async with running(engine, tmp_path):
        await eventually(lambda: HOSTS in engine.counts)
        if reads_all:
            await eventually(lambda: WHOLE in engine.reads)
        assert (WHOLE in engine.reads) is reads_all


async def test_gauges_of_the_hosts_are_exposed_after_a_look_and_the_engines_always(
    tmp_path: Path,
) -> None:
    async with running(PlayedEngine(), tmp_path) as fleet:
        await fleet.view()
        assert "atlas_fleet_hosts" in {family.name for family in fleet.gauges()}
        fleet._shown_at = float("-inf")
        (family,) = fleet.gauges()
        assert family.name == "atlas_fleet_engine_connected"
