"""The evidence of users' requests about a new version that runs beside the old one.

Theory. It is that of feature canaries (`canary.stats`, docs/canary.md): the new version is the
canary, the old one is stable, and new connections are drawn between them with a known share. Only
what a call is differs.

- The unit is the first request of a connection. Later ones are no draws: a client that stays on its
  connection, and whose requests all fail, would count as a hundred independent failures.
- A window is a second of the machine's clock. It is opened once that second is over, so nothing of
  it can be missing, and its terms follow from earlier windows. It has the requests that *began* in
  it; those without an outcome count as they are worst. After a minute they stay without one: no
  failures, but the slowest of all. They may be streams.
- Where addresses are drawn, the unit is an address, and its first request at a share is evidence:
  it is drawn anew when the share has changed, as a key of a feature canary is. A window has the
  addresses of a second that had the same chance. After an hour, and if what was read of addresses
  is lost (a restart), all count anew in a round with its own part of alpha.
- Windows are opened for seconds with one known share in which both versions count. A request begins
  within a second of its connection's beginning, so seconds that may have connections drawn with
  another share are left out: that of a change and the next two. Which seconds these are depends on
  no outcome.
- After a restart windows without an end are closed with their lower bounds, and what began while no
  daemon read is left out. Neither depends on what would have followed.
- More first requests of the new version than its share cannot be explained by what it does. Then
  something else chooses (`sample_ratio`), and there is no verdict against it; with any mismatch
  there is none for it.
"""

from __future__ import annotations

import math
import time
from typing import Any

from atlas_supervisor.canary.stats.bets import exponential
from atlas_supervisor.canary.stats.counts import (
    MAX_RATE,
    Arm,
    CallWindow,
    OpenCalls,
    Prior,
    Stratum,
    is_drawn,
)
from atlas_supervisor.canary.stats.decision import Conclusion, EvidenceKind, RampEvidence
from atlas_supervisor.canary.stats.explain import amount, odds, percent, points
from atlas_supervisor.canary.stats.windows import SLICES_PER_SECOND
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.judgement import Judgement, VersionFigures
from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, RequestTotals
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.firsts import Assigned
from atlas_worker.contract import SLOWEST_BUCKET
from atlas_worker.contract.request_file import BUCKETS_PER_CLASS, CLASSES_BELOW, latency_class

CHANGE_SECONDS = 3
"""Seconds without evidence from the one of a changed share on."""

ROUND_SECONDS = 3600
"""After so long all addresses count anew."""
_MOST_PRIOR = 1_000
_UNCOUNTED_AFTER = 20
"""So many requests of a version without a first one among them, and it counts none."""


class Comparison:
    """Compares two instances while new connections are drawn between them with a known share.

    Alpha, the margins and what is drawn are the collector's `rules`.
    """

    def __init__(
        self, requests: RequestCollector, *, new: str, old: str, saved: dict[str, Any] | None = None
    ) -> None:
        """Compare the instances named `new` and `old`; `saved` is what `saved` has returned.

        What began since it was saved is left out. An instance may be another one of its version.
        """
        self._requests, self._new, self._old = requests, new, old
        self._open: list[tuple[CallWindow, Assigned]] = []
        requests.firsts.compare(new, old)
        self._since, self._round_at = requests.firsts.since, time.monotonic()
        self._before = {name: self._counted(name) for name in (new, old)}
        if saved:
            self._evidence = RampEvidence.from_dict(saved["evidence"])
            known = saved["before"].keys() & self._before
            self._before |= {name: RequestTotals.unpacked(saved["before"][name]) for name in known}
            self._number, self._weight = saved["number"], saved["weight"]
            self._since = saved.get("since", -1)
        else:
            self._evidence, self._number, self._weight = self._begin(), 0, 0.0
        self._next = _after_change()
        """The first second that is no window yet."""

    def _begin(self) -> RampEvidence:
        """Return evidence that starts from what the old version has counted so far."""
        rules, past, least = self._requests.rules, self._counted(self._old), Prior()
        ended = past.counts.ended
        errors = least.mean * least.weight + past.counts.failed
        return RampEvidence(
            "requests",
            alpha=rules.alpha,
            promote_alpha=rules.promote_alpha,
            margin=rules.margin,
            latency_margin=rules.latency_margin,
            prior=Prior(
                min(errors / (least.weight + ended), MAX_RATE),
                min(max(ended, least.weight), _MOST_PRIOR),
            ),
            past=Histogram((_slowest(latency_class(at)), count) for at, count in past.latency),
        )

    def _counted(self, name: str) -> RequestTotals:
        return self._requests.totals(name) or RequestTotals()

    def set_weight(self, weight: float) -> None:
        """Note the share of new connections that the new version gets from now on.

        To be called before the next look after the change; the same share again changes nothing.
        After a restart it is the share that was saved.
        """
        if weight != self._weight:
            self._weight, self._next = weight, _after_change()

    def look(self) -> Judgement:
        """Return the verdict so far; to be called about once a second."""
        now = time.monotonic()
        if self._requests.rules.by_address:
            self._start_round_if_due(now)
        self._open_windows()
        for opened in self._open:
            self._count(*opened, now)
        while self._open and not self._open[0][0].open:
            self._evidence.close(self._open.pop(0)[0])
        self._evidence.judge([window for window, _ in self._open], _slice(now))
        if self._evidence.largest >= -math.log(self._evidence.alpha) and not self._is_favoured:
            self._evidence.fail()
        return self._judgement()

    def saved(self) -> dict[str, Any]:
        """Return the state for the next daemon, as JSON's types."""
        evidence = RampEvidence.from_dict(self._evidence.to_dict())
        for window, _ in self._open:
            evidence.close(window)
            window.changed = True  # what was computed here is of its lower bound
        return {
            "evidence": evidence.to_dict(),
            "before": {name: each.packed() for name, each in self._before.items()},
            "number": self._number,
            "weight": self._weight,
            "since": self._since,
        }

    # Windows.

    @property
    def _round(self) -> int:
        return self._evidence.later[0] if self._evidence.later else 1

    def _start_round_if_due(self, now: float) -> None:
        """Let addresses count anew, if those that have counted are not known, or after an hour."""
        since = self._requests.firsts.since
        if since != self._since or now - self._round_at > ROUND_SECONDS:
            if self._number:
                self._evidence.start_round(self._round + 1)
            self._requests.firsts.start_round()
            self._since, self._round_at = since, now

    def _open_windows(self) -> None:
        """Open a window for each second that is over, if it is evidence."""
        firsts = self._requests.firsts
        before = firsts.whole_before()
        counted = {self._new, self._old} <= firsts.counting
        if is_drawn(self._weight) and counted:
            for second in range(self._next, before):
                for each in firsts.assigned(second, self._weight, self._new, self._old):
                    self._open_window(second, each)
        self._next = max(self._next, before)

    def _open_window(self, second: int, assigned: Assigned) -> None:
        chance, *keys = assigned
        names = zip((self._new, self._old), keys, strict=True)
        new, old = (self._requests.firsts.of(name, second, of).begun for name, of in names)
        at, stratum = _slice(second), Stratum(0, chance, self._round)
        self._open.append((CallWindow(self._number, stratum, at, at, new + old), assigned))
        self._number += 1
        if stratum.round == 1:
            for count, canary in ((new, True), (old, False)):
                self._evidence.windows.assigned.add(chance, count, canary=canary)

    def _count(self, window: CallWindow, assigned: Assigned, now: float) -> None:
        """Take what is known by now of the requests of a window."""
        second = window.since // SLICES_PER_SECOND
        sealed = second + SEALED_AFTER_SECONDS <= now
        for name, side, keys in (
            (self._new, window.canary, assigned.new),
            (self._old, window.stable, assigned.old),
        ):
            canary, found = side is window.canary, self._requests.firsts.of(name, second, keys)
            ended, calls = found.ended, OpenCalls(window.since + 1, canary, asked=False)
            if ended == side.calls and window.open.get(calls, 0) == found.open and not sealed:
                continue
            window.changed = True
            bucket = _fastest if canary else _slowest
            side.calls, side.errors = ended, min(found.failed, ended)
            side.latency = {bucket(latency): count for latency, count in found.latency.items()}
            window.open.pop(calls, None)
            if found.open and sealed:
                side.calls += found.open
                side.latency[SLOWEST_BUCKET] = side.latency.get(SLOWEST_BUCKET, 0) + found.open
            elif found.open:
                window.open[calls] = found.open

    # Results.

    @property
    def _is_favoured(self) -> bool:
        """Whether the new version gets more of the first requests than its share."""
        found = self._evidence.ratios().assigned
        return not found.fits and (found.observed or 0) > (found.expected or 0)

    def _judgement(self) -> Judgement:
        new, old = self._figures(self._new), self._figures(self._old)
        conclusion = self._evidence.conclusion()
        return Judgement(
            verdict=conclusion.verdict if conclusion else Verdict.INCONCLUSIVE,
            against=exponential(self._evidence.largest) if self._number else None,
            why=self._why(conclusion, new, old),
            new=new,
            old=old,
        )

    def _figures(self, name: str) -> VersionFigures | None:
        if (found := self._requests.totals(name)) is None:
            return None
        return VersionFigures.of(found.since(self._before[name]))

    def _why(
        self,
        conclusion: Conclusion | None,
        new: VersionFigures | None,
        old: VersionFigures | None,
    ) -> str:
        evidence, totals = self._evidence, self._evidence.totals
        unit = "addresses" if self._requests.rules.by_address else "first requests"
        rates = (
            f"{_failed(totals.canary, unit)} of the new version failed, "
            f"{_failed(totals.stable, unit, totals.stable_rate)} of the old one"
        )
        if beyond := self._requests.firsts.overflow:
            rates += f" ({amount(beyond)} addresses too many to count)"
        if conclusion and conclusion.verdict is Verdict.PASS:
            return (
                f"{rates}; a rate higher by {points(evidence.first.margin)} or more is ruled out "
                f"at odds of {odds(1 / evidence.promote_alpha)}"
            )
        if conclusion:
            against = f"odds against chance are {odds(1 / evidence.alpha)}"
            if conclusion.kind is EvidenceKind.LATENCY:
                rates = f"the new version is slower: {self._latency(self._new)}; "
                rates += f"the old one: {self._latency(self._old)}"
            return f"{rates}; {against}"
        return f"{rates}; {self._missing(new, old)}"

    def _latency(self, name: str) -> str:
        since = self._counted(name).since(self._before[name])
        p50, p95 = since.latency.quantiles(0.5, 0.95)
        took = f"{p50:.3g} ms in the median and {p95:.3g} ms at the 95th percentile" if p50 else ""
        unanswered = f"{amount(since.counts.open)} requests without an answer"
        return f"{took}, {unanswered}" if took else unanswered

    def _missing(self, new: VersionFigures | None, old: VersionFigures | None) -> str:
        """Return why there is no verdict yet."""
        totals, firsts = self._evidence.totals, self._requests.firsts
        if self._requests.rules.by_address and firsts.counting != firsts.names:
            return "they are not compared: one of them, or its relay, lists no addresses of clients"
        for which, figures, arm in (("new", new, totals.canary), ("old", old, totals.stable)):
            if figures is None or figures.requests >= _UNCOUNTED_AFTER > arm.calls == 0:
                return f"the {which} version does not count the first requests of connections"
        ratio = self._evidence.ratios().assigned
        if not ratio.fits:
            return (
                f"the new version got {percent(ratio.observed or 0)} of the connections where "
                f"{percent(ratio.expected or 0)} were to be drawn, so they can't be compared"
            )
        return "not enough for a verdict yet"


def _after_change() -> int:
    """Return the first second in which all connections have the share that is set now."""
    return int(time.monotonic()) + CHANGE_SECONDS


def _slice(second: float) -> int:
    return int(second * SLICES_PER_SECOND)


def _fastest(latency: int) -> int:
    """Return the first bucket of a class of latency."""
    return (latency + CLASSES_BELOW) * BUCKETS_PER_CLASS if latency else 0


def _slowest(latency: int) -> int:
    """Return the last bucket of a class of latency."""
    return min((latency + CLASSES_BELOW + 1) * BUCKETS_PER_CLASS - 1, SLOWEST_BUCKET)


def _failed(arm: Arm, unit: str, rate: float | None = None) -> str:
    rate = arm.rate if rate is None else rate
    return f"{percent(rate or 0)} of {amount(arm.calls)} {unit}"
