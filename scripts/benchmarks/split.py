"""Whether a split gives what it says: its shares, addresses that stay, testers; and what it costs.

Every client is a real connection to the public port of a real daemon, from an address of its own in
127.0.0.0/8. The throughput with a split and without is measured in turn, in one run.
"""

from __future__ import annotations

import asyncio
import math
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from rich.table import Table

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic import Split, SteeringPolicy, listeners
from scripts.benchmarks.result import CannotRunError, Options, Result
from scripts.benchmarks.wrk import wrk
from tests.harness import DaemonProcess, Setting, missing, write_release

WORKER = Path(__file__).with_name("tiny_worker.py")
SHARES = (0.001, 0.01, 0.2, 0.5)
RAMP = (0.001, 0.01, 0.05, 0.2, 0.5, 1.0)
TESTERS = "127.200.0.0/16"
OUTSIDE = 0.001
"""How often a right share is outside of its interval."""
AT_ONCE = 32
SPLIT = 0.2
BARELY = 1e-6
"""A share so small that the same process serves as without a split: what the program costs."""
TARGET = 0.97


async def run(options: Options) -> Result:
    if absent := missing("wrk"):
        raise CannotRunError(f"install the package of this program first: {', '.join(absent)}")
    count, rounds, seconds = options.count or 10_000, options.rounds or 10, options.seconds or 1
    async with waiting() as daemon:
        shares = [await share_of(daemon, weight, count) for weight in SHARES]
        rates = await throughput(daemon, rounds, seconds)
    sticky: dict[str, Setting] = {"TRAFFIC_STICKY": "address", "TRAFFIC_TESTERS": TESTERS}
    async with waiting(**sticky) as daemon:
        ramp = await ramp_of(daemon, count)
    programs = {name: connect_us(policy) for name, policy in policies().items()}
    ratios = {
        weight: round(statistics.median(each[weight] / each[0.0] for each in rates), 3)
        for weight in (BARELY, SPLIT)
    }
    return Result(
        [share_table(shares), ramp_table(ramp), cost_table(rates, ratios, programs)],
        {
            "connections": count,
            "shares": shares,
            "ramp": ramp,
            "throughput_ratio": ratios,
            "connect_us": programs,
        },
        [
            f"an interval has all but {OUTSIDE:.1%} of what chance gives a right share",
            f"{rounds} rounds of {seconds} s each way; the target of the first ratio is {TARGET}",
            "with a split of 20 % two processes serve: better with idle cores, worse without",
        ],
    )


@asynccontextmanager
async def waiting(**settings: Setting) -> AsyncIterator[DaemonProcess]:
    """A daemon that serves v1, and v2 waits for its switch."""
    settings = {
        "WORKER_COMMAND": "python -S tiny_worker.py",
        "AUTO_SWITCH_ON_HEALTH": "false",
        "HEALTH_PROBES": 1,
        **settings,
    }
    files = {WORKER.name: WORKER.read_text()}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), settings, files=files) as daemon:
            write_release(daemon.worker_directory, "v2")
            answer = await daemon.deploy()
            if answer.json["result"] != "awaiting_switch":
                raise RuntimeError(f"the deploy does not wait: {answer}")
            yield daemon


async def set_weight(daemon: DaemonProcess, weight: float) -> None:
    answer = await daemon.request("POST", "/deploy/traffic", json={"staging_weight": weight})
    if answer.status != 200:
        raise RuntimeError(f"the traffic was not split: {answer}")


async def versions(daemon: DaemonProcess, sources: Sequence[str]) -> list[str]:
    """Return the version that each of these addresses gets on a connection of its own."""
    places = asyncio.Semaphore(AT_ONCE)

    async def version_for(source: str) -> str:
        async with places:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", daemon.public_port, local_addr=(source, 0)
            )
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return (await reader.read()).rpartition(b"\n")[2].decode()
            finally:
                writer.close()

    return await asyncio.gather(*map(version_for, sources))


async def share_of(daemon: DaemonProcess, weight: float, count: int) -> dict[str, Any]:
    await set_weight(daemon, weight)
    found = (await versions(daemon, ["127.0.0.1"] * count)).count("v2")
    low, high = interval(count, weight)
    return {"weight": weight, "v2": found, "of": count, "low": low, "high": high}


def interval(count: int, share: float) -> tuple[int, int]:
    """Return the bounds between which a binomial number is but for `OUTSIDE`, half on each side."""

    def log_odds(k: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        return ways + k * math.log(share) + (count - k) * math.log1p(-share)

    low, below, high = 0, 0.0, count
    while (below := below + math.exp(log_odds(low))) < OUTSIDE / 2:
        low += 1
    above = 0.0
    while (above := above + math.exp(log_odds(high))) < OUTSIDE / 2:
        high -= 1
    return low, high


async def ramp_of(daemon: DaemonProcess, count: int) -> list[dict[str, Any]]:
    """Grow the share, and see who has v2 at each step."""
    sites = [f"127.{64 + number // 256}.{number % 256}" for number in range(count)]
    clients = [f"{site}.9" for site in sites]
    testers = [f"127.200.{number}.1" for number in range(256)]
    steps: list[dict[str, Any]] = []
    have: list[set[str]] = []
    for weight in RAMP:
        await set_weight(daemon, weight)
        found = await versions(daemon, clients)
        have.append({who for who, version in zip(clients, found, strict=True) if version == "v2"})
        steps.append(
            {
                "weight": weight,
                "v2": len(have[-1]),
                "of": len(clients),
                "went_back": len(have[-2] - have[-1]) if len(have) > 1 else 0,
                "testers": (await versions(daemon, testers)).count("v2") / len(testers),
            }
        )
    return steps


async def throughput(
    daemon: DaemonProcess, rounds: int, seconds: float
) -> list[dict[float, float]]:
    """Return requests per second by the share, of each round."""
    measured = []
    for number in range(rounds + 1):
        rates = dict[float, float]()
        for weight in (0.0, BARELY, SPLIT) if number % 2 else (SPLIT, BARELY, 0.0):
            await set_weight(daemon, weight)
            figures = await wrk(
                daemon.folder,
                f"http://127.0.0.1:{daemon.public_port}/",
                seconds=seconds,
                connections=16,
                keep_alive=False,
            )
            rates[weight] = figures.requests_per_second
        if number:  # the first round warms up
            measured.append(rates)
    return measured


def policies() -> dict[str, SteeringPolicy]:
    testers = tuple(ip_network(f"10.{number}.0.0/16") for number in range(32))
    blue = SlotName.BLUE
    return {
        "no split": SteeringPolicy(blue),
        "by connection": SteeringPolicy(blue, split=Split(SPLIT)),
        "by address, 32 networks": SteeringPolicy(blue, split=Split(SPLIT, True, 7, testers)),
    }


def connect_us(policy: SteeringPolicy, count: int = 5000) -> float:
    """Return the median time of a connection, without any worker."""
    times = []
    with ExitStack() as stack:
        group = listeners.open_group("127.0.0.1", 0, policy)
        for listener in group.values():
            stack.enter_context(listener)
        address = group[SlotName.BLUE].getsockname()
        for _ in range(count):
            began = time.perf_counter_ns()
            with socket.create_connection(address):
                times.append((time.perf_counter_ns() - began) / 1000)
                accept_one(group)
    return round(statistics.median(times), 2)


def accept_one(group: dict[SlotName, socket.socket]) -> None:
    for listener in group.values():
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            continue
        return


def share_table(shares: list[dict[str, Any]]) -> Table:
    shown = Table(title="Shares of new connections", title_justify="left")
    for column in ("weight", "got v2", "interval", "within"):
        shown.add_column(column, justify="right")
    for each in shares:
        within = each["low"] <= each["v2"] <= each["high"]
        bounds = f"{each['low']:,} to {each['high']:,}"
        shown.add_row(
            f"{each['weight']:.1%}", f"{each['v2']:,} of {each['of']:,}", bounds, _sign(within)
        )
    return shown


def ramp_table(ramp: list[dict[str, Any]]) -> Table:
    shown = Table(title="Client addresses over a growing share", title_justify="left")
    for column in ("weight", "have v2", "went back", "testers with v2"):
        shown.add_column(column, justify="right")
    for each in ramp:
        shown.add_row(
            f"{each['weight']:.1%}",
            f"{each['v2']:,} of {each['of']:,}",
            str(each["went_back"]),
            f"{each['testers']:.0%}",
        )
    return shown


def cost_table(
    rates: list[dict[float, float]], ratios: dict[float, float], programs: dict[str, float]
) -> Table:
    shown = Table(title="What it costs", title_justify="left")
    shown.add_column("")
    shown.add_column("", justify="right")
    for weight in rates[0]:
        rate = statistics.median(each[weight] for each in rates)
        shown.add_row(f"requests/s with a share of {weight:g}", f"{rate:,.0f}")
    for weight, ratio in ratios.items():
        shown.add_row(f"median ratio, {weight:g} to none", f"{ratio:.3f}")
    for name, median in programs.items():
        shown.add_row(f"one connection, {name}", f"{median:.1f} µs")
    return shown


def _sign(fine: bool) -> str:
    return "yes" if fine else "NO"
