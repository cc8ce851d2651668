"""Evidence of all features: events of processes in, tallies, windows and verdicts out; no I/O.

Its state can be saved at any moment and restored later, so no window is lost or counted twice over
a crash. Only a reboot loses the windows of the last seconds, as slices are of a clock that it
resets.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import structlog

from atlas_supervisor.canary.stats.bets import holm
from atlas_supervisor.canary.stats.counts import CallKey, Ended, Group, Prior
from atlas_supervisor.canary.stats.decision import Conclusion, Decision, RampEvidence
from atlas_supervisor.canary.stats.forecast import Keys
from atlas_supervisor.canary.stats.outcomes import CallTracker, Tally
from atlas_supervisor.canary.stats.rollups import ArmTallies, EvidencePoint, Rollups
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.canary.stats.totals import CanaryTotals
from atlas_supervisor.canary.stats.windows import GRACE_SLICES, SLICES_PER_SECOND, Windows
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import CountsRow, EpochRow, KeyRow
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import steady_time
from atlas_worker.contract import bucket_milliseconds
from atlas_worker.contract.ring import HASH_MASK, SLICE_SECONDS, SLICES, EventKind, RingEvent

log = structlog.get_logger(__name__)

ROUND_SECONDS = 86_400.0
"""How long a key counts once, if its share stays: in a later round all count anew."""

_LEAST_CALLS = 20
"""The most canary calls that a rollback for errors waits for."""

_REPEATS = 100
"""So many calls of keys that had counted (`Windows.repeats`): hardly any others are to come."""

_PRIOR_CALLS = 2, 1_000
"""The least and the most weight of a feature's last hour in the rate that a ramp starts from."""

_ASSIGNMENTS = frozenset({int(EventKind.STARTED), int(EventKind.ASKED)})
_ENDS = frozenset({int(EventKind.ENDED), int(EventKind.REPORTED)})

Observe = Callable[[str, str, float, int], None]
"""Called with the feature, the arm (`canary` or `stable`), seconds, and the number of calls."""

Checkpoint = Mapping[str, dict[Any, Any]]
"""All maps of `Evidence`, by attribute."""


def unobserved(_feature: str, _arm: str, _seconds: float, _count: int) -> None:
    """Ignore the observation."""


class Moment(NamedTuple):
    """The present in both clocks: the current slice, and steady Unix time in seconds."""

    slice: int
    unix: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks."""
        return cls(int(time.monotonic() / SLICE_SECONDS), steady_time())

    def unix_of(self, slice_number: int) -> float:
        """Return the Unix time of a slice."""
        return self.unix - (self.slice - slice_number) / SLICES_PER_SECOND


class SavedState(NamedTuple):
    """The state that an earlier daemon has saved."""

    counts: Iterable[CountsRow] = ()
    epochs: Iterable[EpochRow] = ()
    keys: Iterable[KeyRow] = ()
    progress: Mapping[str, str] = {}
    unix: float = 0.0
    """The present."""


class Evidence:
    """Everything known about the calls of all features."""

    def __init__(
        self, settings: Settings, saved: SavedState, observe: Observe = unobserved
    ) -> None:
        self._settings = settings
        self._observe = observe
        self._epochs = {row.epoch: row for row in saved.epochs}
        self._calls = CallTracker()
        self.rollups = Rollups(saved.counts)
        self._ramps: dict[str, RampEvidence] = {}
        """The evidence of each feature's current ramp."""
        self._began: dict[str, float] = {}
        """When each feature's ramp has begun, in Unix time."""
        self._step_calls: dict[int, int] = {}
        """Canary calls with an outcome, by epoch."""
        self._unix = saved.unix
        """The time of the last `advance`."""
        self.totals = CanaryTotals.none()
        """All calls that were counted, as far as the database goes back."""
        self._parts = 1
        """How many features alpha is divided by, as of the last `advance`."""
        self._restore(saved)

    # Input.

    def start_epoch(self, row: EpochRow, *, fresh: bool) -> None:
        """Start a feature's next epoch; `fresh` if its evidence starts anew."""
        self._epochs[row.epoch] = row
        if fresh or row.feature not in self._ramps:
            before = self._ramps.get(row.feature)
            self._ramps[row.feature] = self._new_ramp(row.feature, row.ramp)
            if before is not None:
                self._ramps[row.feature].windows.called_before = _calling(before.windows)
            self._began.pop(row.feature, None)

    def checkpoint(self) -> Checkpoint:
        """Return a copy of the state that `start_epoch` changes, for `restore`."""
        return {name: dict(each) for name, each in vars(self).items() if isinstance(each, dict)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take back the epochs that were started since, if no events were added since."""
        vars(self).update(checkpoint)

    def set_ramps(self, ramps: Mapping[str, int]) -> None:
        """Set the current ramp of each feature; calls of other ramps are not evidence."""
        by_epoch: dict[int, Windows] = {}
        for feature, evidence in self._ramps.items():
            rows = [row for row in self._epochs.values() if row.feature == feature]
            shares = {row.epoch: row.share for row in rows if row.ramp == ramps.get(feature)}
            evidence.windows.set_shares(shares)
            by_epoch |= dict.fromkeys(shares, evidence.windows)
        self._calls.windows = by_epoch

    def add_events(
        self,
        ring: str,
        events: Mapping[RingEvent, int],
        keyed: Iterable[tuple[RingEvent, int, int]],
        now: Moment,
    ) -> None:
        """Add the events of one process: all assignments first, then the outcomes."""
        ended: dict[tuple[int, int, int, bool, CallKey | None], list[Ended]] = {}
        unkeyed = ((event, count, None) for event, count in events.items())
        with_key = ((event, 1, CallKey(ring, key, serial)) for event, key, serial in keyed)
        for event, count, key in (*unkeyed, *with_key):
            kind, canary, outcome, epoch, slice_number, bucket = event
            if kind in _ASSIGNMENTS:
                group = _group(epoch, slice_number, now.slice, canary=canary)
                self._calls.begin(ring, group, count, asked=kind == EventKind.ASKED, key=key)
            else:
                alike = ended.setdefault((kind, epoch, slice_number, canary, key), [])
                alike.append(Ended(outcome, bucket, count))
        for (kind, epoch, slice_number, canary, key), alike in ended.items():
            group = _group(epoch, slice_number, now.slice, canary=canary)
            if kind in _ENDS:
                asked = kind == EventKind.REPORTED
                self._calls.end(ring, group, alike, asked=asked, key=key)
            elif kind == EventKind.RECORDED:
                for each in alike:
                    self._calls.record(group, each)

    def process_exited(self, ring: str, now: Moment) -> None:
        """Close the open calls of a process, after its last events."""
        self._calls.process_exited(ring, now.slice)

    def advance(self, now: Moment) -> bool:
        """Apply timeouts and judge all windows; return whether anything has changed."""
        self._unix = now.unix
        self._start_rounds(now.unix)
        self._calls.expire(now.slice)
        tallies = self._calls.pop_tallies()
        for group, tally in tallies.items():
            self._add_tally(group, tally, now)
        return bool(self._judge(now.slice) or tallies)

    def _add_tally(self, group: Group, tally: Tally, now: Moment) -> None:
        row = self._epochs.get(group.epoch)
        if row is None:
            return
        self.rollups.add(
            now.unix_of(group.slice), now.unix, group.epoch, tally, canary=group.canary
        )
        self.totals.add(row.feature, tally, canary=group.canary)
        if group.canary:
            self._step_calls[group.epoch] = self._step_calls.get(group.epoch, 0) + tally.calls
        arm = "canary" if group.canary else "stable"
        for bucket, count in tally.latency:
            self._observe(row.feature, arm, bucket_milliseconds(bucket) / 1000, count)

    def _judge(self, now: int) -> int:
        """Multiply all windows in, and return how many were closed.

        An error in one window, which would be a bug, must not lose the others.
        """
        closed = 0
        for feature, evidence in self._ramps.items():
            if not evidence.windows.shares:
                continue
            for window in evidence.windows.pop_closed(now):
                closed += 1
                with _logged(feature):
                    evidence.close(window)
            with _logged(feature):
                evidence.judge(evidence.windows.open, now)
        largest = dict.fromkeys(self._settings.canary_features, 0.0)
        largest |= {name: self._ramps[name].largest for name in largest.keys() & self._ramps}
        reached, self._parts = holm(largest, self._settings.canary_alpha)
        for feature in reached:
            self._ramps[feature].fail()
        for evidence in self._ramps.values():
            evidence.note(self._unix, self._parts)
        return closed

    def _start_rounds(self, unix: float) -> None:
        """Let all keys of a ramp count anew each day."""
        for feature, evidence in self._ramps.items():
            number = 1 + int((unix - self._began.setdefault(feature, unix)) / ROUND_SECONDS)
            if number > evidence.windows.round and evidence.windows.called_in_round:
                evidence.start_round(number)

    # Results.

    def conclusion(self, feature: str, *, may_promote: bool = True) -> Conclusion | None:
        """Return the verdict that a feature's ramp has reached, if any."""
        return self._ramps[feature].conclusion(self._parts, may_promote=may_promote)

    def decision(self, feature: str, last_share: float | None = None) -> Decision:
        """Return the verdict on a feature's ramp, which goes on to `last_share`."""
        return self._ramps[feature].decision(self._parts, self.keys(feature, last_share))

    def keys(self, feature: str, last_share: float | None = None) -> Keys:
        """Return how the keys of a feature's ramp count; it goes on to `last_share` by itself."""
        windows = self._ramps[feature].windows
        called = windows.called
        share = windows.shares[max(windows.shares)] if windows.shares else 0.0
        all_counted = called > 0 and windows.repeats >= _REPEATS
        to_come = 0 if all_counted else max(windows.called_before - called, 0)
        by_interval = Counter(windows.keys.keys_by_interval)
        by_interval[0.0, 1.0] += to_come
        age = self._unix - self._began.get(feature, self._unix)
        return Keys(
            used=called > 0,
            calling=called + to_come,
            called_today=windows.called_in_round,
            share=share,
            last_share=max(last_share or share, share),
            by_interval=by_interval,
            all_known=share > 0 and (all_counted or to_come > 0),
            anew_seconds=ROUND_SECONDS - age % ROUND_SECONDS if all_counted else None,
        )

    def ratios(self, feature: str) -> SampleRatios:
        """Return the sample ratio checks of a feature's ramp."""
        return self._ramps[feature].ratios()

    def course(self, feature: str) -> list[EvidencePoint]:
        """Return the evidence of a feature's ramp over time, oldest first."""
        return list(self._ramps[feature].course.points)

    def step_calls(self, epoch: int) -> int:
        """Return how many canary calls of an epoch have an outcome."""
        return self._step_calls.get(epoch, 0)

    def pending_calls(self, feature: str) -> int:
        """Return how many calls of a feature's ramp have no outcome that counts yet."""
        return self._ramps[feature].windows.pending_calls

    @property
    def late(self) -> int:
        """How many outcomes arrived after their timeout, or after their window was closed."""
        return self._calls.late + sum(each.windows.late for each in self._ramps.values())

    @property
    def overflown(self) -> int:
        """How many calls were of keys beyond those that a ramp remembers."""
        return sum(each.windows.overflown for each in self._ramps.values())

    def epoch(self, number: int) -> EpochRow | None:
        """Return an epoch; None if it is unknown."""
        return self._epochs.get(number)

    def last_hour(self, now: float) -> dict[str, ArmTallies]:
        """Return the tallies of the last hour by feature; `now` is Unix time."""
        found = {feature: ArmTallies.empty() for feature in self._ramps}
        for epoch, both in self.rollups.last_hour(now).items():
            found.setdefault(self._epochs[epoch].feature, ArmTallies.empty()).add(both)
        return found

    # Saved state.

    def pop_new_keys(self) -> list[KeyRow]:
        """Return the intervals of keys that have changed since the last call."""
        return [row for each in self._ramps.values() for row in each.windows.pop_new_keys()]

    def progress(self) -> dict[str, str]:
        """Return everything that is not saved as rows of its own, by name as JSON."""
        progress = {
            "boot": procfs.boot_id(),
            "calls": self._calls.to_list(),
            "judges": {name: ramp.to_dict() for name, ramp in self._ramps.items()},
            "began": self._began,
            "step_calls": list(self._step_calls.items()),
            "totals": self.totals.to_dict(),
        }
        return {name: json.dumps(value) for name, value in progress.items()}

    def _restore(self, saved: SavedState) -> None:
        ramps = {row.feature: row.ramp for row in self._epochs.values()}
        if "boot" in saved.progress:
            self._restore_progress(saved.progress, ramps)
        for name in ramps.keys() & set(self._settings.canary_features) - self._ramps.keys():
            self._ramps[name] = self._new_ramp(name, ramps[name])
        by_number = {each.windows.ramp: each.windows for each in self._ramps.values()}
        for row in saved.keys:
            if row.ramp in by_number:  # earlier versions saved 63 bits of the hash
                by_number[row.ramp].restore_key(row._replace(key=row.key & HASH_MASK))

    def _restore_progress(self, progress: Mapping[str, str], ramps: Mapping[str, int]) -> None:
        found = {name: json.loads(text) for name, text in progress.items()}
        same_boot = found["boot"] == procfs.boot_id()  # after a reboot slices start at 0 again
        if same_boot:
            self._calls = CallTracker.from_list(found["calls"])
        for name, each in found["judges"].items():
            if "began" in found:
                self._ramps[name] = RampEvidence.from_dict(each, same_boot=same_boot)
            else:  # it was saved before there were rounds (schema 6), and goes on
                self._ramps[name] = self._new_ramp(name, ramps.get(name, 0))
                self._ramps[name].carry_over(each)
        self._began = dict(found.get("began", {}))
        self._step_calls = dict(found["step_calls"])
        if "totals" in found:
            self.totals = CanaryTotals.from_dict(found["totals"])

    def _new_ramp(self, feature: str, ramp: int) -> RampEvidence:
        """Return evidence that starts from stable's last hour."""
        settings, least = self._settings, Prior()
        stable = self.last_hour(self._unix).get(feature, ArmTallies.empty()).stable
        errors = least.mean * least.weight + stable.errors
        prior = Prior(
            min(max(errors / (least.weight + stable.calls), 1e-9), 0.999),
            min(max(stable.calls, _PRIOR_CALLS[0]), _PRIOR_CALLS[1]),
        )
        return RampEvidence(
            feature,
            ramp,
            alpha=settings.canary_alpha,
            promote_alpha=settings.canary_promote_alpha,
            margin=settings.canary_margin,
            latency_margin=settings.canary_latency_margin,
            prior=prior,
            past=stable.latency,
            least_calls=min(settings.canary_min_calls, _LEAST_CALLS),
        )


def _calling(windows: Windows) -> int:
    """Return how many keys call in a ramp, by this one or the one before; 0 if unknown."""
    return windows.called if windows.repeats >= _REPEATS else windows.called_before


def _group(epoch: int, slice_number: int, now: int, *, canary: bool) -> Group:
    """Return the group of an event, whose slice is known modulo SLICES; `now` is the slice."""
    behind = (now - slice_number) % SLICES
    if behind > SLICES // 2:  # the process has read its clock after this poll began
        behind = max(behind - SLICES, -GRACE_SLICES)
    return Group(epoch, now - behind, canary)


@contextmanager
def _logged(feature: str) -> Iterator[None]:
    """Log an error in one window, so that the others are judged."""
    try:
        yield
    except (ArithmeticError, ValueError, LookupError):
        log.exception("canary_window_failed", feature=feature)
