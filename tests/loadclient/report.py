"""What became of the requests: counted per kind of traffic, every loss kept with its story."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.loadclient.wire import Reason


@dataclass(frozen=True)
class Loss:
    """One lost request. `at` is in seconds since the load began, `nth` its place on its wire."""

    at: float
    kind: str
    token: str
    reason: Reason
    detail: str
    nth: int

    def __str__(self) -> str:
        return (
            f"{self.at:8.3f} s  {self.kind}, request {self.nth} of its connection:"
            f" {self.reason} ({self.detail})"
        )


@dataclass
class Tally:
    """One kind of traffic. `latencies` are those of answered requests, in milliseconds.

    A message on a WebSocket and an event count as a request each. `goodbyes` are the streams that
    the server ended properly, by close code, or 0 for server-sent events; `crossed` the messages
    that met the server's close frame on their way, which is nobody's fault. `latest` has the
    version that gave each client, by its number, its latest answer.
    """

    sent: int = 0
    answered: int = 0
    connections: int = 0
    idle_closes: int = 0
    announced_closes: int = 0
    losses: list[Loss] = field(default_factory=list)
    crossed: int = 0
    goodbyes: Counter[int] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    latest: dict[int, str] = field(default_factory=dict)
    latencies: array[float] = field(default_factory=lambda: array("d"))

    def latency_ms(self, quantile: float) -> float:
        """Return a quantile (0 to 1) of the answered requests' latencies; nan without any."""
        if not self.latencies:
            return math.nan
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


@dataclass
class Report:
    """The whole load, by the name of its kinds."""

    kinds: dict[str, Tally]

    def total(self) -> Tally:
        """Return all kinds in one tally."""
        return summed(self.kinds.values())

    @property
    def sent(self) -> int:
        """How many requests were begun, over all kinds."""
        return sum(tally.sent for tally in self.kinds.values())

    @property
    def losses(self) -> list[Loss]:
        """Every loss, in the order of time."""
        every = (loss for tally in self.kinds.values() for loss in tally.losses)
        return sorted(every, key=lambda loss: loss.at)

    def describe(self) -> str:
        """Return a few lines for people: per kind the counts, then the first losses."""
        lines = [
            f"{name}: {tally.sent} sent, {len(tally.losses)} lost, {tally.connections} connections"
            f" ({tally.announced_closes} closes announced, {tally.idle_closes} closed while idle),"
            f" p50 {tally.latency_ms(0.5):.1f} ms, p99 {tally.latency_ms(0.99):.1f} ms,"
            f" max {tally.latency_ms(1):.1f} ms{goodbyes(tally)}"
            for name, tally in self.kinds.items()
        ]
        losses = self.losses
        lines += [f"  {loss}" for loss in losses[:20]]
        if len(losses) > 20:
            lines.append(f"  … and {len(losses) - 20} more")
        return "\n".join(lines)


def goodbyes(tally: Tally) -> str:
    """Return how the server ended streams, for people; nothing where it ended none."""
    if not tally.goodbyes:
        return ""
    told = ", ".join(f"{count} by {code or 'their end'}" for code, count in tally.goodbyes.items())
    return f"; streams told to go: {told}; {tally.crossed} messages crossed"


def summed(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up into a new one."""
    total = Tally()
    for tally in tallies:
        total.sent += tally.sent
        total.answered += tally.answered
        total.connections += tally.connections
        total.idle_closes += tally.idle_closes
        total.announced_closes += tally.announced_closes
        total.crossed += tally.crossed
        total.goodbyes += tally.goodbyes
        total.losses += tally.losses
        total.answered_by += tally.answered_by
        total.latencies.extend(tally.latencies)
    return total
