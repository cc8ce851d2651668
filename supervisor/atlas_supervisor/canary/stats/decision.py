"""Decides: the verdict on one feature's ramp.

`RampEvidence` holds all tests of a ramp. `conclusion` is what a daemon's poll needs; `decision`
adds the numbers and the forecast that a reader is shown.

Invariants
- A wrongful rollback has at most the probability alpha, over all features and rounds: the mean of
  two e-processes is one, rounds divide alpha by fixed parts that add up to 1, and features share it
  by Holm's rule on the largest evidence of each. Rounds are added by the union bound and not as a
  mean or a product, because each has its own past: the same keys have the same arms on each day.
- What is known of keys (`Keys`) is for forecasts, never for a verdict.
- A rollback for errors needs a canary call that failed, and a least number of canary calls: the
  fallback, which is a rule for the same calls, goes first. That only withholds rollbacks.
- A rollback stays one; a promotion goes by the present evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from atlas_supervisor.canary.stats import explain
from atlas_supervisor.canary.stats.bets import exponential, log_add
from atlas_supervisor.canary.stats.counts import Arm, CallWindow, Draws, Prior, Strata, is_drawn
from atlas_supervisor.canary.stats.forecast import (
    LEAST_CALLS,
    Keys,
    Outlook,
    Rates,
    Shortage,
    calls_needed,
    expected_rates,
)
from atlas_supervisor.canary.stats.intervals import stratified_difference
from atlas_supervisor.canary.stats.rollups import Course, EvidencePoint
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios, check_ratio
from atlas_supervisor.canary.stats.windows import Windows
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.verdict import Verdict

ERRORS_PART = 0.6
"""The weight of the errors in a rollback. Latency gets the rest: it says more per call."""

FIRST_ROUND = 0.9
"""The part of alpha for the first round: most ramps are over before the second."""

_ROUND_PRIOR_CALLS = 50.0
_NONE = -50.0
"""The logarithm of evidence that is as good as none: JSON has no infinity."""


class EvidenceKind(StrEnum):
    """The evidence that a verdict rests on."""

    ERRORS = "errors"
    LATENCY = "latency"
    PROMOTION = "promotion"
    RATIO = "ratio"
    """A sample ratio mismatch withholds the promotion."""
    WAITING = "waiting"
    """Not enough evidence yet."""


@dataclass(frozen=True)
class Conclusion:
    """A verdict: `pass` means promote, `fail` roll back, and `inconclusive` hold: never ship."""

    verdict: Verdict
    kind: EvidenceKind
    reason: str
    """One sentence for a reader."""


@dataclass(frozen=True)
class Decision(Conclusion):
    """A verdict with its numbers."""

    numbers: Mapping[str, Any]
    """JSON values."""
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def needs(self) -> int | None:
        """A forecast of the canary calls until a verdict; None with a verdict, or if unknown."""
        return self.outlook.needs


class RampEvidence:
    """The evidence about one feature over one ramp; it carries over the ramp's steps.

    Alpha is divided over the rounds: the first one has FIRST_ROUND of it, round k from 2 on
    (1 - FIRST_ROUND) / (k (k - 1)). Within a round, a rollback goes by 0.6 of the evidence by
    errors plus 0.4 of that by latency.

    `alpha` is the probability of a wrongful rollback in the ramps of all features together.
    `promote_alpha` is that of promoting this feature although its error rate is higher by `margin`
    or more. `prior` is the error rate assumed beforehand, and `past` are stable's latencies. Errors
    are no reason for a rollback before `least_calls` canary calls have an outcome.
    """

    def __init__(
        self,
        feature: str,
        ramp: int = 0,
        *,
        alpha: float = 0.01,
        promote_alpha: float = 0.05,
        margin: float = 0.02,
        latency_margin: float = 0.1,
        prior: Prior | None = None,
        past: Histogram | None = None,
        least_calls: int = 0,
    ) -> None:
        for each in (alpha, promote_alpha):
            if not 0 < each < 1:
                raise ValueError(f"alpha is between 0 and 1, not {each}")
        self.feature, self.alpha, self.promote_alpha = feature, alpha, promote_alpha
        self.least_calls = max(least_calls, 1)
        self.windows = Windows(ramp)
        self.first = RoundEvidence(margin, latency_margin, prior, past)
        self.later: tuple[int, RoundEvidence] | None = None
        """The present round if it is not the first, with its number."""
        self.failed: EvidenceKind | None = None
        """What has led to a rollback, which is final."""
        self.largest = 0.0
        """The logarithm of the largest evidence for a rollback so far."""
        self.course = Course()
        self._kind = EvidenceKind.ERRORS
        self._closed = Strata()
        self._open: Sequence[CallWindow] = ()
        self._now: dict[int, RoundEvidence] = {}
        """The rounds with the open windows multiplied in."""

    # Windows.

    def start_round(self, number: int) -> None:
        """Start a later round, in which all keys count anew."""
        self.later = number, self._new_round()
        self.windows.start_round(number)

    def _new_round(self) -> RoundEvidence:
        margin, latency_margin = self.first.margin, self.first.latency_margin
        prior = Prior(self.first.rate, _ROUND_PRIOR_CALLS)
        return RoundEvidence(margin, latency_margin, prior)

    def close(self, window: CallWindow) -> None:
        """Multiply the next window in, all of whose calls have ended."""
        number = window.stratum.round
        if (found := self._rounds().get(number)) is None:
            return
        found.close(window)
        self._note_largest(found, number)
        if not window.stratum.twice:
            self._closed.add(*_counts_of(window))
        self._now = {}

    def judge(self, windows: Sequence[CallWindow], now: int) -> None:
        """Multiply lower bounds of the open windows in; `now` is the current slice."""
        rounds = {number: each.copy() for number, each in self._rounds().items()}
        for window in windows:
            if (found := rounds.get(window.stratum.round)) is not None:
                found.extend(window, now)
                self._note_largest(found, window.stratum.round, last=window is windows[-1])
        self._open, self._now = tuple(windows), rounds

    def _rounds(self) -> dict[int, RoundEvidence]:
        return {1: self.first, **({self.later[0]: self.later[1]} if self.later else {})}

    def _note_largest(self, found: RoundEvidence, number: int, *, last: bool = True) -> None:
        """Keep the largest evidence; without a canary error only latency is evidence.

        Before the last window it is computed only if it may be enough.
        """
        if not last and max(found.errors.log_bound, found.latency.log_bound) < -math.log(
            self.alpha
        ):
            return
        errors = math.log(ERRORS_PART) + found.errors.log_e
        latency = math.log1p(-ERRORS_PART) + found.latency.log_e
        counts = found.canary_errors > 0 and found.canary_calls >= self.least_calls
        log = _log_weight(number) + (log_add(errors, latency) if counts else latency)
        if log > self.largest:
            by_errors = counts and errors >= latency
            self._kind = EvidenceKind.ERRORS if by_errors else EvidenceKind.LATENCY
            self.largest = log

    @property
    def totals(self) -> Strata:
        """The calls with an outcome, by share; those of open windows included."""
        totals = Strata(dict(self._closed.by_share), self._closed.last_share)
        for window in self._open:
            if not window.stratum.twice:
                totals.add(*_counts_of(window))
        return totals

    # Verdicts.

    def fail(self) -> None:
        """Make the present evidence for a rollback final."""
        self.failed = self.failed or self._kind

    @property
    def promotes(self) -> bool:
        """Whether the present evidence promotes."""
        return self._log_promotion >= -math.log(self.promote_alpha)

    @property
    def _log_promotion(self) -> float:
        number, found = self._nearest_promotion()
        return found.log_promotion + _log_weight(number)

    def _nearest_promotion(self) -> tuple[int, RoundEvidence]:
        """Return the round whose evidence for a promotion is largest, given its part of alpha."""
        return max(
            self._present().items(),
            key=lambda each: each[1].log_promotion + _log_weight(each[0]),
        )

    def note(self, unix: float, parts: int) -> None:
        """Note the present evidence in its course if it is time; alpha is divided by `parts`."""
        if self.course.is_due(unix):
            logs = self.largest, max(self._log_promotion, _NONE), math.log(parts / self.alpha)
            self.course.add(EvidencePoint(unix, *(round(each, 3) for each in logs)))

    def _present(self) -> dict[int, RoundEvidence]:
        return self._now or self._rounds()

    def conclusion(self, parts: int = 1, *, may_promote: bool = True) -> Conclusion | None:
        """Return the verdict reached, if any; a rollback stays one.

        `parts` is the number of features that alpha is divided by. A sample ratio mismatch
        withholds a promotion. It does not withhold a rollback: that would keep a bad canary in
        traffic.
        """
        if self.failed is EvidenceKind.ERRORS:
            reason = explain.fails_more(self.feature, self.totals, self.alpha / parts)
            return Conclusion(Verdict.FAIL, self.failed, reason)
        if self.failed is not None:
            return Conclusion(Verdict.FAIL, self.failed, self._is_slower(parts))
        if may_promote and self.promotes and self.ratios().fit:
            margin, alpha = self.first.margin, self.promote_alpha
            reason = explain.is_no_worse(self.feature, self.totals, margin, alpha)
            return Conclusion(Verdict.PASS, EvidenceKind.PROMOTION, reason)
        return None

    def decision(self, parts: int = 1, keys: Keys | None = None) -> Decision:
        """Return the current verdict with its reason, numbers and forecast."""
        ratios = self.ratios()
        numbers = self._numbers(ratios, parts)
        if (reached := self.conclusion(parts)) is not None:
            return Decision(reached.verdict, reached.kind, reached.reason, numbers)
        if not ratios.fit:
            mismatch = explain.sample_ratio_mismatch(ratios)
            reason = f"{self.feature}: {mismatch}; no promotion meanwhile"
            return Decision(Verdict.INCONCLUSIVE, EvidenceKind.RATIO, reason, numbers)
        keys = keys or Keys()
        outlook = self._outlook(parts, keys)
        reason = explain.inconclusive(self.feature, self.totals, outlook, keys.anew_seconds)
        return Decision(Verdict.INCONCLUSIVE, EvidenceKind.WAITING, reason, numbers, outlook)

    def ratios(self) -> SampleRatios:
        """Return whether assignments and reports fit the canary's share."""
        windows = self.windows
        return SampleRatios(check_ratio(windows.assigned), check_ratio(windows.unreported))

    def _is_slower(self, parts: int) -> str:
        found = self._latest()[1]
        if found.placement is None:
            found = self.first
        if found.placement is None:  # an earlier version has placed it
            against = explain.odds(parts / self.alpha)
            return f"{self.feature}: canary calls are slower; odds against chance are {against}"
        return explain.is_slower(self.feature, found, found.placement, self.alpha / parts)

    def _latest(self) -> tuple[int, RoundEvidence]:
        number = self.later[0] if self.later else 1
        return number, self._present()[number]

    def _outlook(self, parts: int, keys: Keys) -> Outlook:
        """Forecast the canary calls until the first verdict, of either kind.

        If the keys are known and can't bring them, what it takes instead.
        """
        rates, present = self._expected_rates(keys), dict(self._present())
        if rates is None:
            return Outlook(keyed=keys.used)
        to_come, latest = dict.fromkeys(present, math.inf), max(present)
        if keys.all_known:
            to_come[latest] = (keys.calling - keys.called_today) * keys.share
            to_come[1] = keys.drawn_at(keys.share)[0]
            present[latest + 1] = self._new_round()
            to_come[latest + 1] = keys.calling * keys.share
        needs = {n: self._calls_needed(n, each, parts, rates) for n, each in present.items()}
        found = [(each, n) for n, each in needs.items() if each is not None and each <= to_come[n]]
        if not found:
            shortage = self._shortage(parts, rates, keys) if keys.all_known else None
            return Outlook(keyed=keys.used, shortage=shortage)
        least, number = min(found)
        others = least - keys.drawn_at(keys.share)[0]
        if number > 1 or keys.all_known or not keys.share or others <= 0:
            return Outlook(least, keys.used)
        return Outlook(least, keys.used, math.ceil(others / keys.share))

    def _expected_rates(self, keys: Keys) -> Rates | None:
        """Return the rates that a forecast is for; None if it is too early for one."""
        totals, share = self.totals, keys.share
        if keys.all_known and totals.stable.calls < LEAST_CALLS:
            return Rates(share, self.first.rate, self.first.rate) if is_drawn(share) else None
        least = 0 if keys.all_known else LEAST_CALLS
        return expected_rates(share or totals.last_share, totals.canary, totals.stable, least)

    def _shortage(self, parts: int, rates: Rates, keys: Keys) -> Shortage | None:
        """Return the calls missing at the ramp's last share; None if the keys suffice there."""
        at = keys.last_share
        missing = self._missing_calls(at, parts, rates, keys)
        if missing is not None and missing <= 0:
            return None
        more = None if missing is None else math.ceil(missing / at)
        for percents in range(5, 100, 5):
            missing = self._missing_calls(share := percents / 100, parts, rates, keys)
            if share > at and missing is not None and missing <= 0:
                return Shortage(keys.calling, at, more, share)
        return Shortage(keys.calling, at, more, None)

    def _missing_calls(self, share: float, parts: int, rates: Rates, keys: Keys) -> float | None:
        """Return the canary calls that a verdict lacks after all keys' first calls at a share."""
        canary, drawn = keys.drawn_at(share)
        at = replace(rates, share=canary / drawn if drawn else share)
        needed = self._calls_needed(1, self._present()[1], parts, at)
        return None if needed is None else needed - canary

    def _calls_needed(
        self, number: int, found: RoundEvidence, parts: int, rates: Rates
    ) -> int | None:
        """Return the canary calls until a round's first verdict, of either kind."""
        rollback = math.log(parts / self.alpha) - _log_weight(number)
        return calls_needed(
            found,
            rates,
            errors=rollback - math.log(ERRORS_PART),
            latency=rollback - math.log1p(-ERRORS_PART),
            promotion=-math.log(self.promote_alpha) - _log_weight(number),
        )

    def _numbers(self, ratios: SampleRatios, parts: int) -> dict[str, Any]:
        totals = self.totals
        difference = stratified_difference(totals.by_share.values())
        rollback, latest, promoting = parts / self.alpha, self._latest(), self._nearest_promotion()
        by_kind = {
            EvidenceKind.ERRORS: (latest, latest[1].errors.log_e, rollback / ERRORS_PART),
            EvidenceKind.LATENCY: (latest, latest[1].latency.log_e, rollback / (1 - ERRORS_PART)),
            EvidenceKind.PROMOTION: (
                promoting,
                promoting[1].log_promotion,
                1 / self.promote_alpha,
            ),
        }
        return {
            "canary": {"calls": totals.canary.calls, "errors": totals.canary.errors},
            "stable": {"calls": totals.stable.calls, "errors": totals.stable.errors},
            "canary_error_rate": totals.canary.rate,
            "stable_error_rate": totals.stable_rate,
            "difference": difference and asdict(difference),
            "margin": self.first.margin,
            "evidence": {
                "rollback": {"e_value": exponential(self.largest), "needed": rollback},
                **{
                    kind.value: {
                        "e_value": exponential(log),
                        "needed": needed / exponential(_log_weight(number)),
                    }
                    for kind, ((number, _), log, needed) in by_kind.items()
                },
            },
            "sample_ratio": asdict(ratios.assigned),
            "unreported_ratio": asdict(ratios.unreported),
        }

    # Saved state.

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "feature": self.feature,
            "settings": [self.alpha, self.promote_alpha, self.least_calls],
            "first": self.first.to_dict(),
            "later": self.later and [self.later[0], self.later[1].to_dict()],
            "failed": self.failed and self.failed.value,
            "largest": [self.largest, self._kind.value],
            "totals": self._closed.to_list(),
            "course": self.course.points,
            "windows": self.windows.to_dict(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], *, same_boot: bool = True) -> RampEvidence:
        """Return the saved state; after a reboot without the open windows."""
        alpha, promote_alpha, least = saved["settings"]
        evidence = cls(
            saved["feature"], alpha=alpha, promote_alpha=promote_alpha, least_calls=least
        )
        evidence.first = RoundEvidence.from_dict(saved["first"])
        if saved["later"] is not None:
            number, later = saved["later"]
            evidence.later = number, RoundEvidence.from_dict(later)
        evidence.failed = saved["failed"] and EvidenceKind(saved["failed"])
        evidence.largest, kind = saved["largest"]
        evidence._kind = EvidenceKind(kind)
        evidence.course = Course(saved.get("course", ()))
        evidence._closed = Strata.from_list(saved["totals"])
        evidence.windows = Windows.from_dict(saved["windows"], same_boot=same_boot)
        return evidence

    def carry_over(self, saved: Mapping[str, Any]) -> None:
        """Take over the evidence that a version before rounds has saved (database schema 6)."""
        self.first.carry_over(saved)
        for kind in (EvidenceKind.ERRORS, EvidenceKind.LATENCY):
            test = saved[kind.value]
            if test["highest"] >= -math.log(test["alpha"]):
                self.failed = self.failed or kind
        self._closed = Strata.from_list(saved["totals"])
        for name in ("assigned", "unreported"):
            setattr(self.windows, name, Draws.from_list(saved.get(name, ())))


def needed_in_ramp(alpha: float) -> float:
    """Return the logarithm that a test of the first round needs."""
    return -math.log(alpha) - _log_weight(1)


def _log_weight(number: int) -> float:
    """Return the logarithm of the part of alpha that a round has."""
    if number == 1:
        return math.log(FIRST_ROUND)
    return math.log((1 - FIRST_ROUND) / (number * (number - 1)))


def _counts_of(window: CallWindow) -> tuple[float, Arm, Arm]:
    return window.stratum.share, window.canary.arm, window.stable.arm
