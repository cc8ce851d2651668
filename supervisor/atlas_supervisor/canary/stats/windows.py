"""Windows: the calls of all processes in the order of their assignment, with and without outcome.

Theory. Evidence multiplies calls, and is valid only if what decides about a call's factor, and
whether the call counts, is fixed before its arm and outcome can matter. Suppose that good canary
calls take a minute and bad ones fail at once: counted as they end, all canary calls of the first
minute are failures (74 % false rollbacks in the simulation of docs/canary.md). So a call belongs to
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
- The first round lasts as long as the ramp: a key that is new, or whose arm is open at a new share,
  counts in it on any day. In each later *round* (a day) all keys count anew, for tests of their own
  that know nothing of earlier days: `decision` divides alpha over the rounds. So a call may be in a
  window of each. Up to MAX_KEYS keys of the ramp are remembered, and as many of the day.
- A call that is only *recorded*, without a decision of ours, is not seen before it ends. So it is
  put into the slice of its beginning, and such a slice becomes a window when every call of it has
  ended or would have failed: after 60 s. Sooner, the calls that end soon would count first.
- Assignments are counted by arm when they are read, for the sample ratio check.

Order per poll: `assign` and `end` for all events, timeouts (`outcomes`), then `pop_closed` and
`open`. What is left is saved with `to_dict`, so a restart neither loses nor repeats a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

from atlas_supervisor.canary.stats.counts import (
    CallKey,
    CallWindow,
    Draws,
    Ended,
    Group,
    OpenCalls,
    Side,
    Stratum,
    first_of,
)
from atlas_supervisor.model.canary import KeyRow

SLICES_PER_SECOND = 2
TIMEOUT_SLICES = 60 * SLICES_PER_SECOND
"""A call that has not ended this long after its slice has failed."""
GRACE_SLICES = 4
"""Slices after its last one that a window waits for events which are still being written."""
MAX_KEYS = 100_000
"""Keys of one ramp, and of one day, that are remembered; later keys are not evidence."""

WINDOW_SLICES = 4
"""The most slices of a window. What its bets depend on is fixed when it begins, so it is short; and
a minute of hanging calls leaves some thirty open, so it is not shorter."""
_PART = 0.04  # of the ramp's calls in a window, if that is less: rates are learned fast at first

_MOST_REPEATS = 200
_REPEATS_LESS = 20  # for each call that is evidence


class KeyDraws:
    """What is known of the hashes of keys, in one round."""

    def __init__(self) -> None:
        self.intervals: dict[int, tuple[float, float]] = {}
        """In which interval each key's hash is."""
        self.keys_by_interval: Counter[tuple[float, float]] = Counter()
        self.overflown = 0
        """Calls of keys beyond MAX_KEYS."""

    def draw(self, share: float, key: int, *, canary: bool) -> float | None:
        """Return the chance that this key had of the canary, given its past; None if no draw."""
        known = self.intervals.get(key)
        if known is None and len(self.intervals) >= MAX_KEYS:
            self.overflown += 1
            return None
        low, high = known or (0.0, 1.0)
        if not low < share < high:
            return None
        self.know(key, (low, share) if canary else (share, high))
        return (share - low) / (high - low)

    def know(self, key: int, interval: tuple[float, float]) -> None:
        """Note the interval that a key's hash is in."""
        if (before := self.intervals.get(key)) is not None:
            self.keys_by_interval[before] -= 1
        self.intervals[key] = interval
        self.keys_by_interval[interval] += 1


class Windows:
    """The open windows of one ramp, and the keys that its calls have had."""

    def __init__(self, ramp: int) -> None:
        self.ramp = ramp
        self.shares: dict[int, float] = {}
        """The share of each epoch whose calls are evidence; none if the ramp is over."""
        self.open: list[CallWindow] = []
        """In order."""
        self.round = 1
        self.repeats = 0
        """Calls of keys that had counted in the ramp, less some for each call that is evidence."""
        self.assigned, self.unreported = Draws(), Draws()
        """Draws of the first round, and those that stay without an outcome."""
        self.late = 0
        """Recorded calls that took longer than their window waited."""
        self._by_stratum: dict[Stratum, list[CallWindow]] = {}
        self._found: dict[tuple[Group, bool], tuple[CallWindow, OpenCalls]] = {}
        """The window of each group without keys, as it is found for its first call."""
        self._calls = 0
        """All calls that were evidence or will be."""
        self._next_number = 0
        self.keys = KeyDraws()
        """Of the whole ramp."""
        self._today: KeyDraws | None = None
        """Of the present round, if it is a later one."""
        self.called_before = 0
        """How many keys called in the ramp before this one."""
        self._overflown_before = 0
        """Calls of keys beyond MAX_KEYS in earlier rounds."""
        self._draws_in_ramp = True
        """Whether it is known which keys have counted in the first round."""
        self._new_keys: dict[tuple[int, int], KeyRow] = {}
        """By round and key."""
        self._units: dict[tuple[CallKey, Group], list[tuple[CallWindow, OpenCalls]]] = {}
        """The open calls with a key that are evidence, each with its windows. A serial is unique
        within its group."""
        self._recorded: dict[tuple[int, int], tuple[Side, Side]] = {}
        """Canary and stable calls that were only recorded, by slice and epoch."""
        self._recorded_before = -2 * TIMEOUT_SLICES  # slices begin at 0, and a call before
        """Recorded calls of slices before this one are in their windows."""

    def set_shares(self, shares: Mapping[int, float]) -> None:
        """Set the shares by epoch. Without any the ramp is over, and its open windows are lost."""
        self.shares = dict(shares)
        if not shares:
            for each in (self.open, self._by_stratum, self._found, self._units, self._recorded):
                each.clear()

    # Input.

    def assign(
        self, group: Group, count: int, *, asked: bool = False, key: CallKey | None = None
    ) -> None:
        """Add assigned calls; one with a key is evidence if its arm was a draw."""
        share = self.shares[group.epoch]
        if key is None and (found := self._found.get((group, asked))) is not None:
            self.assigned.add(share, count, canary=group.canary)
            self._add(*found, count)
            return
        if key is None:
            strata = [Stratum(group.epoch, share)]
        elif not key.serial:
            return
        else:
            strata = self._drawn(group, share, key.key)
            if all(each.round > 1 for each in strata):
                self.repeats = min(self.repeats + count, _MOST_REPEATS)
        calls, taken = OpenCalls(group.slice, group.canary, asked), []
        for stratum in strata:
            if stratum.round == 1:
                self.assigned.add(stratum.share, count, canary=group.canary)
            taken.append((self._window_for(stratum, group.slice), calls))
            self._add(*taken[-1], count)
        if key is None:
            self._found[group, asked] = taken[0]
        elif taken:
            self._units[key, group] = taken

    def _drawn(self, group: Group, share: float, key: int) -> list[Stratum]:
        """Return the strata in which a call with a key is a draw: of the ramp, of a later round."""
        chance = self._draw(1, share, key, canary=group.canary) if self._draws_in_ramp else None
        again = None
        if self.round > 1:
            again = self._draw(self.round, share, key, canary=group.canary)
        found = []
        if chance is not None:
            found.append(Stratum(group.epoch, chance, twice=again is not None))
        if again is not None:
            found.append(Stratum(group.epoch, again, self.round))
        return found

    def _draw(self, number: int, share: float, key: int, *, canary: bool) -> float | None:
        """Return the chance that this key had of the canary, given a round's past."""
        draws = self._draws_of(number)
        chance = draws.draw(share, key, canary=canary)
        if chance is not None:
            row = KeyRow(self.ramp, key, number, *draws.intervals[key])
            self._new_keys[number, key] = row
        return chance

    def _draws_of(self, number: int) -> KeyDraws:
        return self.keys if number == 1 or self._today is None else self._today

    def _add(self, window: CallWindow, calls: OpenCalls, count: int) -> None:
        window.assigned += count
        window.open[calls] = window.open.get(calls, 0) + count
        window.changed = True
        self._calls += count
        if window.stratum.round == 1:
            self.repeats = max(self.repeats - _REPEATS_LESS * count, 0)

    def end(
        self,
        group: Group,
        ended: Collection[Ended],
        *,
        asked: bool = False,
        key: CallKey | None = None,
    ) -> None:
        """Add the outcomes of calls that were assigned before."""
        for window, calls in self._take(group, asked=asked, key=key):
            side, window.changed = window.side(canary=group.canary), True
            for each in first_of(ended, window.open.get(calls, 0)):
                window.close(calls, each.calls)
                side.add(each)

    def drop_unreported(self, group: Group, count: int, *, key: CallKey | None = None) -> None:
        """Set calls aside whose outcome was never reported: they are no evidence of failures."""
        taken = self._take(group, asked=True, key=key)
        for window, calls in taken:
            window.unreported[group.canary] += window.close(calls, count)
            window.changed = True
            if window.stratum.round == 1:
                self.unreported.add(window.stratum.share, count, canary=group.canary)
        if not taken and key is None:
            self.unreported.add(self.shares[group.epoch], count, canary=group.canary)

    def _take(
        self, group: Group, *, asked: bool, key: CallKey | None
    ) -> Sequence[tuple[CallWindow, OpenCalls]]:
        """Return the windows of a group's calls, or of one call with a key that is open no more."""
        if key is None and (found := self._found.get((group, asked))) is not None:
            return (found,)
        if key is not None:
            return self._units.pop((key, group), ())
        window = self._find(Stratum(group.epoch, self.shares[group.epoch]), group.slice)
        return () if window is None else ((window, OpenCalls(group.slice, group.canary, asked)),)

    def open_units(self, ring: str, group: Group, *, asked: bool) -> list[CallKey]:
        """Return the open calls with a key of one process in this group."""
        return [
            key
            for (key, of), taken in self._units.items()
            if key.ring == ring and of == group and taken[0][1].asked is asked
        ]

    def record(self, group: Group, ended: Ended) -> None:
        """Add calls that were never assigned by us; `group` has the slice of their beginning."""
        self.assigned.add(self.shares[group.epoch], ended.calls, canary=group.canary)
        if group.slice < self._recorded_before:
            self.late += ended.calls
            return
        sides = self._recorded.setdefault((group.slice, group.epoch), (Side(), Side()))
        sides[0 if group.canary else 1].add(ended)

    def start_round(self, number: int) -> None:
        """From now on all keys count anew in this round, and new ones in the first one as well."""
        self._overflown_before = self.overflown
        self.round, self._today = number, KeyDraws()

    # Windows.

    def _find(self, stratum: Stratum, slice_number: int) -> CallWindow | None:
        """Return the window that a slice of a stratum belongs to, if there is one."""
        windows = self._by_stratum.get(stratum, ())
        for window in reversed(windows):
            if window.since <= slice_number:
                return window
        return windows[0] if windows else None

    def _window_for(self, stratum: Stratum, slice_number: int) -> CallWindow:
        """Return the window that new calls of this slice belong to."""
        window = self._find(stratum, slice_number)
        if window is None or self._is_over(window, slice_number):
            window = CallWindow(self._next_number, stratum, slice_number, slice_number)
            self._open_window(window)
        window.latest = max(window.latest, slice_number)
        return window

    def _open_window(self, window: CallWindow) -> None:
        self.open.append(window)
        self._by_stratum.setdefault(window.stratum, []).append(window)
        self._next_number = max(self._next_number, window.number + 1)

    def _is_over(self, window: CallWindow, slice_number: int) -> bool:
        """Return whether a new window begins with this slice; only a stratum's last one ends."""
        if window is not self._by_stratum[window.stratum][-1] or slice_number <= window.latest:
            return False
        is_full = window.assigned >= self._calls * _PART
        return is_full or slice_number - window.since >= WINDOW_SLICES

    def pop_closed(self, now: int) -> list[CallWindow]:
        """Close complete windows; return them in order. `now` is a slice."""
        self._flush_recorded(now - TIMEOUT_SLICES - GRACE_SLICES)
        closed = [*takewhile(lambda each: each.is_complete(now - GRACE_SLICES), self.open)]
        del self.open[: len(closed)]
        for window in closed:
            self._by_stratum[window.stratum].remove(window)
        if closed:
            self._by_stratum = {each: left for each, left in self._by_stratum.items() if left}
            gone = {id(window) for window in closed}
            self._found = {group: it for group, it in self._found.items() if id(it[0]) not in gone}
        return closed

    def _flush_recorded(self, before: int) -> None:
        """Make windows of the recorded calls that began in slices before this one."""
        for at in sorted(at for at in self._recorded if at[0] < before):
            canary, stable = self._recorded.pop(at)
            if at[1] not in self.shares:
                continue
            stratum = Stratum(at[1], self.shares[at[1]], recorded=True)
            calls = canary.calls + stable.calls
            window = CallWindow(self._next_number, stratum, at[0], at[0], calls, canary, stable)
            self._calls += calls
            self._open_window(window)
        self._recorded_before = max(self._recorded_before, before)

    @property
    def pending_calls(self) -> int:
        """How many calls have no outcome, or wait for those of their slice."""
        waiting = sum(one.calls + other.calls for one, other in self._recorded.values())
        return waiting + sum(sum(window.open.values()) for window in self.open)

    # Keys.

    @property
    def overflown(self) -> int:
        """Calls of keys beyond MAX_KEYS."""
        return self._overflown_before + self._draws_of(self.round).overflown

    @property
    def called(self) -> int:
        """How many keys have called, as far as it is known."""
        return max(len(self.keys.intervals), self.called_in_round)

    @property
    def called_in_round(self) -> int:
        """How many keys have called in this round."""
        return len(self._draws_of(self.round).intervals)

    def pop_new_keys(self) -> list[KeyRow]:
        """Return the intervals of keys that have changed since the last call."""
        new, self._new_keys = self._new_keys, {}
        return list(new.values())

    def restore_key(self, row: KeyRow) -> None:
        """Add the interval of a key from before a restart, if its round is not over."""
        if row.round in (1, self.round):
            self._draws_of(row.round).know(row.key, (row.low, row.high))

    # Saved state.

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; keys are saved elsewhere (`pop_new_keys`)."""
        return {
            "ramp": [self.ramp, self.round, self._next_number],
            "keys": [self._draws_in_ramp, self.called_before],
            "draws": [self.assigned.to_list(), self.unreported.to_list()],
            "counts": [self._calls, self._recorded_before, self.repeats, self.late, self.overflown],
            "open": [window.to_list() for window in self.open],
            "recorded": [[*at, *map(Side.to_list, sides)] for at, sides in self._recorded.items()],
            "units": [
                [*key, *group, window.number, calls.asked]
                for (key, group), taken in self._units.items()
                for window, calls in taken
            ],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], *, same_boot: bool) -> Windows:
        """Return the saved windows; after a reboot, whose slices start at 0, no open ones."""
        ramp, present, next_number = saved["ramp"]
        windows = cls(ramp)
        windows.round, windows._next_number = present, next_number
        windows._today = KeyDraws() if present > 1 else None
        # An earlier version forgot the first round's keys when the second one began.
        known = saved.get("keys", (present == 1, 0))
        windows._draws_in_ramp, windows.called_before = known
        windows.assigned, windows.unreported = map(Draws.from_list, saved["draws"])
        if not same_boot:
            return windows
        windows._calls, windows._recorded_before, *lost = saved["counts"]
        windows.repeats, windows.late, windows._overflown_before = lost
        for each in saved["open"]:
            windows._open_window(CallWindow.from_list(each))
        for slice_number, epoch, *sides in saved["recorded"]:
            canary, stable = map(Side.from_list, sides)
            windows._recorded[slice_number, epoch] = canary, stable
        by_number = {window.number: window for window in windows.open}
        for ring, key, serial, *group, number, asked in saved["units"]:
            of = Group(*group)
            unit = by_number[number], OpenCalls(of.slice, of.canary, asked)
            windows._units.setdefault((CallKey(ring, key, serial), of), []).append(unit)
        return windows
