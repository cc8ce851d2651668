"""FleetLock against a real etcd: a reboot takes a slot of the same budget as deploys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from atlas_supervisor.fleet import semaphore as slots
from atlas_supervisor.fleet.documents import HOSTS, PRESENT, SEMAPHORE, Purpose, Semaphore
from atlas_supervisor.fleet.engine import Put
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.fleetlock import FleetLock
from atlas_supervisor.fleet.listening import bind
from atlas_supervisor.fleet.reboots import Reboots
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.system.clock import now
from tests import etcd
from tests.harness import eventually, free_ports

pytestmark = [
    pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING),
    pytest.mark.asyncio,
]
TRUE = {"fleet-lock-protocol": "true"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    with etcd.cluster(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@dataclass
class Host:
    """A host's FleetLock server, and the answers that it needs from its own supervisor."""

    engine: EtcdEngine
    reboots: Reboots
    url: str
    drains: int = 0
    deploys: bool = False
    audited: list[tuple[str, ...]] = field(default_factory=list)

    async def ask(self, operation: str, client_id: str = "machine-a", **more: Any) -> str:
        """Return status and, of an error, its kind."""
        body = {"client_params": {"id": client_id, "group": "default"}}
        answer = await self.post(operation, **{"json": body, "headers": TRUE, **more})
        assert answer[0] == 200 or answer[1]["value"], answer
        return " ".join([str(answer[0]), *([answer[1]["kind"]] if answer[1] else [])])

    async def post(self, path: str, *, method: str = "POST", **more: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
            session.request(method, f"{self.url}/{path}", **more) as answer,
        ):
            return answer.status, await answer.json()

    async def semaphore(self) -> Semaphore:
        value = (await self.engine.read(SEMAPHORE)).value(SEMAPHORE)
        return Semaphore() if value is None else Semaphore.read(SEMAPHORE, value)


@asynccontextmanager
async def host(name: str, endpoints: list[str], prefix: str) -> AsyncIterator[Host]:
    """A host that is a present member of a fleet."""
    [port] = free_ports(1)
    async with EtcdEngine(endpoints, prefix) as engine:
        made: Host

        async def drained() -> None:
            assert made.reboots.held, "a host drains once it has the slot"
            made.drains += 1

        def audit(_actor: Actor, action: str, outcome: str, **detail: Any) -> None:
            made.audited.append((action, outcome, detail["subject"], detail["client_id"]))

        reboots = Reboots(engine, name, deploys=lambda: made.deploys, drained=drained, audit=audit)
        made = Host(engine, reboots, f"http://127.0.0.1:{port}")
        listener = bind("FLEETLOCK_PORT", "127.0.0.1", port)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(FleetLock(listener, reboots).run()),
                tasks.create_task(reboots.run()),
            ]
            yield made
            for task in running:
                task.cancel()
        listener.close()


@asynccontextmanager
async def two_hosts(cluster: etcd.Cluster) -> AsyncIterator[tuple[Host, Host]]:
    prefix = f"/atlas/{uuid4().hex}/"
    async with (
        host("a", cluster.endpoints, prefix) as a,
        host("b", cluster.endpoints, prefix) as b,
    ):
        for name in "ab":
            await a.engine.commit([], Put(HOSTS + name, b"{}"))
            await a.engine.claim(PRESENT + name, b"{}", revision=0, ttl_seconds=15)
        yield a, b


async def test_a_reboot_takes_the_slot_until_its_client_is_steady_again(
    cluster: etcd.Cluster,
) -> None:
    async with two_hosts(cluster) as (a, b):
        assert await a.ask("v1/pre-reboot") == "200"
        assert await a.ask("v1/pre-reboot") == "200"
        assert a.reboots.held
        assert a.drains == 2
        held = await a.semaphore()
        assert list(held.holders) == ["a"]
        assert (held.holders["a"].purpose, held.holders["a"].client_id) == ("reboot", "machine-a")
        assert await b.ask("v1/pre-reboot", "machine-b") == "409 slots_held"
        assert not b.reboots.held

        assert await a.ask("v1/steady-state", "another") == "200"
        assert await a.ask("v1/pre-reboot", "another") == "409 other_client"
        assert await a.semaphore() == held

        assert await a.ask("v1/steady-state") == "200"
        assert await a.ask("v1/steady-state") == "200"
        assert not a.reboots.held
        assert a.audited == [
            ("fleet_slot", "taken", "a", "machine-a"),
            ("fleet_slot", "released", "a", "machine-a"),
        ]
        assert await b.ask("v1/pre-reboot", "machine-b") == "200"


@pytest.mark.fault("Fleet", "two hosts ask for a reboot at once", "one gets the slot")
async def test_two_reboots_at_once_never_have_one_slot_together(cluster: etcd.Cluster) -> None:
    async with two_hosts(cluster) as (a, b):
        for _ in range(5):
            answers = await asyncio.gather(a.ask("v1/pre-reboot"), b.ask("v1/pre-reboot", "m-b"))
            assert sorted(answers) == ["200", "409 slots_held"]
            assert len((await a.semaphore()).holders) == 1
            await asyncio.gather(a.ask("v1/steady-state"), b.ask("v1/steady-state", "m-b"))


async def test_a_reboot_waits_for_deploys_and_for_hosts_without_a_sign_of_life(
    cluster: etcd.Cluster,
) -> None:
    async with two_hosts(cluster) as (a, b):
        a.deploys = True
        assert await a.ask("v1/pre-reboot") == "409 deploy_in_progress"
        a.deploys = False

        taken = slots.take(Semaphore(), "a", Purpose.DEPLOY, now=now(), rollout_id="r1")
        assert taken is not None
        await a.engine.commit([], Put(SEMAPHORE, taken.written()))
        assert await a.ask("v1/pre-reboot") == "409 deploy_in_progress"
        assert await b.ask("v1/pre-reboot") == "409 slots_held"
        assert await a.ask("v1/steady-state") == "200"
        assert await a.semaphore() == taken, "steady-state frees no deploy's slot"

        await a.engine.commit([], Put(SEMAPHORE, Semaphore().written()))
        await a.engine.commit([], Put(HOSTS + "c", b"{}"))
        assert await a.ask("v1/pre-reboot") == "409 host_not_fresh"


async def test_a_host_finds_its_slot_after_the_reboot_and_notices_that_it_was_broken(
    cluster: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_supervisor.fleet.reboots._LOOK_SECONDS", 0.05)
    prefix = f"/atlas/{uuid4().hex}/"
    async with host("a", cluster.endpoints, prefix) as before:
        assert await before.ask("v1/pre-reboot") == "200"
    async with host("a", cluster.endpoints, prefix) as after:
        await eventually(lambda: after.reboots.held)
        await after.engine.commit([], Put(SEMAPHORE, Semaphore().written()))
        await eventually(lambda: not after.reboots.held)


@pytest.mark.fault(
    "Fleet", "etcd away when a host asks for a reboot", "no slot; the answer says why"
)
async def test_without_the_engine_no_slot_is_given_and_the_answer_says_why(
    tmp_path: Path,
) -> None:
    with etcd.cluster(tmp_path) as cluster:
        async with host("a", cluster.endpoints, "/atlas/x/") as a:
            assert await a.ask("v1/pre-reboot") == "200"
            cluster.stop()
            for operation in ("v1/pre-reboot", "v1/steady-state"):
                assert await a.ask(operation) == "503 engine_failed"
            assert a.reboots.held, "the host stays as it is"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"headers": {}}, "400 bad_header"),
        ({"headers": {"fleet-lock-protocol": "yes"}}, "400 bad_header"),
        ({"headers": {**TRUE, "Host": "rebound.example"}}, "421 unknown_host"),
        ({"method": "GET"}, "405 unknown_method"),
        ({"json": None, "data": b"\xff{"}, "400 bad_body"),
        ({"json": {}}, "400 bad_body"),
        ({"json": {"client_params": {"id": "", "group": "g"}}}, "400 bad_body"),
        ({"json": {"client_params": {"id": 1, "group": "g"}}}, "400 bad_body"),
        ({"json": {"client_params": {"id": "a", "group": "a b"}}}, "400 bad_body"),
        ({"json": {"client_params": {"id": "a" * 9000, "group": "g"}}}, "413 bad_body"),
    ],
)
async def test_bad_requests_are_refused_and_change_nothing(
    cluster: etcd.Cluster, change: dict[str, Any], answer: str
) -> None:
    async with host("a", cluster.endpoints, f"/atlas/{uuid4().hex}/") as a:
        assert await a.ask("v1/pre-reboot", **change) == answer
        assert await a.ask("v1/reboot") == "404 unknown_path"
        assert await a.semaphore() == Semaphore()
