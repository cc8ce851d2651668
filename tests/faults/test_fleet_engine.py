"""The fleet's engine on three real members, each with a network of its own: lost, parted, hung."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.fleet.engine import EngineError, EngineUnavailableError, Put
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.system.clock import Stopwatch
from tests import etcd
from tests.etcd import next_of
from tests.namespaces import Network, network

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING),
]


class Three:
    """A cluster of three members, and the network that they are on."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.network = network
        self.prefix = ""
        self.cluster = etcd.Cluster()
        for number in range(3):
            address = network.address(number)
            urls = f"http://{address}:2379", f"http://{address}:2380"
            wrapper = network.wrapper(number)
            self.cluster.members.append(etcd.member(folder, f"m{number}", *urls, wrapper=wrapper))

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a test where the members can be reached, with all of them well."""

        async def whole() -> None:
            await asyncio.wait_for(test(), 45)

        self.prefix = f"/atlas/{test.__qualname__.partition('.')[0]}/"
        self.network.inside(self.cluster.start)
        self.network.inside(lambda: asyncio.run(whole()))

    def leader(self) -> int:
        """Return the member that leads."""
        answers = [self.cluster.post("/v3/maintenance/status", {}, member=n) for n in range(3)]
        members = [answer["header"]["member_id"] for answer in answers]
        return members.index(answers[0]["leader"])

    def from_(self, first: int) -> list[str]:
        """Return all endpoints, with a member's first."""
        return self.cluster.endpoints[first:] + self.cluster.endpoints[:first]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with network(3) as made:
        three = Three(tmp_path_factory.mktemp("etcd"), made)
        try:
            yield three
        finally:
            three.cluster.stop()


@pytest.fixture(autouse=True)
def _first_endpoint_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "randrange", lambda _: 0)


async def committed(engine: EtcdEngine, key: str) -> None:
    """Commit a key, however often it has to be tried."""
    while True:
        try:
            await engine.commit([], Put(key, b""))
        except EngineUnavailableError:
            await asyncio.sleep(0.05)
        else:
            return


async def seen(engine: EtcdEngine, until: str, ready: asyncio.Event) -> list[str]:
    """Return the keys that a watch yields, up to one of them."""
    keys: list[str] = []
    async with aclosing(engine.watch("k")) as changes:
        while until not in keys:
            keys += [each.key for each in (await next_of(changes)).entries]
            ready.set()
    return keys


@pytest.mark.fault("Fleet", "etcd's leader killed", "a watch loses no change; commits go on")
def test_a_leader_that_is_lost_is_survived_without_a_lost_change(three: Three) -> None:
    async def test() -> None:
        leader = three.leader()
        async with EtcdEngine(three.from_(leader), three.prefix) as engine:
            await committed(engine, "k-before")
            ready = asyncio.Event()
            watching = asyncio.create_task(seen(engine, "k9", ready))
            await ready.wait()
            for number in range(10):
                if number == 5:
                    three.cluster.members[leader].stop(signal.SIGKILL)
                await committed(engine, f"k{number}")
            keys = await watching
            # One whose answer was lost may be there twice.
            assert list(dict.fromkeys(keys)) == ["k-before", *(f"k{n}" for n in range(10))]
            assert engine.outage is None

    three.run(test)


@pytest.mark.fault(
    "Fleet", "the network parts etcd's members", "the minority decides nothing; hosts go to others"
)
def test_the_minority_answers_nothing_and_its_watches_go_to_the_majority(three: Three) -> None:
    async def test() -> None:
        alone = three.leader()
        others = [number for number in range(3) if number != alone]
        only = [three.cluster.endpoints[alone]]
        async with (
            EtcdEngine(only, three.prefix) as minority,
            EtcdEngine(three.from_(alone), three.prefix) as any_member,
            EtcdEngine(three.from_(others[0]), three.prefix) as majority,
        ):
            await committed(majority, "k-before")
            ready = [asyncio.Event(), asyncio.Event()]
            left = asyncio.create_task(seen(minority, "k-after", ready[0]))
            moved = asyncio.create_task(seen(any_member, "k-during", ready[1]))
            for each in ready:
                await each.wait()
            three.network.part(alone, others)
            try:
                with pytest.raises(EngineError):
                    await minority.commit([], Put("k-never", b""))
                with pytest.raises(EngineUnavailableError):
                    await minority.read("kill")
                await committed(majority, "k-during")
                passed = Stopwatch()
                assert (await any_member.read("k-during")).entries
                assert (await moved)[-1] == "k-during"
                assert passed.seconds < 5
                assert not left.done()
                assert minority.outage is not None
            finally:
                three.network.heal(alone, others)
            await committed(majority, "k-after")
            assert "k-never" not in await left
            await committed(minority, "k-end")
            assert minority.outage is None

    three.run(test)


@pytest.mark.fault("Fleet", "one member of etcd hangs (SIGSTOP)", "its hosts go to another one")
def test_a_watch_on_a_member_that_hangs_goes_to_another_one(three: Three) -> None:
    async def test() -> None:
        hung = (three.leader() + 1) % 3
        async with (
            EtcdEngine(three.from_(hung), three.prefix) as engine,
            EtcdEngine(three.from_((hung + 1) % 3), three.prefix) as other,
        ):
            await committed(other, "k-before")
            ready = asyncio.Event()
            watching = asyncio.create_task(seen(engine, "k-during", ready))
            await ready.wait()
            three.cluster.members[hung].suspend()
            try:
                await committed(other, "k-during")
                passed = Stopwatch()
                await engine.read("kill")  # as each host does every second
                assert (await watching)[-1] == "k-during"
                assert passed.seconds < 4
                assert engine.outage is None
            finally:
                three.cluster.members[hung].resume()

    three.run(test)


@pytest.mark.fault("Fleet", "a host's network is gone", "its presence ends; then it goes on")
def test_without_its_network_a_host_reports_the_outage_and_its_presence_lapses(
    three: Three,
) -> None:
    async def test() -> None:
        async with (
            EtcdEngine(three.from_(0), three.prefix) as host,
            EtcdEngine(three.from_(1), three.prefix) as other,
        ):
            await host.claim("present/a", b"1", revision=0, ttl_seconds=2)
            async with aclosing(other.watch("present/")) as changes:
                await next_of(changes)
                for number in range(3):
                    three.network.cut(number)
                with pytest.raises(EngineUnavailableError):
                    await host.keep(ttl_seconds=2)
                assert host.outage is not None
                for number in range(3):
                    three.network.plug_in(number)
                assert (await next_of(changes)).removed == ("present/a",)
                await host.claim("present/a", b"3", revision=0, ttl_seconds=60)
                assert [each.value for each in (await next_of(changes)).entries] == [b"3"]

    three.run(test)
