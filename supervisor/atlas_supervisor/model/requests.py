"""Counts of users' requests by version: what the ramp and the guard of a deploy judge by. Pure.

A request belongs to the second in which it began, with or without an outcome, so slow requests bias
nothing. Its outcome is the class of its status once the response has ended; "left" if its client
left before; "cut" if its process died before. A request without an outcome is open. A second is
sealed after `SLOW_SECONDS` and a little: what is open then stays so in its counts, which never
change again. A later outcome is in the totals alone.

Counts are cumulative for each instance, over its processes and over restarts of the daemon. So the
counts of an interval are a difference of two totals, and those of a window by beginnings a sum of
seconds.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract.request_file import CLASSES, SLOW_SECONDS

SEALED_AFTER_SECONDS = SLOW_SECONDS + 2
"""A second is sealed this long after its beginning."""


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests that began in an interval, by what has become of them."""

    begun: int = 0
    classes: tuple[int, ...] = (0,) * CLASSES
    """Responses that have ended, by class of status: 1xx to 5xx."""
    left: int = 0
    """Requests whose client left before the response had ended: no failure of the version."""
    cut: int = 0
    """Requests that were open when their process died: failures."""

    @property
    def ended(self) -> int:
        """Requests with an outcome that says something about the version."""
        return sum(self.classes) + self.cut

    @property
    def failed(self) -> int:
        """Requests that failed: 5xx, and cut."""
        return self.classes[-1] + self.cut

    @property
    def open(self) -> int:
        """Requests without an outcome."""
        return max(self.begun - self.ended - self.left, 0)

    @property
    def error_share(self) -> float | None:
        """Failed requests among the ended ones; None without any."""
        return self.failed / self.ended if self.ended else None

    def __add__(self, other: RequestCounts) -> RequestCounts:
        return self._with(other, 1)

    def __sub__(self, other: RequestCounts) -> RequestCounts:
        """Return the counts since `other`, an earlier total of the same instance."""
        return self._with(other, -1)

    def _with(self, other: RequestCounts, sign: int) -> RequestCounts:
        pairs = zip(self.classes, other.classes, strict=True)
        return RequestCounts(
            begun=self.begun + sign * other.begun,
            classes=tuple(mine + sign * theirs for mine, theirs in pairs),
            left=self.left + sign * other.left,
            cut=self.cut + sign * other.cut,
        )

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Self:
        """Return the counts whose fields went through JSON as a list."""
        begun, classes, left, cut = values
        return cls(begun, tuple(classes), left, cut)

    @classmethod
    def sum(cls, counts: Iterable[RequestCounts]) -> RequestCounts:
        """Return the sum of several counts."""
        total = cls()
        for each in counts:
            total += each
        return total


@dataclass(slots=True)
class FirstRequests:
    """The first requests of connections that began in one second: what evidence is made of."""

    begun: int = 0
    failed: int = 0
    """Those that ended with 5xx or were cut."""
    latency: dict[int, int] = field(default_factory=dict)
    """Those with an outcome, by `latency_class`. A client that left is one, and no failure."""

    @property
    def ended(self) -> int:
        """Those with an outcome."""
        return sum(self.latency.values())

    @property
    def open(self) -> int:
        """Those without an outcome."""
        return max(self.begun - self.ended, 0)

    def end(self, latency: int, count: int = 1, *, failed: int = 0) -> None:
        """Add outcomes of one class of latency."""
        self.latency[latency] = self.latency.get(latency, 0) + count
        self.failed += failed

    def add(self, other: FirstRequests) -> None:
        """Add those of another process, or what was counted since."""
        self.begun += other.begun
        self.failed += other.failed
        for latency, count in other.latency.items():
            self.end(latency, count)


@dataclass(frozen=True, slots=True)
class RequestSecond:
    """The requests of one instance that began in one second."""

    second: int
    """`int(time.monotonic())`: the clock of the whole machine, also after a daemon's restart."""
    counts: RequestCounts
    sealed: bool
    """Whether the counts are final."""


@dataclass(slots=True)
class RequestTotals:
    """Everything that one instance has counted, from its first request on."""

    counts: RequestCounts = field(default_factory=RequestCounts)
    latency: Histogram = field(default_factory=Histogram)
    """Of responses that have ended, until their end."""

    def copy(self) -> Self:
        """Return these totals, which later requests do not change."""
        return type(self)(self.counts, Histogram(self.latency))

    def packed(self) -> list[Any]:
        """Return the totals as JSON's types."""
        return [list(astuple(self.counts)), b64encode(self.latency.to_bytes()).decode()]

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> Self:
        """Return the totals that `packed` has returned. Raises ValueError for anything else."""
        counts, latency = packed
        return cls(RequestCounts.from_list(counts), Histogram.from_bytes(b64decode(latency)))

    def since(self, earlier: RequestTotals) -> RequestTotals:
        """Return the totals of the interval since an earlier copy of the same instance's."""
        before = dict(earlier.latency)
        # A killed daemon loses what its relay has counted of late.
        rest = ((at, max(count - before.get(at, 0), 0)) for at, count in self.latency)
        return RequestTotals(self.counts - earlier.counts, Histogram(rest))

    def add(self, other: RequestTotals) -> None:
        """Add those of another instance, process or minute."""
        self.counts += other.counts
        self.latency.merge(other.latency)


@dataclass(frozen=True, slots=True)
class RequestMinute:
    """What one version has counted in one minute, by the moment of its reading."""

    minute: int
    """Its beginning, in Unix time."""
    slot: str
    version: str
    totals: RequestTotals


class VersionMinute(BaseModel, frozen=True):
    """Users' requests that one version had in one minute."""

    ts: datetime = Field(description="When the minute began.")
    seconds: float = Field(description="How much of it is over: 60, or less of the present one.")
    version: str = Field(description="The version, whichever slot it ran in.")
    requests: int = Field(description="Requests that began.")
    failed: int = Field(description="Of those that ended, 5xx and cut by the end of a process.")
    error_share: float | None = Field(
        description="Share of those that ended which failed, 0 to 1; null if none ended."
    )
    p50_ms: float | None = Field(description="Median latency of those that ended; null: none did.")
    p95_ms: float | None = Field(description="95th percentile.")
    p99_ms: float | None = Field(description="99th percentile.")


class TrafficSwitch(BaseModel, frozen=True):
    """A moment at which all new connections went to another worker."""

    ts: datetime = Field(description="When it happened.")
    deploy_id: str = Field(description="The deploy that it belongs to.")
    version: str | None = Field(description="That deploy's version.")
    taken_back: bool = Field(
        description="False: this version got the traffic; true: it lost it to the one before."
    )
    recycled: bool = Field(description="Whether only a worker of the same version was replaced.")


class RequestHour(BaseModel, frozen=True):
    """Users' requests of the last hour, by version."""

    since_ts: datetime = Field(description="When the hour began.")
    until_ts: datetime = Field(description="The present moment.")
    minutes: list[VersionMinute] = Field(
        description="Each minute in which a version had requests, oldest first. What was counted "
        "while no daemon ran is in the minute in which the next one read it."
    )
    versions: dict[str, int] = Field(
        description="Each version of that time with a number for its colour, from 0: no other one "
        "has it, and it stays while the version is in the hour."
    )
    switches: list[TrafficSwitch] = Field(description="The switches of that time, oldest first.")
    uncounted: list[str] = Field(
        description="Versions of running workers that count no requests: they have no worker kit, "
        "or do not serve yet."
    )


class RecentRequests(BaseModel, frozen=True):
    """Users' requests of all versions in the last five minutes."""

    seconds: int = Field(
        description="The time that this is about: 300, or less if the daemon has been counting for "
        "less. What was requested while no daemon ran came at no known time and is left out."
    )
    requests: int = Field(description="Requests that began.")
    failed: int = Field(description="Responses with 5xx, and requests cut by a process's end.")


class RequestFigures(BaseModel, frozen=True):
    """What users' requests were like in the last minute."""

    per_second: float = Field(description="Requests per second.")
    error_share: float | None = Field(
        description="Share of responses with 5xx and of requests cut by the end of a process, from "
        "0 to 1; null without any."
    )
    p50_ms: float | None = Field(description="Median latency until the response had ended.")
    p95_ms: float | None = Field(description="95th percentile.")
    p99_ms: float | None = Field(description="99th percentile.")
