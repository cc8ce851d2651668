"""Collects new events from all rings, and notices which processes have exited.

A ring's position is released to its process only after everything before it is in the database
(`acknowledge`). So a daemon that is killed reads unacknowledged events again, and no others.

Rings belong to programs that may be broken or hostile, so each resource has a bound: descriptors
(MAX_OPEN; a ring of an exited process is closed once it is read), events in memory
(UNITS_PER_POLL), and rings of one process (MAX_PER_PROCESS: the older ones are of programs that
it has replaced by `exec`). A ring that fails a check is set aside: renamed, with its reason in the
log, the health and the suggestions.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import structlog

from atlas_supervisor.canary.ring_reader import Positions, RingReader, RingRefusedError, ring_files
from atlas_supervisor.model.canary import RingRow
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.failpoints import seam
from atlas_worker.contract.ring import (
    FOLDER_BYTES_LIMIT,
    REFUSED_CALLS_FILE,
    RING_SUFFIX,
    RingEvent,
    decode,
)

log = structlog.get_logger(__name__)

MAX_OPEN = 512
"""Rings of living processes that are read, or a quarter of the descriptors; others wait."""
_TRIED = 64
MAX_PER_PROCESS = 4
UNITS_PER_POLL = 200_000
_ASIDE = ".refused"
_KEPT_ASIDE = 8
_RECENT_SECONDS = 3600.0
"""How long a problem is reported after it was last seen."""
_LOGGED_SECONDS = 60.0
_COUNT = struct.Struct("<Q")
_MOST_CALLS = 2**53
_decoded = lru_cache(maxsize=4096)(decode)  # events of several processes and polls are alike


class CollectedEvents(NamedTuple):
    """The new events of one process."""

    ring: str
    events: Mapping[RingEvent, int]
    keyed: Collection[tuple[RingEvent, int, int]]
    """Each with the key's hash and the call's serial, which an outcome repeats."""
    exited: bool
    """Whether the process has exited, so that these are its last events."""


@dataclass
class _TrackedRing:
    reader: RingReader
    read: Positions
    saved: RingRow
    dropped: int = 0
    exited: bool = False
    superseded: bool = False
    """Whether its process has written newer rings."""

    @property
    def row(self) -> RingRow:
        return RingRow(self.saved.ring, self.read.main, self.read.keyed, self.dropped)

    @property
    def is_unacknowledged(self) -> bool:
        return self.exited or self.row != self.saved


class _Problem:
    def __init__(self, message: str, *, logged: Stopwatch) -> None:
        self.message = message
        self.logged = logged
        self.seen = Stopwatch()


class CallCollector:
    """The rings in one folder. `poll`, `acknowledge` and `close` block on the disk."""

    def __init__(self, folder: Path, known: Iterable[RingRow], saved: str = "[0, 0]") -> None:
        self._folder = folder
        self._known = {row.ring: row for row in known}
        """Positions saved by the last daemon, of rings that are not open yet."""
        self._rings: dict[str, _TrackedRing] = {}
        self._due: deque[str] = deque()
        """Rings that are still to be read in this poll."""
        self._refused: set[str] = set()
        """Files that could not be renamed out of the way."""
        self._removed: list[str] = []
        """Rings whose files are removed and whose saved positions can be deleted."""
        total: int
        total, self._refused_calls = json.loads(saved)
        self._dropped_before = total - sum(row.dropped for row in self._known.values())
        self._reported_dropped = total
        self._problems: dict[str, _Problem] = {}

    @property
    def dropped(self) -> int:
        """How many calls found no room, those of exited processes and without a ring included."""
        return self._dropped_before + sum(each.dropped for each in self._rings.values())

    def saved(self) -> str:
        """Return the counts of dropped calls as JSON, for the next daemon."""
        unopened = sum(row.dropped for row in self._known.values())
        return json.dumps([self.dropped + unopened, self._refused_calls])

    @property
    def has_unwritten(self) -> bool:
        """Whether positions have changed that are not in the database yet."""
        return bool(self._removed) or any(each.is_unacknowledged for each in self._rings.values())

    def problems(self) -> dict[str, str]:
        """Return the losses and refusals of the last hour as messages, by code."""
        return {
            code: each.message
            for code, each in self._problems.items()
            if each.seen.seconds < _RECENT_SECONDS
        }

    def prepare(self) -> None:
        """Create the count of refused calls, and remove files without a name. Raises OSError.

        A process that was killed has created the latter and never renamed them to a ring.
        """
        with suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self._folder / REFUSED_CALLS_FILE, flags, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(_COUNT.pack(0))
                if os.geteuid() == 0:  # workers write to it, whose folder it is
                    owner = self._folder.stat()
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
        for path in self._folder.glob(f".*{RING_SUFFIX}.new"):
            pid = path.name.lstrip(".").partition("-")[0]
            if not pid.isdecimal() or procfs.start_ticks(int(pid)) is None:
                path.unlink(missing_ok=True)

    def poll(self) -> tuple[list[CollectedEvents], bool]:
        """Return the new events of some rings, and whether others are still to be read.

        The first call after all were read looks for new rings.
        """
        if not self._due:
            self._open_new()
            self._due.extend(self._rings)
        collected, room = [], UNITS_PER_POLL
        while self._due and room > 0:
            name = self._due.popleft()
            ring = self._rings.get(name)
            if ring is not None and (found := self._read(name, ring)) is not None:
                collected.append(found)
                room -= sum(found.events.values()) + len(found.keyed)
        if not self._due:
            collected += self._missing()
            self._count_refused()
            self._notice_dropped()
        return collected, bool(self._due)

    def _missing(self) -> list[CollectedEvents]:
        """Return the end of each ring that the last daemon knew and that has no file any more."""
        missing = [name for name in self._known if not (self._folder / name).exists()]
        for name in missing:
            self._dropped_before += self._known.pop(name).dropped
        self._removed += missing
        return [CollectedEvents(name, {}, (), exited=True) for name in missing]

    def _open_new(self) -> None:
        present = {path.name: path for path in ring_files(self._folder)}
        self._refused &= present.keys()
        new = [name for name in present if name not in self._rings and name not in self._refused]
        most = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        room = max(most - sum(not each.exited for each in self._rings.values()), 0)
        # Of those that wait, some are tried: a ring of an exited process is closed at once.
        waiting = random.sample(new[room:], min(len(new[room:]), _TRIED))
        refused = []
        for name in (*new[:room], *waiting):
            try:
                self._open(name, present[name], only_exited=name in waiting)
            except RingRefusedError as error:
                refused.append(self._set_aside(present[name], str(error)))
            except OSError:  # no descriptor is left
                break
        self._report_refused(refused)
        left = sum(name not in self._rings for name in new) - len(refused)
        if left > 0:
            why = f"{left} processes wait until their canary calls are read: {most} others may be"
            self._report("canary_rings_waiting", why)

    def _open(self, name: str, path: Path, *, only_exited: bool) -> None:
        reader = RingReader.open(path)
        try:
            reader.refuse_forged()
            tail = reader.tail
        except RingRefusedError:
            reader.close()
            raise
        if only_exited and reader.alive():
            reader.close()
            return
        self._supersede(reader)
        row = self._known.pop(name, RingRow(name, 0, 0, 0))
        start = Positions(max(row.tail, tail.main), max(row.keyed_tail, tail.keyed))
        self._rings[name] = _TrackedRing(reader, start, row, row.dropped)

    def _supersede(self, new: RingReader) -> None:
        """End the oldest ring of a process that has too many."""
        older = [
            each
            for each in self._rings.values()
            if each.reader.owner == new.owner and not (each.exited or each.superseded)
        ]
        if len(older) >= MAX_PER_PROCESS:
            older[0].superseded = True

    def _read(self, name: str, ring: _TrackedRing) -> CollectedEvents | None:
        if ring.exited:
            return None
        try:
            batch = ring.reader.read(ring.read)
        except RingRefusedError as error:
            ring.exited = True
            ring.reader.close()
            self._report_refused([self._set_aside(ring.reader.path, str(error))])
            return CollectedEvents(name, {}, (), exited=True)
        ring.read, ring.dropped = batch.next, batch.dropped
        if not batch.alive or ring.superseded:
            ring.exited = True
            ring.reader.close()
        if not (batch.events or batch.keyed or ring.exited):
            return None
        return CollectedEvents(
            name,
            {_decoded(word): count for word, count in batch.events.items()},
            [(_decoded(word), key, serial) for word, key, serial in batch.keyed],
            ring.exited,
        )

    def positions(self) -> list[RingRow]:
        """Return the positions that are to be written to the database."""
        return [each.row for each in self._rings.values() if each.is_unacknowledged]

    def removed(self) -> list[str]:
        """Return the rings whose saved positions are to be deleted."""
        return list(self._removed)

    @seam("canary-rings")
    def acknowledge(self, rows: Iterable[RingRow], removed: Collection[str]) -> None:
        """Release the space of events that are in the database now."""
        self._removed = [name for name in self._removed if name not in removed]
        for row in rows:
            ring = self._rings[row.ring]
            ring.saved = row
            if ring.exited:
                self._remove(row.ring, ring)
                continue
            with suppress(RingRefusedError):  # the next poll refuses it
                ring.reader.advance(Positions(row.tail, row.keyed_tail))

    def _remove(self, name: str, ring: _TrackedRing) -> None:
        """Remove the file of an exited process; its saved position is deleted afterwards."""
        try:
            ring.reader.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("canary_ring_not_removed", ring=name, why=str(error))
            return
        self._dropped_before += ring.dropped
        del self._rings[name]
        self._removed.append(name)

    def close(self) -> None:
        """Close all files."""
        for each in self._rings.values():
            each.reader.close()

    # What was lost or refused.

    def _set_aside(self, path: Path, why: str) -> str:
        """Rename a file that is no ring, and remove all but the newest of those; return why."""
        try:
            path.rename(path.with_name(path.name + _ASIDE))
        except OSError:
            self._refused.add(path.name)
        kept = sorted(self._folder.glob(f"*{_ASIDE}"), key=lambda each: each.lstat().st_ctime_ns)
        for old in kept[:-_KEPT_ASIDE]:
            with suppress(OSError):
                old.unlink()
        return why

    def _report_refused(self, reasons: list[str]) -> None:
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            self._report("canary_ring_refused", f"{reasons[0]}{more}")

    def _count_refused(self) -> None:
        """Add the calls of processes that could not create a ring."""
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._folder / REFUSED_CALLS_FILE, flags)
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                (count,) = _COUNT.unpack(file.read(_COUNT.size) or b"")
        except (OSError, struct.error):
            return
        if count != self._refused_calls and count <= _MOST_CALLS:
            new = count - self._refused_calls
            self._dropped_before += new if new > 0 else count
            self._refused_calls = count

    def _notice_dropped(self) -> None:
        dropped = self.dropped
        if dropped > self._reported_dropped:
            full = f"or {FOLDER_BYTES_LIMIT // 2**20} MiB of rings were unread"
            why = f"the daemon was away for long, its disk refuses writes or is full, {full}"
            self._report("canary_events_dropped", f"{dropped} canary calls are not counted: {why}")
            self._reported_dropped = dropped

    def _report(self, code: str, message: str) -> None:
        """Remember a problem; it is logged at most once a minute."""
        known = self._problems.get(code)
        if known is None or known.logged.seconds > _LOGGED_SECONDS:
            log.warning("canary_calls_lost", code=code, why=message)
            known = None
        self._problems[code] = _Problem(message, logged=known.logged if known else Stopwatch())
