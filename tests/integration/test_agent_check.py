"""Agent checks, as a real HAProxy understands them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from atlas_supervisor.fleet import agent_check
from atlas_supervisor.fleet.agent_check import AgentCheck
from atlas_supervisor.fleet.listening import bind
from tests.haproxy import MISSING, PROGRAM, HAProxy, haproxy
from tests.harness import free_ports

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason=MISSING), pytest.mark.asyncio]

CONFIGURATION = """\
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend app
    bind 127.0.0.1:{front}
    default_backend hosts
backend hosts
    server a 127.0.0.1:{port} weight 200 check inter 100ms {more}\
 agent-check agent-port {agent} agent-inter 50ms
"""


@dataclass
class State:
    serves: bool = True
    ramps: bool = False
    reboots: bool = False


@asynccontextmanager
async def checked(
    folder: Path, state: State, more: str = ""
) -> AsyncIterator[tuple[AgentCheck, HAProxy]]:
    """A HAProxy that asks an agent about a server."""
    front, port, agent = free_ports(3)
    listener = bind("FLEET_AGENT_PORT", "127.0.0.1", agent)
    application = bind("PUBLIC_PORT", "127.0.0.1", port)
    check = AgentCheck(
        listener,
        serves=lambda: state.serves,
        ramps=lambda: state.ramps,
        reboots=lambda: state.reboots,
    )
    running = asyncio.create_task(check.run())
    text = CONFIGURATION.format(front=front, port=port, agent=agent, more=more)
    try:
        async with haproxy(folder / "haproxy", text) as proxy:
            yield check, proxy
    finally:
        running.cancel()
        listener.close()
        application.close()


async def shown(proxy: HAProxy, column: str, expected: str) -> None:
    """Wait until HAProxy shows this of the server."""
    async with asyncio.timeout(10):
        while (await proxy.servers())["a"][column] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("more", ["", r"agent-send a\n "])
async def test_a_server_follows_its_agent_through_every_state(tmp_path: Path, more: str) -> None:
    state = State()
    async with checked(tmp_path, state, more) as (_, proxy):
        await proxy.until("a", "UP")
        await shown(proxy, "weight", "200")
        state.ramps = True
        await shown(proxy, "weight", "100")
        state.reboots = True
        await proxy.until("a", "DRAIN")
        state.serves = False
        await proxy.until("a", "DOWN (agent)")
        assert "no worker serves" in (await proxy.servers())["a"]["last_agt"]
        state.serves = True
        await proxy.until("a", "DRAIN")
        state.reboots = state.ramps = False
        await proxy.until("a", "UP")
        await shown(proxy, "weight", "200")


async def test_a_host_that_stops_serves_until_its_balancer_has_learned_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_check, "LEARN_SECONDS", 0.5)
    async with checked(tmp_path, State()) as (check, proxy):
        await shown(proxy, "agent_status", "L7OK")
        await check.stop()
        assert (await proxy.servers())["a"]["status"].startswith("DRAIN")


async def test_a_host_that_no_balancer_asks_about_stops_at_once() -> None:
    check = AgentCheck(None, serves=bool, ramps=bool, reboots=bool)
    before = time.monotonic()
    await check.stop()
    assert time.monotonic() - before < 1
