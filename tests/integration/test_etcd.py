"""The fleet's engine on a real etcd of one member, and against servers that are none."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.doctor.engine import engine as doctor
from atlas_supervisor.doctor.finding import Level
from atlas_supervisor.fleet import etcd_client, etcd_watch
from atlas_supervisor.fleet.engine import (
    Changes,
    Delete,
    EngineError,
    EngineUnavailableError,
    GarbledAnswerError,
    Put,
    Unchanged,
)
from atlas_supervisor.fleet.etcd import EtcdEngine
from tests import etcd
from tests.etcd import next_of
from tests.harness import eventually, free_ports
from tests.integration import fakes

pytestmark = pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING)

_prefixes = itertools.count()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    with etcd.cluster(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@asynccontextmanager
async def engine_on(*clusters: etcd.Cluster) -> AsyncIterator[EtcdEngine]:
    """Open an engine with a prefix that no other test has."""
    endpoints = [endpoint for each in clusters for endpoint in each.endpoints]
    async with EtcdEngine(endpoints, f"/atlas/{next(_prefixes)}/") as opened:
        yield opened


def keys(changes: Changes) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in changes.entries}


async def opened(changes: AsyncIterator[Changes], by: EtcdEngine) -> Changes:
    """Return the snapshot that a watch begins with, once its stream delivers changes."""
    first = await next_of(changes)
    await by.commit([], Put("k", b"0"))
    assert keys(await next_of(changes)) == {"k": b"0"}
    return first


async def test_a_commit_is_done_only_if_every_key_is_as_it_was_read(one: etcd.Cluster) -> None:
    async with engine_on(one) as engine:
        made = await engine.commit(
            [Unchanged("a", 0), Unchanged("b", 0)], Put("a", b"1"), Put("b", b"\xff\0")
        )
        assert made is not None
        assert await engine.commit([Unchanged("a", 0)], Put("a", b"2")) is None
        assert await engine.commit([Unchanged("a", made), Unchanged("b", 1)], Delete("a")) is None
        read = await engine.read("")
        assert [(each.key, each.value) for each in read.entries] == [("a", b"1"), ("b", b"\xff\0")]
        assert read.revision == made == read.revision_of("b")
        removed = await engine.commit([Unchanged("a", made)], Delete("a"), Put("c", b""))
        assert removed == made + 1
        assert [each.key for each in (await engine.read("a", "b", "c")).entries] == ["b", "c"]


async def test_of_writers_that_race_for_one_revision_exactly_one_wins(one: etcd.Cluster) -> None:
    async with engine_on(one) as engine:
        for _round in range(3):
            revision = (await engine.read("slot")).revision_of("slot")
            condition = [Unchanged("slot", revision)]
            done = await asyncio.gather(
                *(engine.commit(condition, Put("slot", b"%d" % each)) for each in range(20))
            )
            (winner,) = [each for each, made in enumerate(done) if made is not None]
            assert (await engine.read("slot")).value("slot") == b"%d" % winner


async def test_two_fleets_on_one_etcd_see_nothing_of_each_other(one: etcd.Cluster) -> None:
    async with engine_on(one) as ours, engine_on(one) as others:
        await ours.commit([], Put("kill", b"ours"))
        assert (await others.read("")).entries == ()
        async with aclosing(others.watch("")) as changes:
            assert (await next_of(changes)).entries == ()
            await ours.commit([], Put("kill", b"again"))
            await others.commit([], Put("kill", b"theirs"))
            assert keys(await next_of(changes)) == {"kill": b"theirs"}


async def test_a_watch_begins_with_all_entries_and_yields_each_commit_as_one_change(
    one: etcd.Cluster,
) -> None:
    async with engine_on(one) as engine:
        await engine.commit([], Put("r/a", b"1"), Put("other", b""))
        async with aclosing(engine.watch("r/")) as changes:
            first = await next_of(changes)
            assert first.anew
            assert keys(first) == {"r/a": b"1"}
            made = await engine.commit([], Put("r/a", b"2"), Put("r/b", b"1"), Put("other", b"x"))
            second = await next_of(changes)
            assert (second.anew, second.revision) == (False, made)
            assert keys(second) == {"r/a": b"2", "r/b": b"1"}
            await engine.commit([], Delete("r/a"))
            assert (await next_of(changes)).removed == ("r/a",)


@pytest.mark.fault("Fleet", "etcd stopped and started again", "a watch loses no change")
async def test_a_watch_goes_on_from_its_revision_after_etcd_was_restarted(tmp_path: Path) -> None:
    with etcd.cluster(tmp_path) as cluster:
        async with engine_on(cluster) as engine, aclosing(engine.watch("k")) as changes:
            await opened(changes, engine)
            cluster.members[0].stop()
            waiting = asyncio.ensure_future(next_of(changes))
            await eventually(lambda: engine.outage)
            outage = engine.outage
            assert outage is not None
            with pytest.raises(EngineUnavailableError, match=cluster.endpoints[0]):
                await engine.read("k")
            assert engine.outage is not None
            assert engine.outage.since_ts == outage.since_ts
            cluster.start()
            revision = await engine.commit([], Put("k", b"1"))
            change = await waiting
            assert (change.anew, change.revision, keys(change)) == (False, revision, {"k": b"1"})
            assert engine.outage is None


@pytest.mark.fault("Fleet", "etcd has lost its data", "a watch begins anew; absence is reported")
async def test_a_watch_begins_anew_if_the_store_is_behind_it(tmp_path: Path) -> None:
    """The cluster that is made again has the same ID; only its revision is lower."""
    with etcd.cluster(tmp_path) as cluster:
        async with engine_on(cluster) as engine, aclosing(engine.watch("")) as changes:
            for number in range(5):
                await engine.commit([], Put(f"k{number}", b""))
            assert (await opened(changes, engine)).revision == 6
            waiting = asyncio.ensure_future(next_of(changes))
            cluster.members[0].stop()
            shutil.rmtree(cluster.members[0].folder / "data")
            cluster.start()
            anew = await waiting
            assert (anew.anew, anew.entries, anew.revision) == (True, (), 1)
            await engine.commit([], Put("k", b"new"))
            assert keys(await next_of(changes)) == {"k": b"new"}


@asynccontextmanager
async def gate_to(one: etcd.Cluster) -> AsyncIterator[tuple[fakes.Gate, EtcdEngine, EtcdEngine]]:
    """Yield a gate before etcd, an engine behind it, and another one that has its own way."""
    prefix = f"/atlas/{next(_prefixes)}/"
    (port,) = free_ports(1)
    behind = urlsplit(one.endpoints[0]).port
    assert behind is not None
    async with (
        fakes.Gate(port, behind) as gate,
        EtcdEngine([f"http://127.0.0.1:{port}"], prefix) as engine,
        EtcdEngine(one.endpoints, prefix) as direct,
    ):
        yield gate, engine, direct


@pytest.mark.fault("Fleet", "etcd's history compacted meanwhile", "a watch begins anew")
async def test_a_watch_begins_anew_if_what_it_missed_was_compacted(one: etcd.Cluster) -> None:
    async with gate_to(one) as (gate, engine, direct), aclosing(engine.watch("")) as changes:
        await direct.commit([], Put("gone", b""))
        assert keys(await opened(changes, direct)) == {"gone": b""}
        await gate.cut()
        waiting = asyncio.ensure_future(next_of(changes))
        await eventually(lambda: engine.outage)
        await direct.commit([], Delete("gone"), Put("k", b"1"))
        await direct.commit([], Put("k", b"2"))
        one.compact()
        await gate.mend()
        anew = await waiting
        assert (anew.anew, keys(anew)) == (True, {"k": b"2"})


async def test_a_watch_begins_anew_in_another_cluster_whose_revision_is_higher(
    one: etcd.Cluster, tmp_path: Path
) -> None:
    with etcd.cluster(tmp_path) as other:
        async with gate_to(one) as (gate, engine, direct), aclosing(engine.watch("")) as changes:
            await opened(changes, direct)
            port = urlsplit(other.endpoints[0]).port
            assert port is not None
            async with EtcdEngine(other.endpoints, "/atlas/x/") as filler:
                while other.revision() <= one.revision():
                    await filler.commit([], *(Put(f"{number}", b"") for number in range(9)))
            await gate.cut()
            gate.behind = port
            await gate.mend()
            anew = await next_of(changes)
            assert (anew.anew, anew.entries) == (True, ())


@pytest.mark.parametrize(("change", "is_anew"), [(Put("k", b"1"), False), (Delete("k"), True)])
@pytest.mark.fault("Fleet", "a watch is silent about changes", "its connection is given up")
async def test_a_watch_that_is_silent_about_a_change_is_noticed(
    one: etcd.Cluster, change: Put | Delete, is_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_watch, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(etcd_watch, "GRACE_SECONDS", 0.2)
    async with gate_to(one) as (gate, engine, direct), aclosing(engine.watch("k")) as changes:
        await opened(changes, direct)
        gate.hold(b"/v3/watch")
        revision = await direct.commit([], change)
        late = await next_of(changes)
        assert (late.revision, late.anew) == (revision, is_anew)


@pytest.mark.fault("Fleet", "etcd hangs (SIGSTOP)", "requests end in time, the watch goes on")
async def test_requests_to_an_etcd_that_hangs_end_in_time(
    one: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "REQUEST_SECONDS", 0.5)
    async with engine_on(one) as engine, aclosing(engine.watch("k")) as changes:
        await opened(changes, engine)
        one.members[0].suspend()
        try:
            for _ in range(2):
                with pytest.raises(EngineUnavailableError, match=r"no answer within 0\.5 s"):
                    await engine.read("k")
            with pytest.raises(EngineUnavailableError):
                await engine.commit([], Put("k/perhaps", b""))
            assert engine.outage is not None
        finally:
            one.members[0].resume()
        monkeypatch.setattr(etcd_client, "REQUEST_SECONDS", 10.0)
        await engine.commit([], Put("k", b"after"))
        while "k" not in keys(await next_of(changes)):
            pass  # the commit before it may be done, even after it
        assert engine.outage is None


async def test_reading_again_has_what_was_changed_added_and_removed(one: etcd.Cluster) -> None:
    async with engine_on(one) as engine:
        for key in ("a/1", "a/2", "b/1", "c/1"):
            await engine.commit([], Put(key, b"old"))
        earlier = await engine.read("a/", "b/")
        assert await engine.read_again(earlier, "a/", "b/") == earlier
        await engine.commit([], Put("a/2", b"new"), Put("b/2", b"new"), Put("c/1", b"new"))
        later = await engine.read_again(earlier, "a/", "b/")
        assert later == await engine.read("a/", "b/")
        assert later.value("a/2") == b"new"
        await engine.commit([], Delete("b/1"), Put("b/3", b"new"))  # as many as before
        assert await engine.read_again(later, "a/", "b/") == await engine.read("a/", "b/")
        ahead = replace(later, revision=later.revision + 1000)
        assert await engine.read_again(ahead, "a/", "b/") == await engine.read("a/", "b/")


async def test_a_claimed_key_stays_while_it_is_kept_and_goes_away_by_itself(
    one: etcd.Cluster,
) -> None:
    async with engine_on(one) as engine, aclosing(engine.watch("present/")) as changes:
        await next_of(changes)
        assert not await engine.keep(ttl_seconds=1)
        revision = 0
        for value in (b"1", b"2"):
            claimed = await engine.claim("present/a", value, revision=revision, ttl_seconds=1)
            assert claimed is not None
            revision = claimed
            assert keys(await next_of(changes)) == {"present/a": value}
        assert await engine.keep(ttl_seconds=1)
        assert await engine.count("present/") == 1
        assert (await next_of(changes)).removed == ("present/a",)
        assert not await engine.keep(ttl_seconds=1)
        assert await engine.count("present/") == 0


async def test_a_key_that_another_program_has_written_is_not_claimed(one: etcd.Cluster) -> None:
    async with engine_on(one) as engine:
        await engine.commit([], Put("present/a", b"another's"))
        assert await engine.claim("present/a", b"1", revision=0, ttl_seconds=15) is None
        assert (await engine.read("present/")).value("present/a") == b"another's"


@pytest.mark.fault("Fleet", "a host's lease has ended", "its next claim takes another")
async def test_a_lease_that_was_lost_is_taken_again_with_the_next_claim(
    one: etcd.Cluster,
) -> None:
    async with engine_on(one) as engine:
        await engine.claim("present/a", b"1", revision=0, ttl_seconds=60)
        for lease in one.post("/v3/lease/leases", {})["leases"]:
            assert "error" not in one.post("/v3/lease/revoke", {"ID": lease["ID"]})
        assert (await engine.read("present/")).entries == ()
        assert await engine.claim("present/a", b"2", revision=0, ttl_seconds=60)
        assert (await engine.read("present/")).value("present/a") == b"2"


def answer(content: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status.encode(),
        len(content),
        content,
    )


def without_end(beginning: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + beginning + b" " * 65536


GARBAGE = {
    "a page": answer(b"<html>Welcome to nginx!</html>"),
    "an error page": answer(b"404 page not found", "404 Not Found"),
    "another program's JSON": answer(b'{"status": "ok"}'),
    "another fleet's key": answer(
        b'{"header":{"cluster_id":"1"},"kvs":[{"key":"L2F0bGFzL3kvaw=="}],"count":"1"}'
    ),
    "a key that was not asked for": answer(
        b'{"header":{"cluster_id":"1"},"kvs":[{"key":"L2V0Yy9wYXNzd2Q="}],"count":"1"}'
    ),
    "a revision that is no number": answer(b'{"header":{"cluster_id":"1","revision":"x"}}'),
    "no base64": answer(b'{"header":{"cluster_id":"1"},"kvs":[{"key":"%%%"}]}'),
    "binary": answer(bytes(range(256))),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n",
}


@pytest.mark.fault("Fleet", "an endpoint that is no etcd", "a named error; nothing is decided")
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_endpoint_that_answers_garbage_is_a_named_error(garbage: str) -> None:
    (port,) = free_ports(1)
    async with (
        fakes.answering(port, GARBAGE[garbage]) as url,
        EtcdEngine([url], "/atlas/x/") as engine,
    ):
        with pytest.raises(GarbledAnswerError, match=f"{url}: "):
            await engine.read("k")
        assert engine.outage is not None
        with pytest.raises(GarbledAnswerError):
            await engine.read("k", "l")
        with suppress(EngineError):
            assert await engine.commit([Unchanged("k", 0)], Put("k", b"")) is None
        with pytest.raises(EngineError):
            await engine.claim("present/a", b"", revision=0, ttl_seconds=15)
        async with aclosing(engine.watch("k")) as changes:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(changes), 0.3)


async def test_an_answer_without_an_end_is_given_up_at_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd_client, "ANSWER_LIMIT", 1 << 20)
    (port,) = free_ports(1)
    endless = fakes.answering(port, without_end(b'{"header":'), endless=True)
    async with endless as url, EtcdEngine([url], "/atlas/x/") as engine:
        with pytest.raises(GarbledAnswerError, match="more than 1 MiB"):
            await engine.read("k")


async def test_another_member_is_asked_if_one_answers_garbage_or_is_not_there(
    one: etcd.Cluster,
) -> None:
    port, closed = free_ports(2)
    async with fakes.answering(port, GARBAGE["a page"]) as url:
        endpoints = [url, f"http://127.0.0.1:{closed}", *one.endpoints]
        for _ in range(3):
            async with EtcdEngine(endpoints, f"/atlas/{next(_prefixes)}/") as engine:
                assert (await engine.read("k")).entries == ()
                assert await engine.commit([Unchanged("k", 0)], Put("k", b"1"))
                assert engine.outage is None


def test_the_doctor_reports_each_members_version_and_endpoints_of_different_clusters(
    one: etcd.Cluster, tmp_path: Path
) -> None:
    assert list(doctor(Settings.model_construct(base_dir=tmp_path))) == []
    (closed,) = free_ports(1)
    away = f"http://127.0.0.1:{closed}"
    found = [
        *doctor(
            Settings.model_construct(base_dir=tmp_path, fleet_etcd_endpoints=(*one.endpoints, away))
        )
    ]
    levels = {each.message.split(": ")[0]: each.status for each in found}
    assert levels == {one.endpoints[0]: Level.WARN, away: Level.WARN}
    assert any("etcd 3.4." in each.message and "Upgrade" in str(each.mend) for each in found)
    with etcd.cluster(tmp_path) as other:
        found = [
            *doctor(
                Settings.model_construct(
                    base_dir=tmp_path, fleet_etcd_endpoints=(*one.endpoints, *other.endpoints)
                )
            )
        ]
    assert ["different clusters" in each.message for each in found] == [False, False, True]
    assert found[-1].status is Level.FAIL


async def test_an_endpoint_that_is_no_URL_is_a_named_error() -> None:
    async with EtcdEngine(["http://[::1"], "/atlas/x/") as engine:
        with pytest.raises(EngineError, match="::1"):
            await engine.read("k")
