"""Evidence of all features: events of processes in, tallies, windows and verdicts out; no I/O.

Its state can be saved at any moment and restored later, so no window is lost or counted twice over
a crash. Only a reboot loses the windows of the last seconds, as slices are of a clock that it
resets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from atlas_supervisor.canary.stats.counts import Window
from atlas_supervisor.canary.stats.decision import Conclusion, Decision, RampEvidence
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.outcomes import SLICES_PER_SECOND, CallOutcome, CallTracker
from atlas_supervisor.canary.stats.rollups import ArmTallies, Rollups
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.canary.stats.windows import GRACE_SLICES, ClosedWindow, Group, Windows
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import CountsRow, EpochRow
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import steady_time
from atlas_worker.contract import bucket_milliseconds
from atlas_worker.contract.ring import HASH_MASK, SLICE_SECONDS, SLICES, EventKind, RingEvent

_OUTCOMES = {0: CallOutcome.OK, 1: CallOutcome.ERROR, 2: CallOutcome.CANCELLED}

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
    keys: Iterable[tuple[int, int]] = ()
    progress: Mapping[str, str] = {}


class Evidence:
    """Everything known about the calls of all features."""

    def __init__(
        self, settings: Settings, saved: SavedState, observe: Observe = unobserved
    ) -> None:
        self._settings = settings
        self._observe = observe
        self._epochs = {row.epoch: row for row in saved.epochs}
        self._windows = Windows()
        self._calls = CallTracker(self._windows)
        self.rollups = Rollups(saved.counts)
        self._ramps: dict[str, RampEvidence] = {}
        """The evidence of each feature's current ramp."""
        self._stable: dict[str, Histogram] = {}
        """Latencies of stable calls in closed windows, for the latency thresholds."""
        self._step_calls: dict[int, int] = {}
        """Canary calls in closed windows, by epoch."""
        self._restore(saved)

    # Input.

    def start_epoch(self, row: EpochRow, *, fresh: bool) -> None:
        """Start a feature's next epoch; `fresh` if its evidence starts anew."""
        self._epochs[row.epoch] = row
        if fresh or row.feature not in self._ramps:
            self._ramps[row.feature] = self._new_ramp(row.feature)
        drawn = 0 < row.share < 1
        if drawn and self._ramps[row.feature].fix_thresholds(self._stable_of(row.feature)):
            self._stable[row.feature] = Histogram()  # the next epoch goes by this one's calls

    def checkpoint(self) -> Checkpoint:
        """Return a copy of the state that `start_epoch` changes, for `restore`."""
        return {name: dict(each) for name, each in vars(self).items() if isinstance(each, dict)}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take back the epochs that were started since, if no events were added since."""
        vars(self).update(checkpoint)

    def set_ramps(self, ramps: Mapping[str, int]) -> None:
        """Set the current ramp of each feature; calls of other ramps are not evidence."""
        self._windows.set_ramps(
            {
                epoch: row.ramp
                for epoch, row in self._epochs.items()
                if ramps.get(row.feature) == row.ramp
            }
        )

    def add_events(
        self,
        ring: str,
        events: Mapping[RingEvent, int],
        keyed: Iterable[tuple[RingEvent, int, int]],
        now: Moment,
    ) -> None:
        """Add the events of one process: all assignments first, then the outcomes."""
        unpacked: list[tuple[Group, RingEvent, int, int | None]] = [
            (self._group(event, now), event, count, None) for event, count in events.items()
        ]
        unpacked += [(self._group(event, now), event, 1, key) for event, key, _ in keyed]
        for group, event, count, key in unpacked:
            if event.kind in (EventKind.STARTED, EventKind.ASKED):
                self._calls.begin(ring, group, count, asked=event.kind == EventKind.ASKED, key=key)
        for group, event, count, key in unpacked:
            outcome = _OUTCOMES.get(event.outcome, CallOutcome.ERROR)
            if event.kind == EventKind.RECORDED:
                self._calls.record(group, count, outcome, event.bucket)
            elif event.kind in (EventKind.ENDED, EventKind.REPORTED):
                asked = event.kind == EventKind.REPORTED
                self._calls.end(ring, group, count, outcome, event.bucket, asked=asked, key=key)

    def _group(self, event: RingEvent, now: Moment) -> Group:
        behind = (now.slice - event.slice_number) % SLICES
        if behind > SLICES // 2:  # the process has read its clock after this poll began
            behind = max(behind - SLICES, -GRACE_SLICES)
        return Group(event.epoch, now.slice - behind, event.is_canary)

    def process_exited(self, ring: str, now: Moment) -> None:
        """Close the open calls of a process, after its last events."""
        self._calls.process_exited(ring, now.slice)

    def advance(self, now: Moment) -> bool:
        """Apply timeouts and multiply complete windows in; return whether anything changed."""
        self._calls.expire(now.slice)
        tallies = self._calls.pop_tallies()
        for group, tally in tallies.items():
            if (row := self._epochs.get(group.epoch)) is not None:
                at = now.unix_of(group.slice)
                self.rollups.add(at, now.unix, group.epoch, tally, canary=group.canary)
                arm = "canary" if group.canary else "stable"
                for bucket, count in tally.latency:
                    self._observe(row.feature, arm, bucket_milliseconds(bucket) / 1000, count)
        self._count_draws()
        closed = self._windows.pop_closed(now.slice)
        for window in closed:
            self._multiply(window)
        return bool(tallies or closed)

    def _count_draws(self) -> None:
        assigned, unreported = self._windows.pop_draws()
        for (epoch, canary), count in assigned.items():
            row = self._epochs[epoch]
            self._ramps[row.feature].assigned.add(row.share, count, canary=canary)
        for (epoch, canary), count in unreported.items():
            row = self._epochs[epoch]
            self._ramps[row.feature].unreported.add(row.share, count, canary=canary)

    def _multiply(self, window: ClosedWindow) -> None:
        row = self._epochs[window.epoch]
        ramp = self._ramps[row.feature]
        stable = self._stable_of(row.feature)
        if not ramp.thresholds:
            ramp.fix_thresholds(stable)
        slow = ramp.slow(window.canary_latency, window.stable_latency)
        ramp.update(Window(row.share, window.canary, window.stable), slow)
        stable.merge(window.stable_latency)
        calls = self._step_calls.get(window.epoch, 0)
        self._step_calls[window.epoch] = calls + window.canary.calls

    def _stable_of(self, feature: str) -> Histogram:
        return self._stable.setdefault(feature, Histogram())

    # Results.

    def conclusion(self, feature: str) -> Conclusion | None:
        """Return the verdict that a feature's ramp has reached, if any."""
        return self._ramps[feature].conclusion()

    def decision(self, feature: str) -> Decision:
        """Return the verdict on a feature's ramp with its numbers."""
        return self._ramps[feature].decision()

    def ratios(self, feature: str) -> SampleRatios:
        """Return the sample ratio checks of a feature's ramp."""
        return self._ramps[feature].ratios()

    def step_calls(self, epoch: int) -> int:
        """Return how many canary calls of an epoch are evidence."""
        return self._step_calls.get(epoch, 0)

    def pending_calls(self, ramp: int) -> int:
        """Return how many calls of a ramp are not yet evidence."""
        return self._windows.pending_calls(ramp)

    @property
    def late(self) -> int:
        """How many outcomes arrived after their timeout, or after their window was closed."""
        return self._calls.late + self._windows.late

    @property
    def overflown(self) -> int:
        """How many calls were of keys beyond those that a ramp remembers."""
        return self._windows.overflown

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

    def pop_new_keys(self) -> list[tuple[int, int]]:
        """Return the new keys since the last call, each as (ramp, key)."""
        return self._windows.pop_new_keys()

    def progress(self) -> dict[str, str]:
        """Return everything that is not saved as rows of its own, by name as JSON."""
        progress = {
            "boot": procfs.boot_id(),
            "calls": self._calls.to_list(),
            "windows": self._windows.to_dict(),
            "judges": {name: ramp.to_dict() for name, ramp in self._ramps.items()},
            "stable": {name: list(latency) for name, latency in self._stable.items()},
            "step_calls": list(self._step_calls.items()),
        }
        return {name: json.dumps(value) for name, value in progress.items()}

    def _restore(self, saved: SavedState) -> None:
        ramp_of = {row.epoch: row.ramp for row in self._epochs.values()}
        if "boot" in saved.progress:
            self._restore_progress(saved.progress, ramp_of)
        self._windows.set_ramps(ramp_of)
        for ramp in set(ramp_of.values()):
            # Earlier versions saved 63 bits of the hash.
            known = (key & HASH_MASK for of, key in saved.keys if of == ramp)
            self._windows.restore_keys(ramp, known)
        missing = set(self._settings.canary_features) - set(self._ramps)
        for name in missing & {row.feature for row in self._epochs.values()}:
            self._ramps[name] = self._new_ramp(name)

    def _restore_progress(self, progress: Mapping[str, str], ramp_of: Mapping[int, int]) -> None:
        found = {name: json.loads(text) for name, text in progress.items()}
        if found["boot"] == procfs.boot_id():  # after a reboot slices start at 0 again
            self._windows = Windows.from_dict(found["windows"], ramp_of)
            self._calls = CallTracker.from_list(self._windows, found["calls"])
        self._ramps = {name: RampEvidence.from_dict(each) for name, each in found["judges"].items()}
        self._stable = {name: Histogram(each) for name, each in found["stable"].items()}
        self._step_calls = dict(found["step_calls"])

    def _new_ramp(self, feature: str) -> RampEvidence:
        settings = self._settings
        return RampEvidence(
            feature,
            alpha=settings.canary_alpha,
            promote_alpha=settings.canary_promote_alpha,
            margin=settings.canary_margin,
            features=len(settings.canary_features),
        )
