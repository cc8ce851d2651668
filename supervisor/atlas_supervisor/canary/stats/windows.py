"""Windows: the calls of all processes by the time of their assignment, closed in order.

Theory. Evidence multiplies windows, and is valid only if a window's factor does not depend on which
calls happen to have ended. Suppose that good canary calls take a minute and bad ones fail at once:
counted as they end, all canary calls of the first minute are failures (79 % false rollbacks in the
simulation of docs/canary.md). So a call belongs to the window in which it was *assigned*, and a
window is multiplied in only when all of its calls have an outcome.

Terms. A *slice* is half a second of the machine's monotonic clock. An *epoch* has one share; a
*ramp* is the sequence of epochs that one evidence covers. A window is one slice of one epoch.

Invariants
- Windows of a ramp close in the order of (slice, epoch), each once. A window with an open call
  blocks the later ones, until the call ends or times out (60 s, see `outcomes`).
- No window closes before GRACE_SLICES have passed since its slice: a process may still be writing
  events of it, and only then is "no open call" the same as "no more calls".
- `closed_before` never goes back. A call assigned before it is late: it is in the statistics, not
  in the evidence.
- Of a key only the first call of a ramp counts: its later calls get the same arm, so they are not
  separate draws. The keys that were seen are remembered for the whole ramp, up to MAX_KEYS.
- Assignments are counted by arm when they arrive, for the sample ratio check.

Order per poll: `assign` and `end` for all events, timeouts (`outcomes`), then `pop_draws` and
`pop_closed`. What is left is saved with `to_dict`, so a restart neither loses nor repeats a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.histogram import Histogram

GRACE_SLICES = 4
"""Slices after its end in which a process may still report events of a slice."""
MAX_KEYS = 100_000
"""Keys of one ramp that are remembered; later keys are not evidence."""

RingKey = tuple[str, int]
"""A key's hash, with the ring of the process that reported it."""


class Group(NamedTuple):
    """Calls assigned alike: under one epoch, in one slice, to one arm."""

    epoch: int
    slice: int
    canary: bool


class DrawCounts(NamedTuple):
    """Assignments by epoch and arm (True: canary); a key counts once.

    `unreported` are those that stay without an outcome.
    """

    assigned: Counter[tuple[int, bool]]
    unreported: Counter[tuple[int, bool]]


class ClosedWindow(NamedTuple):
    """A window whose calls all have an outcome."""

    ramp: int
    epoch: int
    slice: int
    canary: Arm
    stable: Arm
    canary_latency: Histogram
    stable_latency: Histogram


@dataclass
class _Side:
    """One arm of an open window."""

    calls: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def arm(self) -> Arm:
        return Arm(self.calls, self.errors)


@dataclass
class _OpenWindow:
    open: int = 0
    """Calls without an outcome."""
    canary: _Side = field(default_factory=_Side)
    stable: _Side = field(default_factory=_Side)

    def side(self, group: Group) -> _Side:
        return self.canary if group.canary else self.stable

    def close(self, ramp: int, at: tuple[int, int]) -> ClosedWindow:
        number, epoch = at
        canary, stable = self.canary, self.stable
        return ClosedWindow(
            ramp, epoch, number, canary.arm, stable.arm, canary.latency, stable.latency
        )


@dataclass
class _Ramp:
    windows: dict[tuple[int, int], _OpenWindow] = field(default_factory=dict)
    """By slice and epoch, which is their order."""
    closed_before: int = 0
    """All slices before this one are closed."""
    keys: set[int] = field(default_factory=set)
    """Keys that have had their first call."""


class Windows:
    """The open windows of all current ramps."""

    def __init__(self) -> None:
        self._ramp_of: dict[int, int] = {}
        self._ramps: dict[int, _Ramp] = {}
        self._open_keys: dict[tuple[RingKey, Group], bool] = {}
        """Keys whose first call is open; True if the outcome may never be reported."""
        self._new_keys: list[tuple[int, int]] = []
        self._draws = DrawCounts(Counter(), Counter())
        self.late = 0
        """Calls that arrived after their window was closed."""
        self.overflown = 0
        """Calls of keys beyond MAX_KEYS."""

    def set_ramps(self, ramp_of: Mapping[int, int]) -> None:
        """Set the ramp of each current epoch; the windows of all other ramps are dropped."""
        self._ramp_of = dict(ramp_of)
        ramps = set(ramp_of.values())
        self._ramps = {ramp: self._ramps.get(ramp, _Ramp()) for ramp in ramps}
        self._open_keys = {
            unit: asked for unit, asked in self._open_keys.items() if unit[1].epoch in ramp_of
        }
        for counts in self._draws:
            for drawn in [drawn for drawn in counts if drawn[0] not in ramp_of]:
                del counts[drawn]

    def assign(
        self, group: Group, count: int, *, asked: bool = False, key: RingKey | None = None
    ) -> None:
        """Add assigned calls; of a key only the first call of its ramp counts."""
        if group.epoch not in self._ramp_of:
            return
        if key is not None:
            if not self._is_first(group, key[1]):
                return
            self._open_keys[key, group] = asked
        self._draws.assigned[group.epoch, group.canary] += count
        window = self._window(group, create=True)
        if window is None:
            self.late += count
        else:
            window.open += count

    def end(
        self, group: Group, count: int, bucket: int, *, failed: bool, key: RingKey | None = None
    ) -> None:
        """Add the outcome of calls that were assigned before."""
        if key is not None:
            if self._open_keys.pop((key, group), None) is None:
                return
            count = 1
        window = self._window(group)
        if window is None:
            return
        window.open -= count
        side = window.side(group)
        side.calls += count
        side.errors += count if failed else 0
        side.latency.add(bucket, count)

    def drop_unreported(self, group: Group, count: int) -> None:
        """Take out calls whose outcome was never reported: they are not evidence."""
        if group.epoch in self._ramp_of:
            self._draws.unreported[group.epoch, group.canary] += count
        if (window := self._window(group)) is not None:
            window.open -= count

    def expire_keys(self, ring: str, group: Group, bucket: int, *, asked: bool) -> None:
        """Close the open calls with a key of one process in this group.

        Calls that had started have failed; those that were only `asked` for are unreported.
        """
        expired = [
            unit
            for unit, only_asked in self._open_keys.items()
            if unit[0][0] == ring and unit[1] == group and only_asked is asked
        ]
        for unit in expired:
            if asked:
                del self._open_keys[unit]
                self.drop_unreported(group, 1)
            else:
                self.end(group, 1, bucket, failed=True, key=unit[0])

    def pop_closed(self, now: int) -> list[ClosedWindow]:
        """Close complete windows and return them in order; `now` is the current slice."""
        closed: list[ClosedWindow] = []
        for number, ramp in self._ramps.items():
            horizon = now - GRACE_SLICES
            for at in sorted(ramp.windows):
                if at[0] >= horizon or ramp.windows[at].open:
                    horizon = min(horizon, at[0])
                    break
                window = ramp.windows.pop(at).close(number, at)
                if window.canary.calls or window.stable.calls:
                    closed.append(window)
            ramp.closed_before = max(ramp.closed_before, horizon)
        return closed

    def pop_draws(self) -> DrawCounts:
        """Return the assignments since the last call."""
        draws, self._draws = self._draws, DrawCounts(Counter(), Counter())
        return draws

    def pop_new_keys(self) -> list[tuple[int, int]]:
        """Return the new keys since the last call, each as (ramp, key)."""
        new, self._new_keys = self._new_keys, []
        return new

    def restore_keys(self, ramp: int, keys: Iterable[int]) -> None:
        """Add keys that have had their first call before a restart."""
        if ramp in self._ramps:
            self._ramps[ramp].keys.update(keys)

    def pending_calls(self, ramp: int) -> int:
        """Return how many calls of a ramp are not yet evidence."""
        windows = self._ramps.get(ramp, _Ramp()).windows.values()
        return sum(each.open + each.canary.calls + each.stable.calls for each in windows)

    def _is_first(self, group: Group, key: int) -> bool:
        ramp = self._ramp_of[group.epoch]
        known = self._ramps[ramp].keys
        if key in known:
            return False
        if len(known) >= MAX_KEYS:
            self.overflown += 1
            return False
        known.add(key)
        self._new_keys.append((ramp, key))
        return True

    def _window(self, group: Group, *, create: bool = False) -> _OpenWindow | None:
        """Return the group's window; None if it is closed or its ramp is not current."""
        number = self._ramp_of.get(group.epoch)
        if number is None:
            return None
        ramp, at = self._ramps[number], (group.slice, group.epoch)
        if at not in ramp.windows and create and group.slice >= ramp.closed_before:
            ramp.windows[at] = _OpenWindow()
        return ramp.windows.get(at)

    def to_dict(self) -> dict[str, Any]:
        """Return the open windows as JSON values.

        `pop_draws` and `pop_new_keys` come first: both are saved elsewhere.
        """
        return {
            "ramps": [
                [number, ramp.closed_before, [_saved(at, it) for at, it in ramp.windows.items()]]
                for number, ramp in self._ramps.items()
            ],
            "units": [[*key, *group, asked] for (key, group), asked in self._open_keys.items()],
            "late": self.late,
            "overflown": self.overflown,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], ramp_of: Mapping[int, int]) -> Windows:
        """Return the saved windows of epochs that still belong to a ramp."""
        windows = cls()
        windows.set_ramps(ramp_of)
        for number, closed_before, open_windows in saved["ramps"]:
            if number in windows._ramps:
                ramp = windows._ramps[number]
                ramp.closed_before = closed_before
                ramp.windows = dict(_restored(each) for each in open_windows)
        for ring, key, epoch, slice_number, canary, asked in saved["units"]:
            if epoch in ramp_of:
                windows._open_keys[(ring, key), Group(epoch, slice_number, canary)] = asked
        windows.late, windows.overflown = saved["late"], saved["overflown"]
        return windows


def _saved(at: tuple[int, int], window: _OpenWindow) -> list[Any]:
    sides = [
        [side.calls, side.errors, list(side.latency)] for side in (window.canary, window.stable)
    ]
    return [*at, window.open, *sides]


def _restored(saved: list[Any]) -> tuple[tuple[int, int], _OpenWindow]:
    slice_number, epoch, count, *sides = saved
    canary, stable = (_Side(calls, errors, Histogram(latency)) for calls, errors, latency in sides)
    return (slice_number, epoch), _OpenWindow(count, canary, stable)
