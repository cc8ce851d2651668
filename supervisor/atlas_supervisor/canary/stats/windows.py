"""Windows: the calls of all processes in the order of their assignment, with and without outcome.

Theory. Evidence multiplies calls, and is valid only if what decides about a call's factor, and
whether the call counts, is fixed before its arm and outcome can matter. Suppose that good canary
calls take a minute and bad ones fail at once: counted as they end, all canary calls of the first
minute are failures (72 % false rollbacks in the simulation of docs/canary.md). So a call belongs to
the window that it was *assigned* in, and one without an outcome counts there as open. The tests
bound open calls from below, so no verdict waits for them.

Terms. A *slice* is half a second of the machine's monotonic clock. An *epoch* has one share; a
*ramp* is the sequence of epochs that one evidence covers. A *stratum* is the calls that were drawn
alike; a *window* is a run of its slices: 4 % of the ramp's calls, up to WINDOW_SLICES.
When it begins depends on time and on the number of assignments alone.

Invariants
- The order of a ramp's windows is that in which their first calls were read, and is never changed.
  A window is closed, and leaves, when all before it have, each of its calls has ended or timed out
  (60 s, see `outcomes`), and GRACE_SLICES have passed. A call read later begins a new window.
- An end is counted in the window of its assignment: calls of the same process, arm and slice are
  always in one window, and a call with a key is named by its serial.
- A key's arm is fixed, so only a first call can be a draw. A key's hash is uniform in [0, 1) and
  compared with the share. What its calls have shown is an interval: below the share (canary) or not
  (stable). At another share the chance of the canary, given that, is (share - low) / (high - low);
  where it is 0 or 1 the call is no draw and not evidence. So a stable key counts again at each step
  of a ramp, with (p2 - p1) / (1 - p1).
- In each *round* (a day) the intervals are forgotten and all keys count anew, for tests of their
  own: `decision` divides alpha over the rounds. Up to MAX_KEYS keys are remembered.
- A call that is only *recorded*, without a decision of ours, is not seen before it ends. So it is
  put into the slice of its beginning, and such a slice becomes a window when every call of it has
  ended or would have failed: after 60 s. Sooner, the calls that end soon would count first.
- Assignments are counted by arm when they are read, for the sample ratio check.

Order per poll: `assign` and `end` for all events, timeouts (`outcomes`), then `pop_draws`,
`pop_closed` and `open_windows`. What is left is saved with `to_dict`, so a restart neither loses
nor repeats a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.model.canary import KeyRow
from atlas_worker.contract.ring import Outcome

SLICES_PER_SECOND = 2
TIMEOUT_SLICES = 60 * SLICES_PER_SECOND
"""A call that has not ended this long after its slice has failed."""
GRACE_SLICES = 4
"""Slices after its last one that a window waits for events which are still being written."""
MAX_KEYS = 100_000
"""Keys of one ramp that are remembered; later keys are not evidence."""

WINDOW_SLICES = 4
"""The most slices of a window. What its bets depend on is fixed when it begins, so it is short; and
a minute of hanging calls leaves some thirty open, so it is not shorter."""
_PART = 0.04  # of the ramp's calls in a window, if that is less: rates are learned fast at first


class CallKey(NamedTuple):
    """A call with a key: the ring of its process, the key's hash, and the call's serial."""

    ring: str
    key: int
    serial: int
    """0 in rings of an earlier kit, which does not name the call that ends: not evidence."""


class Group(NamedTuple):
    """Calls assigned alike: under one epoch, in one slice, to one arm."""

    epoch: int
    slice: int
    canary: bool


class Ended(NamedTuple):
    """Calls of one group that have ended alike."""

    outcome: int
    """An `Outcome` of the ring."""
    bucket: int
    calls: int = 1


def first_of(ended: Iterable[Ended], most: int) -> Iterator[Ended]:
    """Yield the first calls that have ended, at most so many."""
    for each in ended:
        if most <= 0:
            return
        yield each if each.calls <= most else each._replace(calls=most)
        most -= each.calls


class DrawnEpoch(NamedTuple):
    """An epoch that gathers evidence: its ramp, and the canary's share."""

    ramp: int
    share: float


class Stratum(NamedTuple):
    """Calls whose arm was drawn alike: with this share, given the past."""

    epoch: int
    share: float
    round: int = 1
    recorded: bool = False


class DrawCounts(NamedTuple):
    """Assignments by epoch, share and arm (True: canary); a key counts once.

    `unreported` are those that stay without an outcome.
    """

    assigned: Counter[tuple[int, float, bool]]
    unreported: Counter[tuple[int, float, bool]]


@dataclass
class Side:
    """The calls of one arm in a window that have an outcome."""

    calls: int = 0
    errors: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    """Number of calls by latency bucket."""

    def add(self, ended: Ended) -> None:
        """Add calls that have ended."""
        outcome, bucket, count = ended
        self.calls += count
        self.errors += count if outcome == Outcome.ERROR else 0
        self.latency[bucket] = self.latency.get(bucket, 0) + count

    @property
    def arm(self) -> Arm:
        """The counts alone."""
        return Arm(self.calls, self.errors)


class OpenCalls(NamedTuple):
    """Calls without an outcome: `asked` ones may never get one."""

    slice: int
    canary: bool
    asked: bool


@dataclass
class CallWindow:
    """A window. `terms` is what its tests have fixed before its first call (`round_evidence`)."""

    number: int
    stratum: Stratum
    since: int
    """The first slice."""
    latest: int
    assigned: int = 0
    canary: Side = field(default_factory=Side)
    stable: Side = field(default_factory=Side)
    open: dict[OpenCalls, int] = field(default_factory=dict)
    unreported: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """Calls that were never reported, by arm (True: canary)."""
    terms: Any = None
    bets: Any = None
    """What the tests have computed from the terms."""
    changed: bool = True
    """Whether calls were assigned or have ended since the tests have counted them."""

    def side(self, *, canary: bool) -> Side:
        """Return one arm."""
        return self.canary if canary else self.stable

    def opened(self, *, canary: bool) -> int:
        """Return the number of calls of an arm without an outcome."""
        return sum([count for calls, count in self.open.items() if calls.canary is canary])

    def close(self, calls: OpenCalls, count: int) -> int:
        """Take calls out of the open ones; return how many were."""
        left = self.open.get(calls, 0)
        if count < left:
            self.open[calls] = left - count
            return count
        self.open.pop(calls, None)
        return left


@dataclass
class _Ramp:
    windows: list[CallWindow] = field(default_factory=list)
    by_stratum: dict[Stratum, list[CallWindow]] = field(default_factory=dict)
    assigned: int = 0
    """All calls that were evidence or will be."""
    next_number: int = 0
    round: int = 1
    keys: dict[int, tuple[float, float]] = field(default_factory=dict)
    """The interval of each key's hash, in this round."""
    repeats: int = 0
    """Calls of keys that had counted, since the last call that was evidence."""
    recorded: dict[tuple[int, int], tuple[Side, Side]] = field(default_factory=dict)
    """Canary and stable calls that were only recorded, by slice and epoch."""
    recorded_before: int = -2 * TIMEOUT_SLICES  # slices begin at 0, and a call before
    """Recorded calls of slices before this one are in their windows."""

    def find(self, stratum: Stratum, slice_number: int) -> CallWindow | None:
        """Return the window that a slice of a stratum belongs to, if there is one."""
        windows = self.by_stratum.get(stratum)
        if not windows:
            return None
        for window in reversed(windows):
            if window.since <= slice_number:
                return window
        return windows[0]

    def add_window(self, window: CallWindow) -> CallWindow:
        self.windows.append(window)
        self.by_stratum.setdefault(window.stratum, []).append(window)
        self.next_number = max(self.next_number, window.number + 1)
        return window

    def window_for(self, stratum: Stratum, slice_number: int) -> CallWindow:
        """Return the window that new calls of this slice belong to."""
        window = self.find(stratum, slice_number)
        if window is None or self._is_over(window, slice_number):
            new = CallWindow(self.next_number, stratum, slice_number, slice_number)
            window = self.add_window(new)
        window.latest = max(window.latest, slice_number)
        return window

    def add(self, window: CallWindow, calls: OpenCalls, count: int) -> None:
        """Add assigned calls to their window."""
        window.assigned += count
        self.assigned += count
        self.repeats = 0
        window.open[calls] = window.open.get(calls, 0) + count
        window.changed = True

    def _is_over(self, window: CallWindow, slice_number: int) -> bool:
        """Return whether a new window begins with this slice; only a stratum's last one ends."""
        last = self.by_stratum[window.stratum][-1]
        if window is not last or slice_number <= window.latest:
            return False
        is_full = window.assigned >= self.assigned * _PART
        return is_full or slice_number - window.since >= WINDOW_SLICES

    def flush_recorded(self, before: int, share_of: Mapping[int, DrawnEpoch]) -> None:
        """Make windows of the recorded calls that began in slices before this one."""
        for at in sorted(at for at in self.recorded if at[0] < before):
            canary, stable = self.recorded.pop(at)
            if at[1] in share_of:
                stratum = Stratum(at[1], share_of[at[1]].share, recorded=True)
                window = CallWindow(self.next_number, stratum, at[0], at[0], canary=canary)
                window.stable = stable
                window.assigned = canary.calls + stable.calls
                self.assigned += window.assigned
                self.add_window(window)
        self.recorded_before = max(self.recorded_before, before)

    def pop_closed(self, before: int) -> Iterator[CallWindow]:
        while self.windows and not self.windows[0].open and self.windows[0].latest < before:
            window = self.windows.pop(0)
            left = self.by_stratum[window.stratum]
            left.remove(window)
            if not left:
                del self.by_stratum[window.stratum]
            yield window


class Windows:
    """The open windows of all current ramps."""

    def __init__(self) -> None:
        self._epochs: dict[int, DrawnEpoch] = {}
        self._ramps: dict[int, _Ramp] = {}
        self._found: dict[tuple[Group, bool], tuple[CallWindow, OpenCalls]] = {}
        """The window of each group without keys, as it is found for its first call."""
        self._units: dict[tuple[CallKey, Group], tuple[CallWindow, OpenCalls]] = {}
        """The open calls with a key that are evidence. A serial is unique within its group."""
        self._new_keys: dict[tuple[int, int], KeyRow] = {}
        self._draws = DrawCounts(Counter(), Counter())
        self.late = 0
        """Recorded calls that took longer than their window waited."""
        self.overflown = 0
        """Calls of keys beyond MAX_KEYS."""

    def set_epochs(self, epochs: Mapping[int, DrawnEpoch]) -> None:
        """Set the epochs whose calls are evidence; the windows of all other ramps are dropped."""
        self._epochs = dict(epochs)
        ramps = {epoch.ramp for epoch in epochs.values()}
        self._ramps = {ramp: self._ramps.get(ramp, _Ramp()) for ramp in ramps}
        kept = {id(window) for ramp in self._ramps.values() for window in ramp.windows}
        self._units = {key: unit for key, unit in self._units.items() if id(unit[0]) in kept}
        self._found = {group: it for group, it in self._found.items() if id(it[0]) in kept}
        for counts in self._draws:
            for drawn in [drawn for drawn in counts if drawn[0] not in epochs]:
                del counts[drawn]

    # Input.

    def assign(
        self, group: Group, count: int, *, asked: bool = False, key: CallKey | None = None
    ) -> None:
        """Add assigned calls; one with a key is evidence if its arm was a draw."""
        epoch = self._epochs.get(group.epoch)
        if epoch is None:
            return
        ramp = self._ramps[epoch.ramp]
        if key is None and (found := self._found.get((group, asked))) is not None:
            self._draws.assigned[group.epoch, epoch.share, group.canary] += count
            ramp.add(*found, count)
            return
        if key is None:
            stratum = Stratum(group.epoch, epoch.share)
        elif not key.serial:
            return
        elif (share := self._draw(epoch, ramp, key.key, canary=group.canary)) is None:
            ramp.repeats += count
            return
        else:
            stratum = Stratum(group.epoch, share, ramp.round)
        if stratum.round == 1:
            self._draws.assigned[group.epoch, stratum.share, group.canary] += count
        calls = OpenCalls(group.slice, group.canary, asked)
        window = ramp.window_for(stratum, group.slice)
        ramp.add(window, calls, count)
        if key is None:
            self._found[group, asked] = window, calls
        else:
            self._units[key, group] = window, calls

    def _draw(self, epoch: DrawnEpoch, ramp: _Ramp, key: int, *, canary: bool) -> float | None:
        """Return the chance that this key had of the canary, given its past; None if no draw."""
        known = ramp.keys.get(key)
        if known is None and len(ramp.keys) >= MAX_KEYS:
            self.overflown += 1
            return None
        low, high = known or (0.0, 1.0)
        share = epoch.share
        if not low < share < high:
            return None
        interval = (low, share) if canary else (share, high)
        ramp.keys[key] = interval
        self._new_keys[epoch.ramp, key] = KeyRow(epoch.ramp, key, ramp.round, *interval)
        return (share - low) / (high - low)

    def end(
        self,
        group: Group,
        ended: Iterable[Ended],
        *,
        asked: bool = False,
        key: CallKey | None = None,
    ) -> None:
        """Add the outcomes of calls that were assigned before."""
        window, calls = self._take(group, asked=asked, key=key)
        if window is None:
            return
        side, window.changed = window.side(canary=group.canary), True
        for each in first_of(ended, window.open.get(calls, 0)):
            window.close(calls, each.calls)
            side.add(each)

    def drop_unreported(self, group: Group, count: int, *, key: CallKey | None = None) -> None:
        """Set calls aside whose outcome was never reported: they are no evidence of failures."""
        window, calls = self._take(group, asked=True, key=key)
        if key is not None and window is None:
            return
        if window is not None:
            window.unreported[group.canary] += window.close(calls, count)
            window.changed = True
        if (epoch := self._epochs.get(group.epoch)) is not None:
            share = window.stratum.share if window is not None else epoch.share
            if window is None or window.stratum.round == 1:
                self._draws.unreported[group.epoch, share, group.canary] += count

    def _take(
        self, group: Group, *, asked: bool, key: CallKey | None
    ) -> tuple[CallWindow | None, OpenCalls]:
        if key is None and (found := self._found.get((group, asked))) is not None:
            return found
        calls = OpenCalls(group.slice, group.canary, asked)
        if key is not None:
            return self._units.pop((key, group), (None, calls))
        epoch = self._epochs.get(group.epoch)
        if epoch is None:
            return None, calls
        stratum = Stratum(group.epoch, epoch.share)
        return self._ramps[epoch.ramp].find(stratum, group.slice), calls

    def open_units(self, ring: str, group: Group, *, asked: bool) -> list[CallKey]:
        """Return the open calls with a key of one process in this group."""
        return [
            key
            for (key, of), (_, calls) in self._units.items()
            if key.ring == ring and of == group and calls.asked is asked
        ]

    def record(self, group: Group, ended: Ended) -> None:
        """Add calls that were never assigned by us; `group` has the slice of their beginning."""
        epoch = self._epochs.get(group.epoch)
        if epoch is None:
            return
        self._draws.assigned[group.epoch, epoch.share, group.canary] += ended.calls
        ramp = self._ramps[epoch.ramp]
        if group.slice < ramp.recorded_before:
            self.late += ended.calls
            return
        sides = ramp.recorded.setdefault((group.slice, group.epoch), (Side(), Side()))
        sides[0 if group.canary else 1].add(ended)

    def start_round(self, ramp: int, number: int) -> None:
        """Forget the keys of a ramp: from now on all count anew, in this round."""
        if ramp in self._ramps and number > self._ramps[ramp].round:
            self._ramps[ramp].round, self._ramps[ramp].keys = number, {}
            self._ramps[ramp].repeats = 0

    # Results.

    def pop_closed(self, now: int) -> list[tuple[int, CallWindow]]:
        """Close complete windows; return them in order, each with its ramp. `now` is a slice."""
        closed: list[tuple[int, CallWindow]] = []
        for number, ramp in self._ramps.items():
            ramp.flush_recorded(now - TIMEOUT_SLICES - GRACE_SLICES, self._epochs)
            closed += [(number, window) for window in ramp.pop_closed(now - GRACE_SLICES)]
        if closed:
            gone = {id(window) for _, window in closed}
            self._found = {group: it for group, it in self._found.items() if id(it[0]) not in gone}
        return closed

    def ramps(self) -> list[int]:
        """Return the current ramps."""
        return list(self._ramps)

    def round_of(self, ramp: int) -> int:
        """Return the present round of a ramp."""
        return self._ramps[ramp].round if ramp in self._ramps else 1

    def open_windows(self, ramp: int) -> list[CallWindow]:
        """Return a ramp's open windows, in order."""
        return self._ramps[ramp].windows if ramp in self._ramps else []

    def pop_draws(self) -> DrawCounts:
        """Return the assignments since the last call."""
        draws, self._draws = self._draws, DrawCounts(Counter(), Counter())
        return draws

    def pop_new_keys(self) -> list[KeyRow]:
        """Return the intervals of keys that have changed since the last call."""
        new, self._new_keys = self._new_keys, {}
        return list(new.values())

    def restore_keys(self, rows: Iterable[KeyRow]) -> None:
        """Add the intervals of keys from before a restart, in the present rounds."""
        for row in rows:
            ramp = self._ramps.get(row.ramp)
            if ramp is not None and row.round == ramp.round:
                ramp.keys[row.key] = (row.low, row.high)

    def has_keys(self, ramp: int) -> bool:
        """Return whether calls of a ramp have had keys, in this round."""
        return ramp in self._ramps and bool(self._ramps[ramp].keys)

    def repeats(self, ramp: int) -> int:
        """Return the calls of keys that had counted, since the last call that was evidence."""
        return self._ramps[ramp].repeats if ramp in self._ramps else 0

    def pending_calls(self, ramp: int) -> int:
        """Return how many calls of a ramp have no outcome, or wait for those of their slice."""
        if ramp not in self._ramps:
            return 0
        found = self._ramps[ramp]
        waiting = sum(one.calls + other.calls for one, other in found.recorded.values())
        return waiting + sum(sum(window.open.values()) for window in found.windows)

    # Saved state.

    def to_dict(self) -> dict[str, Any]:
        """Return the open windows as JSON values.

        `pop_draws` and `pop_new_keys` come first: both are saved elsewhere.
        """
        return {
            "ramps": [
                [
                    number,
                    [
                        ramp.assigned,
                        ramp.next_number,
                        ramp.round,
                        ramp.repeats,
                        ramp.recorded_before,
                    ],
                    [_saved(window) for window in ramp.windows],
                    [[*at, *map(_saved_side, sides)] for at, sides in ramp.recorded.items()],
                ]
                for number, ramp in self._ramps.items()
            ],
            "units": [
                [*key, *group, self._epochs[group.epoch].ramp, window.number, calls.asked]
                for (key, group), (window, calls) in self._units.items()
                if group.epoch in self._epochs
            ],
            "late": self.late,
            "overflown": self.overflown,
        }

    def restore_rounds(self, saved: Mapping[str, Any], epochs: Mapping[int, DrawnEpoch]) -> None:
        """Take over what does not depend on the clock of a boot: the rounds, and window numbers."""
        self.set_epochs(epochs)
        for number, (_, next_number, present, *_), *_ in saved["ramps"]:
            if number in self._ramps:
                self._ramps[number].next_number, self._ramps[number].round = next_number, present

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], epochs: Mapping[int, DrawnEpoch]) -> Windows:
        """Return the saved windows of epochs that still belong to a ramp."""
        windows = cls()
        windows.set_epochs(epochs)
        windows.late, windows.overflown = saved["late"], saved["overflown"]
        by_number: dict[tuple[int, int], CallWindow] = {}
        for number, counts, kept, recorded in saved["ramps"]:
            if number not in windows._ramps:
                continue
            ramp = windows._ramps[number]
            ramp.assigned, ramp.next_number, ramp.round, ramp.repeats, ramp.recorded_before = counts
            for each in kept:
                window = ramp.add_window(_restored(each))
                by_number[number, window.number] = window
            for slice_number, epoch, canary, stable in recorded:
                ramp.recorded[slice_number, epoch] = _side(canary), _side(stable)
        for ring, key, serial, *group, number, window_number, asked in saved["units"]:
            if (found := by_number.get((number, window_number))) is not None:
                unit = CallKey(ring, key, serial), Group(*group)
                windows._units[unit] = found, OpenCalls(*unit[1][1:], asked)
        return windows


def _saved(window: CallWindow) -> list[Any]:
    return [
        window.number,
        list(window.stratum),
        [window.since, window.latest, window.assigned],
        _saved_side(window.canary),
        _saved_side(window.stable),
        [[*calls, count] for calls, count in window.open.items()],
        [window.unreported[True], window.unreported[False]],
        window.terms.to_list() if window.terms is not None else None,
    ]


def _restored(saved: list[Any]) -> CallWindow:
    number, stratum, (since, latest, assigned), canary, stable, opened, unreported, terms = saved
    return CallWindow(
        number,
        Stratum(*stratum),
        since,
        latest,
        assigned,
        _side(canary),
        _side(stable),
        {OpenCalls(*calls): count for *calls, count in opened},
        {True: unreported[0], False: unreported[1]},
        terms,
    )


def _saved_side(side: Side) -> list[Any]:
    return [side.calls, side.errors, list(side.latency.items())]


def _side(saved: list[Any]) -> Side:
    calls, errors, latency = saved
    return Side(calls, errors, dict(map(tuple, latency)))
