"""All that is known of calls, from the events of processes to judgements; it has no I/O.

What it holds can be written down at any moment and gone on with later, so that no window is lost
or counted twice over a crash. A reboot alone loses the windows of the last seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Self

from atlas_supervisor.canary.stats.counts import Window
from atlas_supervisor.canary.stats.decision import Decision, RampEvidence
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.outcomes import SLICES_PER_SECOND, CallOutcome, CallTracker
from atlas_supervisor.canary.stats.rollups import ArmTallies, Rollups
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.canary.stats.windows import GRACE_SLICES, Group, Sealed, Windows
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import CountsRow, EpochRow
from atlas_supervisor.system import procfs
from atlas_worker.contract import bucket_milliseconds
from atlas_worker.contract.ring import SLICE_SECONDS, SLICES, EventKind, RingEvent

_OUTCOMES = {0: CallOutcome.OK, 1: CallOutcome.ERROR, 2: CallOutcome.CANCELLED}


Observe = Callable[[str, str, float, int], None]
"""Told the feature, the arm (`canary` or `stable`), seconds, and how many calls took them."""


def unobserved(_feature: str, _arm: str, _seconds: float, _count: int) -> None:
    """Tell nobody."""


class Moment(NamedTuple):
    """Now, in both clocks: the slice that is not over yet, and Unix time in seconds."""

    slice: int
    unix: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks."""
        return cls(int(time.monotonic() / SLICE_SECONDS), time.time())

    def unix_of(self, piece: int) -> float:
        """Return when a slice was, in Unix time."""
        return self.unix - (self.slice - piece) / SLICES_PER_SECOND


class Kept(NamedTuple):
    """What an earlier daemon wrote down."""

    counts: Iterable[CountsRow] = ()
    epochs: Iterable[EpochRow] = ()
    keys: Iterable[tuple[int, int]] = ()
    progress: Mapping[str, str] = {}


class Evidence:
    """Takes events in, and answers what they amount to."""

    def __init__(self, settings: Settings, kept: Kept, observe: Observe = unobserved) -> None:
        self._settings = settings
        self._observe = observe
        self._epochs = {row.epoch: row for row in kept.epochs}
        self._windows = Windows()
        self._calls = CallTracker(self._windows)
        self.spans = Rollups(kept.counts)
        self._judges: dict[str, RampEvidence] = {}
        self._stable: dict[str, Histogram] = {}
        """How long stable calls took, as far as windows tell: what is slow follows from it."""
        self._step_calls: dict[int, int] = {}
        """Canary calls by epoch."""
        self._restore(kept)

    # What comes in.

    def begin_epoch(self, row: EpochRow, *, fresh: bool) -> None:
        """Let a feature's next epoch begin; `fresh` if it is the first one of its evidence."""
        self._epochs[row.epoch] = row
        if fresh or row.feature not in self._judges:
            self._judges[row.feature] = self._new_judge(row.feature)
        drawn = 0 < row.share < 1
        if drawn and self._judges[row.feature].fix_thresholds(self._stable_of(row.feature)):
            self._stable[row.feature] = Histogram()  # the next epoch goes by this one's calls

    def follow(self, ramps: Mapping[str, int]) -> None:
        """Tell which ramp of each feature goes on; of all others nothing is evidence."""
        self._windows.follow(
            {
                epoch: row.ramp
                for epoch, row in self._epochs.items()
                if ramps.get(row.feature) == row.ramp
            }
        )

    def take_in(
        self,
        ring: str,
        events: Mapping[RingEvent, int],
        keyed: Iterable[tuple[RingEvent, int]],
        now: Moment,
    ) -> None:
        """Take in what one process has told: first all that began, then what ended."""
        unwrapped: list[tuple[Group, RingEvent, int, int | None]] = [
            (self._group(event, now), event, count, None) for event, count in events.items()
        ]
        unwrapped += [(self._group(event, now), event, 1, key) for event, key in keyed]
        for group, event, count, key in unwrapped:
            if event.kind in (EventKind.BEGUN, EventKind.ASKED):
                self._calls.begin(ring, group, count, asked=event.kind == EventKind.ASKED, key=key)
        for group, event, count, key in unwrapped:
            outcome = _OUTCOMES.get(event.outcome, CallOutcome.ERROR)
            if event.kind == EventKind.RECORDED:
                self._calls.record(group, count, outcome, event.bucket)
            elif event.kind in (EventKind.ENDED, EventKind.TOLD):
                asked = event.kind == EventKind.TOLD
                self._calls.end(ring, group, count, outcome, event.bucket, asked=asked, key=key)

    def _group(self, event: RingEvent, now: Moment) -> Group:
        behind = (now.slice - event.slice_number) % SLICES
        if behind > SLICES // 2:  # ahead of us: its clock was read later than ours
            behind = max(behind - SLICES, -GRACE_SLICES)
        return Group(event.epoch, now.slice - behind, event.is_canary)

    def gone(self, ring: str, now: Moment) -> None:
        """Note that a process is gone, and all of its events were taken in."""
        self._calls.gone(ring, now.slice)

    def settle(self, now: Moment) -> bool:
        """Draw all conclusions; return whether anything has changed."""
        self._calls.expire(now.slice)
        news = self._calls.take()
        for group, tally in news.items():
            if (row := self._epochs.get(group.epoch)) is not None:
                at = now.unix_of(group.slice)
                self.spans.add(at, now.unix, group.epoch, tally, canary=group.canary)
                arm = "canary" if group.canary else "stable"
                for bucket, count in tally.latency:
                    self._observe(row.feature, arm, bucket_milliseconds(bucket) / 1000, count)
        self._note_drawn()
        sealed = self._windows.seal(now.slice)
        for window in sealed:
            self._multiply(window)
        return bool(news or sealed)

    def _note_drawn(self) -> None:
        assigned, unreported = self._windows.take_drawn()
        for (epoch, canary), count in assigned.items():
            row = self._epochs[epoch]
            self._judges[row.feature].assigned.add(row.share, count, canary=canary)
        for (epoch, canary), count in unreported.items():
            row = self._epochs[epoch]
            self._judges[row.feature].unreported.add(row.share, count, canary=canary)

    def _multiply(self, sealed: Sealed) -> None:
        row = self._epochs[sealed.epoch]
        judge = self._judges[row.feature]
        stable = self._stable_of(row.feature)
        if not judge.thresholds:
            judge.fix_thresholds(stable)
        slow = judge.slow(sealed.canary_latency, sealed.stable_latency)
        judge.update(Window(row.share, sealed.canary, sealed.stable), slow)
        stable.merge(sealed.stable_latency)
        calls = self._step_calls.get(sealed.epoch, 0)
        self._step_calls[sealed.epoch] = calls + sealed.canary.calls

    def _stable_of(self, feature: str) -> Histogram:
        return self._stable.setdefault(feature, Histogram())

    # What is known.

    def judgement(self, feature: str) -> Decision:
        """Return what the evidence of a feature's ramp says."""
        return self._judges[feature].verdict()

    def ratios(self, feature: str) -> SampleRatios:
        """Return whether the arms of a feature's ramp get their shares, and report them."""
        return self._judges[feature].ratios()

    def step_calls(self, epoch: int) -> int:
        """Return how many canary calls of an epoch are part of the evidence."""
        return self._step_calls.get(epoch, 0)

    def pending(self, ramp: int) -> int:
        """Return how many calls of a ramp are no evidence yet."""
        return self._windows.waiting(ramp)

    @property
    def late(self) -> int:
        """How many calls came too late to count, or for their window."""
        return self._calls.late + self._windows.late

    @property
    def overflown(self) -> int:
        """How many calls were of keys beyond those that a ramp remembers."""
        return self._windows.overflown

    def epoch(self, number: int) -> EpochRow | None:
        """Return an epoch; None if it is not known."""
        return self._epochs.get(number)

    def epochs(self) -> list[EpochRow]:
        """Return all epochs that are known, the oldest first."""
        return [self._epochs[number] for number in sorted(self._epochs)]

    def last_hour(self, now: float) -> dict[str, ArmTallies]:
        """Return the tallies of the last hour by feature; `now` is Unix time."""
        found = {feature: ArmTallies.none() for feature in self._judges}
        for epoch, both in self.spans.last_hour(now).items():
            found.setdefault(self._epochs[epoch].feature, ArmTallies.none()).add(both)
        return found

    # What is written down.

    def take_keys(self) -> list[tuple[int, int]]:
        """Return the keys that are new since they were last taken, each with its ramp."""
        return self._windows.take_keys()

    def progress(self) -> dict[str, str]:
        """Return all that is pending, by name as JSON."""
        judges = {name: judge.to_dict() for name, judge in self._judges.items()}
        stable = {name: list(latency) for name, latency in self._stable.items()}
        kept = {
            "boot": procfs.boot_id(),
            "calls": self._calls.to_list(),
            "windows": self._windows.to_dict(),
            "judges": judges,
            "stable": stable,
            "step_calls": list(self._step_calls.items()),
        }
        return {name: json.dumps(value) for name, value in kept.items()}

    def _restore(self, kept: Kept) -> None:
        ramp_of = {row.epoch: row.ramp for row in self._epochs.values()}
        if "boot" in kept.progress:
            self._restore_progress(kept.progress, ramp_of)
        self._windows.follow(ramp_of)
        for ramp in set(ramp_of.values()):
            self._windows.know_keys(ramp, (key for of, key in kept.keys if of == ramp))
        missing = set(self._settings.canary_features) - set(self._judges)
        for name in missing & {row.feature for row in self._epochs.values()}:
            self._judges[name] = self._new_judge(name)

    def _restore_progress(self, progress: Mapping[str, str], ramp_of: Mapping[int, int]) -> None:
        found = {name: json.loads(text) for name, text in progress.items()}
        if found["boot"] == procfs.boot_id():  # slices are of a clock that a reboot sets to 0
            self._windows = Windows.from_dict(found["windows"], ramp_of)
            self._calls = CallTracker.from_list(self._windows, found["calls"])
        self._judges = {
            name: RampEvidence.from_dict(each) for name, each in found["judges"].items()
        }
        self._stable = {name: Histogram(each) for name, each in found["stable"].items()}
        self._step_calls = dict(found["step_calls"])

    def _new_judge(self, feature: str) -> RampEvidence:
        settings = self._settings
        return RampEvidence(
            feature,
            alpha=settings.canary_alpha,
            promote_alpha=settings.canary_promote_alpha,
            margin=settings.canary_margin,
            features=len(settings.canary_features),
        )
