"""`./scripts/demo --fleet`: three machines on this one, one rollout, one kill switch.

Three supervisors with their own ports and state, a real etcd and a real HAProxy in front, all on
free ports of loopback and in a temporary folder. Clients ask HAProxy all the time, and each machine
for a feature, so that a kill can be measured where it counts: in the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from scripts.acts import BROKEN, GOOD, Acts, perform, signalled
from tests import etcd
from tests import haproxy as proxy
from tests.harness import DaemonProcess, Setting, free_ports, write_release
from tests.loadclient import Kind, Load, bundled_worker_mix, streams

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("a", "b", "c")
PAGE = ROOT / "docs/how-to/haproxy.md"
IDLE_GRACE_SECONDS = 1.0
QUIET_SECONDS = 1.0
KILL_SECONDS = 2.0
"""The promise: within it no process has the feature on."""
ROLLOUT_SECONDS = 120.0
IMAGE = b"P5 1 1 255 \xff"


def missing() -> str:
    """Return which programs are missing and which package has them; empty if none is."""
    wanted = {"etcd": ("etcd-server", etcd.PROGRAM), "haproxy": ("haproxy", proxy.PROGRAM)}
    absent = {name: package for name, (package, found) in wanted.items() if found is None}
    if not absent:
        return ""
    packages = " ".join(absent.values())
    return (
        f"Not installed: {', '.join(absent)}. On Debian and Ubuntu:\n"
        f"    sudo apt-get install {packages}\n"
        f"    sudo systemctl disable --now {' '.join(absent)}   # the demo runs its own"
    )


@dataclass
class Feature:
    """A client that asks one machine for a feature all the time, and notes which arm answers."""

    port: int
    pause: float
    """Seconds between two requests."""
    answered: int = 0
    last_canary: float = 0.0
    """When the last request that the canary served was sent."""

    async def run(self) -> None:
        """Ask until cancelled, on a connection for each request; the machine may be down."""
        url = f"http://127.0.0.1:{self.port}/features/vision"
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                sent = time.monotonic()
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.post(url, data=IMAGE) as answer:
                        arm = (await answer.json())["arm"]
                    self.answered += 1
                    self.last_canary = sent if arm == "canary" else self.last_canary
                await asyncio.sleep(self.pause)


@dataclass
class Demo:
    """The machines, what is between them, and the acts."""

    daemons: dict[str, DaemonProcess]
    features: dict[str, Feature]
    cluster: etcd.Cluster
    proxy: proxy.HAProxy
    acts: Acts

    async def fleet(self, host: str = "a") -> dict[str, Any]:
        answer = await self.daemons[host].request("GET", "/fleet")
        if answer.status != 200:
            raise RuntimeError(f"GET /fleet answers {answer.status}: {answer.json}")
        found: dict[str, Any] = answer.json
        return found

    async def until(
        self, holds: Callable[[dict[str, Any]], bool], *, seconds: float, host: str = "a"
    ) -> dict[str, Any]:
        """Return the fleet once this holds of it. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not holds(fleet := await self.fleet(host)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return fleet

    async def versions(self) -> dict[str, str]:
        return {name: (await each.status())["version"] for name, each in self.daemons.items()}

    # The acts.

    async def serve(self) -> tuple[str, bool]:
        await self.until(
            lambda fleet: sum(bool(each["fresh"]) for each in fleet["hosts"]) == len(HOSTS),
            seconds=ROLLOUT_SECONDS,
        )
        for host in HOSTS:
            await self.proxy.until(host, "UP")
        await asyncio.sleep(QUIET_SECONDS)
        return f"{len(HOSTS)} hosts behind HAProxy, each knows of the others", True

    async def roll_out(self, release: str, *, waves: list[float]) -> tuple[str, bool]:
        body = {"release": release, "max_unavailable": 1, "waves": waves}
        answer = await self.daemons["a"].request("POST", "/fleet/rollout", json=body)
        if answer.status != 200:
            return f"{answer.status}: {answer.json['error']['message']}", False
        fleet = await self.until(
            lambda fleet: fleet["rollout"]["state"] not in {"running", "paused"},
            seconds=ROLLOUT_SECONDS,
        )
        rollout, versions = fleet["rollout"], await self.versions()
        served = ", ".join(f"{host} {version}" for host, version in versions.items())
        halt = rollout["halt"] or {}
        if halt:
            return f"halted: {halt['host']}: {halt['reason']}; serving: {served}", True
        return f"{rollout['state']}; serving: {served}", set(versions.values()) == {release}

    async def good(self) -> tuple[str, bool]:
        return await self.roll_out("1.1", waves=[1, 1])

    async def broken(self) -> tuple[str, bool]:
        outcome, _ = await self.roll_out("1.2", waves=[1, 1])
        kept = set((await self.versions()).values()) == {"1.1"}
        return outcome, outcome.startswith("halted") and kept

    async def give_up(self) -> tuple[str, bool]:
        """End the halted rollout, and enable deploys on the machine that refused it."""
        halted = (await self.fleet())["rollout"]["halt"]["host"]
        aborted = await self.daemons[halted].request("POST", "/fleet/rollout/abort")
        mode = {"mode": "bluegreen"}
        enabled = await self.daemons[halted].request("POST", "/deploy/mode", json=mode)
        return f"aborted; {halted} takes deploys again", aborted.status == enabled.status == 200

    async def kill(self) -> tuple[str, bool]:
        began = time.monotonic()
        if not all(each.last_canary for each in self.features.values()):
            return "the canary does not serve on each machine", False
        answer = await self.daemons["b"].request("POST", "/fleet/kill", json={"feature": "vision"})
        if answer.status != 200:
            return f"{answer.status}: {answer.json['error']['message']}", False
        fleet = await self.until(
            lambda fleet: fleet["kills"]["acknowledged"] == len(HOSTS), seconds=10, host="b"
        )
        await asyncio.sleep(KILL_SECONDS)
        last = max(each.last_canary for each in self.features.values())
        seconds = max(last - began, 0.0)
        hosts = f"{fleet['kills']['acknowledged']} of {len(HOSTS)} hosts have it on disk"
        return f"off in every answer after {seconds:.2f} s; {hosts}", seconds <= KILL_SECONDS

    async def without_a_supervisor(self) -> tuple[str, bool]:
        daemon, before = self.daemons["c"], self.features["c"].answered
        await daemon.kill()
        await asyncio.sleep(2 * QUIET_SECONDS)
        served = self.features["c"].answered - before
        await daemon.start()
        return f"c's workers served on: {served} requests of a feature", served > 0

    async def reboot(self) -> tuple[str, bool]:
        """Reboot b, as an agent does: ask, go down, come back, report it."""
        granted = await self.lock("b", "pre-reboot")
        refused = await self.lock("c", "pre-reboot")
        await self.proxy.until("b", "DRAIN")
        await self.daemons["b"].stop()
        await self.daemons["b"].start()
        back = await self.lock("b", "steady-state")
        await self.proxy.until("b", "UP")
        outcome = f"b: granted, drained, down and back; c's meanwhile: {refused}"
        return outcome, (granted, refused, back) == (200, 409, 200)

    async def lock(self, host: str, operation: str) -> int:
        """Ask a machine's FleetLock; return the status."""
        url = f"http://127.0.0.1:{self.daemons[host].settings['FLEETLOCK_PORT']}/v1/{operation}"
        body = {"client_params": {"id": f"machine-{host}", "group": "default"}}
        headers = {"fleet-lock-protocol": "true"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers=headers) as answer,
        ):
            return answer.status

    async def without_etcd(self) -> tuple[str, bool]:
        """Stop etcd, and deploy on one machine by hand."""
        await asyncio.to_thread(self.cluster.stop)
        fleet = await self.until(lambda fleet: not fleet["engine"]["connected"], seconds=20)
        answer = await self.daemons["a"].deploy("1.0")
        began = await self.daemons["a"].request("POST", "/fleet/rollout", json={"release": "1.1"})
        await asyncio.to_thread(self.cluster.start)
        await self.until(lambda fleet: fleet["engine"]["connected"], seconds=20)
        off = fleet["kills"]["features"]
        outcome = f"a deploys by hand: {answer.json['result']}; {', '.join(off)} stays off"
        return outcome, answer.status == 200 and began.status == 503 and off == ["vision"]


async def play(demo: Demo) -> None:
    """Perform all acts. The broken release must be halted, and everything else succeed."""
    acts = demo.acts
    await acts.act("serve release 1.0", demo.serve())
    await acts.act("roll release 1.1 out", demo.good())
    await acts.act("roll 1.2 out, which is broken", demo.broken())
    await acts.act("give it up", demo.give_up())
    await acts.act("kill a feature everywhere", demo.kill())
    await acts.act("kill a supervisor", demo.without_a_supervisor())
    await acts.act("reboot a machine", demo.reboot())
    await acts.act("stop etcd", demo.without_etcd())


# The stage.


@asynccontextmanager
async def machines(folder: Path, endpoints: str) -> AsyncIterator[dict[str, DaemonProcess]]:
    """Three supervisors of one fleet, with three releases each."""
    for version, program in (("1.0", GOOD), ("1.1", GOOD), ("1.2", BROKEN)):
        write_release(folder / "releases" / version, version, {"serve.py": program})
    ports = iter(free_ports(2 * len(HOSTS)))
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": f"env ATLAS_IDLE_GRACE_SECONDS={IDLE_GRACE_SECONDS} python serve.py",
        "WORKER_DIRECTORY": folder / "releases/1.0",
        "RELEASES_DIR": folder / "releases",
        "DRAIN_TIMEOUT_SECONDS": 5,  # streams are closed within half of it
        "GUARD_SECONDS": 1,
        "KEEP_WARM_SECONDS": 5,
        "CANARY_ENABLED": "true",
        "CANARY_PERCENTAGE": 1,
        "CANARY_FEATURES": "vision",
        "FLEET_ETCD_ENDPOINTS": endpoints,
    }
    end = asyncio.Event()

    async def run(host: str, started: asyncio.Future[DaemonProcess]) -> None:
        own: dict[str, Setting] = {
            "FLEET_HOST": host,
            "FLEET_AGENT_PORT": next(ports),
            "FLEETLOCK_PORT": next(ports),
        }
        async with DaemonProcess.running(folder / host, {**settings, **own}) as daemon:
            started.set_result(daemon)
            await end.wait()

    started = {host: asyncio.Future[DaemonProcess]() for host in HOSTS}
    async with asyncio.TaskGroup() as tasks:  # together, the start and the stop
        for host in HOSTS:
            tasks.create_task(run(host, started[host]))
        try:
            yield {host: await daemon for host, daemon in started.items()}
        finally:
            end.set()


@asynccontextmanager
async def stage(folder: Path, *, think: float = 0.04) -> AsyncIterator[Demo]:
    """Run etcd, three supervisors, HAProxy in front, and clients.

    `think` is the longest time between two requests of a busy client, in seconds.
    """
    [port] = free_ports(1)
    mix: tuple[Kind, ...] = (
        *bundled_worker_mix(think=think, pause=0.7 * IDLE_GRACE_SECONDS),
        *streams(),
    )
    with etcd.cluster(folder / "etcd") as cluster:
        async with (
            machines(folder, ",".join(cluster.endpoints)) as daemons,
            proxy.haproxy(
                folder / "haproxy", proxy.on_loopback(PAGE.read_text(), port, daemons)
            ) as front,
            Load("127.0.0.1", port, mix, proxied=True) as load,
            asking(daemons, pause=think / 4) as features,
        ):
            acts = Acts("A fleet of three machines under load", load)
            yield Demo(daemons, features, cluster, front, acts)


@asynccontextmanager
async def asking(
    daemons: Mapping[str, DaemonProcess], *, pause: float
) -> AsyncIterator[dict[str, Feature]]:
    """Ask each machine for a feature meanwhile."""
    features = {host: Feature(daemon.public_port, pause) for host, daemon in daemons.items()}
    tasks = [asyncio.create_task(each.run()) for each in features.values()]
    try:
        yield features
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def hints(demo: Demo) -> str:
    """Return commands to try on the running fleet."""
    client = f"./scripts/atlasctl --env-file {demo.daemons['a'].env_file}"
    front = demo.acts.load.address
    return "\n".join(
        (
            "The fleet keeps running under load; Ctrl-C stops it. To try:",
            f"  curl http://{front[0]}:{front[1]}/",
            f"  {client} fleet status",
            f"  {client} fleet rollout 1.1 --follow",
            f"  {client} fleet reset",
            f"  http://127.0.0.1:{demo.daemons['a'].control_port}/",
        )
    )


async def demonstrate(*, once: bool) -> int:
    """Play it; return the exit status."""
    console = Console()
    if absent := missing():
        console.print(absent, highlight=False, markup=False)
        return 1
    ended = signalled()
    with tempfile.TemporaryDirectory(prefix="atlas-fleet-") as name:
        console.print("Starting etcd, three supervisors, HAProxy and clients on free ports …")
        async with stage(Path(name)) as demo:
            to_try = None if once else partial(hints, demo)
            status = await perform(console, demo.acts, play(demo), ended=ended, hints=to_try)
    conclusion = demo.acts.conclusion("the broken release was halted at its first machine.")
    console.print(conclusion, highlight=False, soft_wrap=True)
    return status
