"""Puts the calls of all processes into windows, and hands those out in order. Pure.

A call belongs to the slice of time in which it was assigned, and a window is the calls of one slice
under one epoch. It is handed out when all its calls have an outcome and every older window of its
ramp was handed out before: evidence that is multiplied in as calls complete would favour the arm
that is quicker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.histogram import Histogram

GRACE_SLICES = 4
"""So many slices after its end a process may still be on its way to tell of a slice."""
KEYS_MOST = 100_000
"""Keys of one ramp that are remembered. Whoever comes after them is no evidence."""

RingKey = tuple[str, int]
"""A key's hash in the process that has told it."""


class Group(NamedTuple):
    """Calls that were assigned alike: under one epoch, in one slice of time, to one arm."""

    epoch: int
    slice: int
    canary: bool


class Drawn(NamedTuple):
    """How many calls were assigned, by epoch and whether to the canary; a key counts once.

    `unreported` are those of them that stay without an outcome.
    """

    assigned: Counter[tuple[int, bool]]
    unreported: Counter[tuple[int, bool]]


class Sealed(NamedTuple):
    """A window whose calls are all over, with how long they took."""

    ramp: int
    epoch: int
    slice: int
    canary: Arm
    stable: Arm
    canary_latency: Histogram
    stable_latency: Histogram


@dataclass
class _Side:
    """One arm of a window."""

    calls: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def arm(self) -> Arm:
        return Arm(self.calls, self.errors)


@dataclass
class _Pending:
    """A window that is not handed out yet."""

    open: int = 0
    canary: _Side = field(default_factory=_Side)
    stable: _Side = field(default_factory=_Side)

    def side(self, group: Group) -> _Side:
        return self.canary if group.canary else self.stable


@dataclass
class _Ramp:
    """What is pending in one ramp."""

    pending: dict[tuple[int, int], _Pending] = field(default_factory=dict)
    """By slice and epoch, which is their order."""
    closed_before: int = 0
    """All slices before this one are handed out, or nobody was in them."""
    keys: set[int] = field(default_factory=set)
    """The keys that have had their first call."""


class Windows:
    """The windows of every ramp that is going on."""

    def __init__(self) -> None:
        self._ramp_of: dict[int, int] = {}
        self._ramps: dict[int, _Ramp] = {}
        self._units: dict[tuple[RingKey, Group], bool] = {}
        """Keys whose first call is open, and whether that only asked."""
        self._new_keys: list[tuple[int, int]] = []
        self._drawn = Drawn(Counter(), Counter())
        self.late = 0
        """Calls that came too late for their window."""
        self.overflown = 0
        """Calls of keys beyond those that can be remembered."""

    def follow(self, ramp_of: Mapping[int, int]) -> None:
        """Tell which epochs belong to which ramp; a ramp that is not named is forgotten."""
        self._ramp_of = dict(ramp_of)
        ramps = set(ramp_of.values())
        self._ramps = {ramp: self._ramps.get(ramp, _Ramp()) for ramp in ramps}
        self._units = {
            unit: asked for unit, asked in self._units.items() if unit[1].epoch in ramp_of
        }
        for counts in self._drawn:
            for drawn in [drawn for drawn in counts if drawn[0] not in ramp_of]:
                del counts[drawn]

    def assign(
        self, group: Group, count: int, *, asked: bool = False, key: RingKey | None = None
    ) -> None:
        """Note calls that were assigned; of a key only the first one of its ramp counts."""
        if group.epoch not in self._ramp_of:
            return
        if key is not None:
            if not self._is_first(group, key[1]):
                return
            self._units[key, group] = asked
        self._drawn.assigned[group.epoch, group.canary] += count
        pending = self._pending(group, create=True)
        if pending is None:
            self.late += count
        else:
            pending.open += count

    def end(
        self, group: Group, count: int, bucket: int, *, failed: bool, key: RingKey | None = None
    ) -> None:
        """Note how long calls took and whether they failed."""
        if key is not None:
            if self._units.pop((key, group), None) is None:
                return
            count = 1
        pending = self._pending(group)
        if pending is None:
            return
        pending.open -= count
        side = pending.side(group)
        side.calls += count
        side.errors += count if failed else 0
        side.latency.add(bucket, count)

    def forget(self, group: Group, count: int) -> None:
        """Note that calls stay without an outcome: they were questions, and are no evidence."""
        if group.epoch in self._ramp_of:
            self._drawn.unreported[group.epoch, group.canary] += count
        if (pending := self._pending(group)) is not None:
            pending.open -= count

    def give_up_keys(self, ring: str, group: Group, bucket: int, *, asked: bool) -> None:
        """Give up what a process has open of keys in this group: what had begun has failed."""
        mine = [
            unit
            for unit, only_asked in self._units.items()
            if unit[0][0] == ring and unit[1] == group and only_asked is asked
        ]
        for unit in mine:
            if asked:
                del self._units[unit]
                self.forget(group, 1)
            else:
                self.end(group, 1, bucket, failed=True, key=unit[0])

    def seal(self, now: int) -> list[Sealed]:
        """Hand out what is complete, in order; `now` is the slice that is not over yet."""
        sealed: list[Sealed] = []
        for number, ramp in self._ramps.items():
            horizon = now - GRACE_SLICES
            for at in sorted(ramp.pending):
                if at[0] >= horizon or ramp.pending[at].open:
                    horizon = min(horizon, at[0])
                    break
                pending = ramp.pending.pop(at)
                if pending.canary.calls or pending.stable.calls:
                    sealed.append(_sealed(number, at, pending))
            ramp.closed_before = max(ramp.closed_before, horizon)
        return sealed

    def take_drawn(self) -> Drawn:
        """Return what was drawn since it was last taken."""
        drawn, self._drawn = self._drawn, Drawn(Counter(), Counter())
        return drawn

    def take_keys(self) -> list[tuple[int, int]]:
        """Return the keys, each with its ramp, that are new since they were last taken."""
        news, self._new_keys = self._new_keys, []
        return news

    def know_keys(self, ramp: int, keys: Iterable[int]) -> None:
        """Remember keys that had their first call before."""
        if ramp in self._ramps:
            self._ramps[ramp].keys.update(keys)

    def waiting(self, ramp: int) -> int:
        """Return how many calls of a ramp are no evidence yet."""
        pending = self._ramps.get(ramp, _Ramp()).pending.values()
        return sum(each.open + each.canary.calls + each.stable.calls for each in pending)

    def _is_first(self, group: Group, key: int) -> bool:
        ramp = self._ramp_of[group.epoch]
        known = self._ramps[ramp].keys
        if key in known:
            return False
        if len(known) >= KEYS_MOST:
            self.overflown += 1
            return False
        known.add(key)
        self._new_keys.append((ramp, key))
        return True

    def _pending(self, group: Group, *, create: bool = False) -> _Pending | None:
        """Return the group's window; None if it is no evidence, or was handed out."""
        number = self._ramp_of.get(group.epoch)
        if number is None:
            return None
        ramp, at = self._ramps[number], (group.slice, group.epoch)
        if at not in ramp.pending and create and group.slice >= ramp.closed_before:
            ramp.pending[at] = _Pending()
        return ramp.pending.get(at)

    def to_dict(self) -> dict[str, Any]:
        """Return what is pending as JSON has it.

        Keys and draws are to be taken before: they are kept elsewhere.
        """
        return {
            "ramps": [
                [number, ramp.closed_before, [_kept(at, it) for at, it in ramp.pending.items()]]
                for number, ramp in self._ramps.items()
            ],
            "units": [[*key, *group, asked] for (key, group), asked in self._units.items()],
            "late": self.late,
            "overflown": self.overflown,
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any], ramp_of: Mapping[int, int]) -> Windows:
        """Return what was kept, as far as its epochs belong to a ramp still."""
        windows = cls()
        windows.follow(ramp_of)
        for number, closed_before, pending in kept["ramps"]:
            if number in windows._ramps:
                ramp = windows._ramps[number]
                ramp.closed_before = closed_before
                ramp.pending = dict(_restored(each) for each in pending)
        for ring, key, epoch, piece, canary, asked in kept["units"]:
            if epoch in ramp_of:
                windows._units[(ring, key), Group(epoch, piece, canary)] = asked
        windows.late, windows.overflown = kept["late"], kept["overflown"]
        return windows


def _sealed(ramp: int, at: tuple[int, int], pending: _Pending) -> Sealed:
    piece, epoch = at
    return Sealed(
        ramp,
        epoch,
        piece,
        pending.canary.arm,
        pending.stable.arm,
        pending.canary.latency,
        pending.stable.latency,
    )


def _kept(at: tuple[int, int], pending: _Pending) -> list[Any]:
    sides = [
        [side.calls, side.errors, list(side.latency)] for side in (pending.canary, pending.stable)
    ]
    return [*at, pending.open, *sides]


def _restored(kept: list[Any]) -> tuple[tuple[int, int], _Pending]:
    piece, epoch, count, *sides = kept
    canary, stable = (_Side(calls, errors, Histogram(latency)) for calls, errors, latency in sides)
    return (piece, epoch), _Pending(count, canary, stable)
