"""Who listens to a real daemon learns all that happens, in order and once, whatever comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness import DaemonProcess, eventually
from tests.integration.support import WARM, release, rows, scripted_daemon, until_phase

Told = tuple[int, dict[str, Any]]


@dataclass
class Listener:
    """What one client was told, and how its stream ended."""

    events: list[Told] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    last_id: int | None = None
    ended: str | None = None

    @property
    def ids(self) -> list[int]:
        return [number for number, _ in self.events]

    async def read(self, response: aiohttp.ClientResponse) -> None:
        """Take in all that comes, as the standard of server-sent events has it."""
        block: dict[str, str] = {}
        try:
            async for line in response.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    block[name] = value
                    continue
                if "id" in block:
                    self.last_id = int(block["id"])
                if block.get("event") == "transition":
                    self.events.append((int(block["id"]), json.loads(block["data"])))
                elif block.get("event") == "reset":
                    self.resets.append(json.loads(block["data"])["message"])
                block = {}
            self.ended = "properly"
        except aiohttp.ClientError as error:
            self.ended = repr(error)


@asynccontextmanager
async def listening(
    daemon: DaemonProcess, *, last_event_id: int | None = None, **query: Any
) -> AsyncIterator[Listener]:
    """Listen over TCP while the context lasts; the stream has begun."""
    url = f"http://127.0.0.1:{daemon.control_port}/deploy/events"
    headers = {"Authorization": f"Bearer {daemon.token}"}  # records have excerpts of answers
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session,
        session.get(url, params=query, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        listener = Listener()
        reading = asyncio.create_task(listener.read(response))
        try:
            await eventually(lambda: listener.last_id is not None or reading.done())
            yield listener
        finally:
            reading.cancel()
            await asyncio.wait([reading])


def journal(daemon: DaemonProcess) -> list[int]:
    return [number for (number,) in rows(daemon, "SELECT id FROM transitions ORDER BY id")]


def open_files(daemon: DaemonProcess) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


async def one_of_each(daemon: DaemonProcess) -> list[str]:
    """Run deploys that come out in four ways, and return their ids and results."""
    ids = []
    release(daemon, "v2")
    ids.append((await daemon.deploy()).json["deploy_id"])
    await daemon.request("POST", "/deploy/rollback")
    await daemon.ended(ids[-1])
    release(daemon, "v3")
    ids.append((await daemon.deploy()).json["deploy_id"])
    release(daemon, "v4", health=500)
    ids.append((await daemon.deploy()).json["deploy_id"])
    await daemon.ended(ids[-1])
    await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
    release(daemon, "v5", health_delay=20)
    ids.append((await daemon.deploy(wait="false")).json["deploy_id"])
    await until_phase(daemon, "launch")
    await daemon.request("POST", "/deploy/abort")
    await daemon.ended(ids[-1])
    return ids


async def test_all_that_happens_is_told_once_and_in_order_and_can_be_told_again(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon, AsyncExitStack() as clients:
        live = await clients.enter_async_context(listening(daemon))
        before = open_files(daemon)
        many = [await clients.enter_async_context(listening(daemon)) for _ in range(30)]
        ids = await one_of_each(daemon)
        known = journal(daemon)
        await eventually(lambda: all(each.ids == known for each in [live, *many]))
        assert all(each.events == live.events for each in many)
        await each_story_is_whole(daemon, ids, live)
        await it_goes_on_after_every_event(daemon, live)
        await one_deploy_can_be_followed_alone(daemon, ids, live)
        await clients.aclose()
        # Streams that are over leave nothing open; the API's own connections come and go.
        await eventually(lambda: open_files(daemon) <= before)


async def each_story_is_whole(daemon: DaemonProcess, ids: list[str], live: Listener) -> None:
    results = []
    for deploy_id in ids:
        record = (await daemon.request("GET", f"/deploy/{deploy_id}")).json
        results.append(record["result"])
        told = [(number, data) for number, data in live.events if data["deploy_id"] == deploy_id]
        story = record["transitions"]
        assert [each["id"] for each in story] == [number for number, _ in told]
        for transition, (_, data) in zip(story, told, strict=True):
            assert {name: data[name] for name in transition if name != "id"} == {
                name: value for name, value in transition.items() if name != "id"
            }
        assert (story[0]["source"], story[0]["event"]) == (None, "begun")
        assert [each["source"] for each in story[1:]] == [each["target"] for each in story[:-1]]
        assert told[-1][1]["result"] == record["result"]
        steps = [data["step"] for _, data in told if data["step"] is not None]
        assert steps == record["steps"][: len(steps)]
        assert all("transitions" not in each for each in await history(daemon))
    assert results == ["rolled_back", "switched", "failed", "aborted"]


async def history(daemon: DaemonProcess) -> list[dict[str, Any]]:
    deploys: list[dict[str, Any]] = (await daemon.request("GET", "/deploy/history")).json["deploys"]
    return deploys


async def it_goes_on_after_every_event(daemon: DaemonProcess, live: Listener) -> None:
    for position, last in enumerate([0, *live.ids]):
        expected = live.events[position:]
        async with listening(daemon, last_event_id=last) as again:
            await eventually(lambda: len(again.events) >= len(expected))  # noqa: B023 - awaited here
            assert again.events == expected
            assert again.resets == []
    async with listening(daemon, after=live.ids[-3]) as again:
        await eventually(lambda: again.events == live.events[-2:])


async def one_deploy_can_be_followed_alone(
    daemon: DaemonProcess, ids: list[str], live: Listener
) -> None:
    expected = [each for each in live.events if each[1]["deploy_id"] == ids[1]]
    async with listening(daemon, after=0, deploy_id=ids[1]) as one:
        await eventually(lambda: len(one.events) >= len(expected))
        assert one.events == expected
    unknown = await daemon.request("GET", "/deploy/events", params={"deploy_id": "nobody"})
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "deploy_not_found")


async def test_a_stream_goes_on_over_a_restart_and_over_a_daemon_that_is_killed(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        told: list[int] = []
        release(daemon, "v2")
        async with listening(daemon) as first:
            deploy_id = (await daemon.deploy()).json["deploy_id"]
            await daemon.ended(deploy_id)
            await eventually(lambda: first.ids == journal(daemon))
            told += first.ids
            await daemon.stop()
            await eventually(lambda: first.ended is not None)
            assert first.ended == "properly"
        await daemon.start()
        release(daemon, "v3", health_delay=20)
        async with listening(daemon, last_event_id=told[-1]) as second:
            deploy_id = (await daemon.deploy(wait="false")).json["deploy_id"]
            await until_phase(daemon, "launch")
            await eventually(lambda: told + second.ids == journal(daemon))
            told += second.ids
            await daemon.kill()
            await eventually(lambda: second.ended is not None)
            assert second.ended != "properly"
        release(daemon, "v2")
        await daemon.start()
        record = await daemon.ended(deploy_id)
        assert record["result"] == "aborted"
        async with listening(daemon, last_event_id=told[-1]) as third:
            await eventually(lambda: told + third.ids == journal(daemon))
            assert third.events[-1][1]["target"] == "ended"
        async with listening(daemon, last_event_id=10**9) as lost:
            assert str(10**9) in lost.resets[0]
            assert lost.last_id == journal(daemon)[-1]
            assert lost.events == []
            deploy_id = (await daemon.deploy(dry_run="true")).json["deploy_id"]
            await eventually(lambda: bool(lost.events))
            assert lost.events[0][1]["deploy_id"] == deploy_id
