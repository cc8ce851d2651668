"""Collects the counts of users' requests once a second, and keeps them by instance and second.

For the evidence of ramps and guards, with an instance by its name (`WorkerProcess.name`):

- `totals(instance)`: all counts since its first request, over its processes and restarts of the
  daemon. None for one that does not count: it has no kit, or does not serve yet.
- `seconds(instance, since)`: what began in each second from `since` on (`time.monotonic()`), the
  last ten minutes at most; the last ones are not sealed yet. What began before the daemon's start
  is in the totals alone.
- `record(version, since, until)`: what a version has counted, whole minutes of Unix time.
- `store`: keeps what evidence needs over a restart.

Counts are written once a minute, with the cells they come from: a daemon that was killed goes on
from there, and nothing is counted twice or lost. The file of a process that has ended is removed
once its last counts are written.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.model.judgement import ComparisonRules
from atlas_supervisor.model.requests import (
    RecentRequests,
    RequestCounts,
    RequestFigures,
    RequestHour,
    RequestSecond,
    RequestTotals,
)
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.requests.addresses import AddressCounts
from atlas_supervisor.requests.count_file import CountFile, Reading, TrackedFile, packed, unpacked
from atlas_supervisor.requests.figures import (
    KEPT_SECONDS,
    InstanceCounts,
    RecentCounts,
    RequestHistory,
)
from atlas_supervisor.requests.firsts import FirstRequestCounts
from atlas_supervisor.requests.seconds import LATE_SECONDS, Cells, added, left_open, totals_of
from atlas_supervisor.store.requests import InstanceRow, RequestCommit, RequestStore
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import steady_time
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.system.worker_file import UnusableFileError, worker_files
from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_worker.contract import RINGS_DIRECTORY
from atlas_worker.contract.request_file import SUFFIX

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
WRITE_SECONDS = 60
_AFTER_BUG_SECONDS = 10.0
MAX_OPEN = 384
"""Files of living processes that are read, or a quarter of the descriptors; others wait."""
MAX_PER_INSTANCE = 64
"""Processes of one instance whose requests are counted; there are up to six instances."""
_SERIES = 8
"""Slots' versions whose counts are exposed as metrics, the latest ones."""


class InstanceName(NamedTuple):
    """An instance that is there, and what it is an instance of."""

    name: str
    slot: str
    version: str
    kit: bool = True
    """Whether it counts its requests itself; else the relay does, if it carries them."""


class RequestCollector:
    """The request files in one folder; and what was counted, for the status and for evidence."""

    def __init__(self, state_dir: Path, store: RequestStore) -> None:
        self.present: Callable[[], list[InstanceName]] = list
        """Returns the instances that are there; set by the daemon."""
        self.relayed: Callable[[], Mapping[SlotName, RequestTally]] = dict
        """Returns what the relay counts, by slot; set by the daemon."""
        self.firsts = FirstRequestCounts()
        """The first requests of connections, of instances that are compared."""
        self.rules = ComparisonRules()
        """How versions are compared; set by `compare_by`."""
        self._folder = state_dir / RINGS_DIRECTORY
        self.store = store
        self._history = RequestHistory(store)
        self._recent = RecentCounts(time.monotonic())
        self._instances: dict[str, InstanceCounts] = {}
        self._saved_rows: dict[str, InstanceRow] = {}
        self._saved_cells: dict[str, bytes] = {}
        self._files: dict[str, TrackedFile] = {}
        self._refused: set[str] = set()
        self._gone: set[str] = set()
        self._changed: set[str] = set()
        self._exposed: dict[tuple[str, str], RequestTotals] = {}
        self._polled = False
        self._write_at = 0.0
        self._lock = anyio.Lock()
        """Held while files are read or written: the daemon's stop does both beside `run`."""

    def compare_by(self, rules: ComparisonRules) -> None:
        """Compare versions by these rules; to be called before the first reading."""
        self.rules = rules
        if rules.by_address:
            self.firsts = AddressCounts(rules.key_id)

    async def restore(self) -> None:
        """Read what the last daemon has written, and remove unfinished files. Raises StoreError.

        A process that was killed has created the latter and never named them.
        """
        self._saved_rows = {row.instance: row for row in await self.store.instances()}
        self._saved_cells = await self.store.files()
        self._write_at = _next_minute()
        await in_thread(self._remove_unfinished)

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(f".*{SUFFIX}.new"):
            pid = path.name.lstrip(".").partition("-")[0]
            if not pid.isdecimal() or procfs.start_ticks(int(pid)) is None:
                path.unlink(missing_ok=True)

    async def run(self) -> None:
        """Read the files once a second until cancelled; then close them."""
        try:
            while True:
                due = anyio.current_time() + POLL_SECONDS
                try:
                    await self.poll()
                    if steady_time() >= self._write_at:
                        self._write_at = _next_minute()
                        await self.write()
                except StoreError as error:  # tried again in a minute
                    log.error("requests_not_written", why=str(error))
                except Exception:  # a bug must not stop the daemon, which also runs deploys
                    log.exception("requests_poll_failed")
                    await anyio.sleep(_AFTER_BUG_SECONDS)
                await anyio.sleep_until(due)
        finally:
            for tracked in self._files.values():
                tracked.file.close()

    async def finish(self) -> None:
        """Read and write the last counts of workers that have ended."""
        try:
            await self.poll()
            await self.write()
        except StoreError as error:  # the next daemon reads them
            log.error("requests_not_written", why=str(error))

    # What others ask for.

    def totals(self, instance: str) -> RequestTotals | None:
        """Return a copy of everything that the instance has counted; None if it does not count."""
        found = self._instances.get(instance)
        return found.totals.copy() if found else None

    def seconds(self, instance: str, since: int) -> list[RequestSecond]:
        """Return the seconds from `since` on in which requests have begun, oldest first."""
        found = self._instances.get(instance)
        return found.seconds(since, time.monotonic()) if found else []

    def figures(self, instance: str) -> RequestFigures | None:
        """Return the live figures of an instance; None if it does not count."""
        found = self._instances.get(instance)
        return found.figures(time.monotonic()) if found else None

    def recent(self) -> RecentRequests:
        """Return the requests of all versions in the last five minutes."""
        return self._recent.view(time.monotonic())

    async def record(self, version: str, since: float, until: float) -> RequestTotals:
        """Return the totals of a version in the minutes that begin in `[since, until)`.

        Times are Unix time; up to the present one, with what is not written yet. Raises StoreError.
        """
        total = RequestTotals()
        async with self._lock:  # not while a minute is on its way
            for row in await self.store.minutes(version, int(since), int(until)):
                total.add(row.totals)
            if until > steady_time() - WRITE_SECONDS:
                total.add(self._history.unwritten(version))
        return total

    async def last_hour(self) -> RequestHour:
        """Return the last hour by version, with the switches. Raises StoreError."""
        async with self._lock:
            present = self.present()
            uncounted = {each.version for each in present if self.totals(each.name) is None}
            return await self._history.last_hour(sorted(uncounted))

    def exposed(self) -> Mapping[tuple[str, str], RequestTotals]:
        """Return the counts since the daemon's start, by slot and version."""
        return self._exposed

    # Reading.

    async def poll(self) -> None:
        """Read all files once."""
        async with self._lock:
            await self._poll()

    async def _poll(self) -> None:
        present = {each.name: each for each in self.present()}
        with anyio.CancelScope(shield=True):  # what was read must be added
            since, compared = time.monotonic(), self.firsts.names
            read = await in_thread(partial(self._read_all, present, compared))
            now = time.monotonic()
            living = [
                each.tracked.instance
                for each in read
                if not each.ended and each.tracked.file.key_id == self.firsts.key_id
            ]
            relayed = [each.name for each in present.values() if not each.kit]
            if compared is self.firsts.names:  # else others are compared since
                self.firsts.begin(since, now, [*living, *relayed])
            for tracked, cells, firsts, ended in read:
                self._add(tracked, cells, now, ended=ended)
                if firsts and compared is self.firsts.names:
                    path = tracked.file.path
                    self.firsts.read(tracked.instance, path.name, firsts, ended=ended)
            self._add_relayed(present, now)
            self._polled = True
        reading = {each.instance for each in self._files.values()}
        for name in self._instances.keys() - present.keys() - reading - self._changed:
            if self._instances[name].added_at < now - KEPT_SECONDS:
                del self._instances[name]

    def _read_all(
        self, present: Mapping[str, InstanceName], compared: frozenset[str]
    ) -> list[Reading]:
        self._open_new(present)
        read = []
        for tracked in self._files.values():
            if tracked.ended:
                continue
            file = tracked.file
            ended = not file.alive()  # first: then everything it wrote is there
            try:
                cells = file.read(tracked.cells)
                wanted = tracked.instance in compared and file.key_id == self.firsts.key_id
                firsts = file.read_firsts() if wanted else b""
                read.append(Reading(tracked, cells, firsts, ended))
            except UnusableFileError as error:
                self._refuse(file.path, str(error))
                tracked.end()
        return read

    def _open_new(self, present: Mapping[str, InstanceName]) -> None:
        paths = {path.name: path for path in worker_files(self._folder, SUFFIX)}
        self._refused &= paths.keys()
        self._gone |= self._saved_cells.keys() - paths.keys()
        most = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        for name in sorted(paths.keys() - self._files.keys() - self._refused):
            if sum(not each.ended for each in self._files.values()) >= most:
                break
            try:
                self._open(paths[name], present)
            except UnusableFileError as error:
                self._refuse(paths[name], str(error))
            except OSError:  # no descriptor is left
                break

    def _open(self, path: Path, present: Mapping[str, InstanceName]) -> None:
        file = CountFile.open(path)
        name = file.owner.instance
        if name not in self._instances:
            known = present.get(name) or self._saved_rows.get(name)
            if known is None:  # of no instance that is ours, or not known yet
                alive = file.alive()
                file.close()
                if not alive:
                    path.unlink(missing_ok=True)
                return
            self._instance(name, known.slot, known.version)
        if name in present and path.name not in self._saved_cells and not file.alive():
            file.close()  # its writer can't be checked any more
            raise UnusableFileError(f"{path.name} is refused: its process was never seen")
        if sum(each.instance == name for each in self._files.values()) >= MAX_PER_INSTANCE:
            file.close()
            raise UnusableFileError(f"{name} has {MAX_PER_INSTANCE} request files already")
        saved = unpacked(self._saved_cells.pop(path.name, None))
        now = time.monotonic()
        # A file that is new since the last poll is of a process that began after that.
        since = 0 if self._polled else int(now) + 1
        self._files[path.name] = TrackedFile(file, name, saved, saved, now, since)

    def _instance(self, name: str, slot: str, version: str) -> InstanceCounts:
        if name not in self._instances:
            row = self._saved_rows.get(name)
            totals = row.totals if row else RequestTotals()
            self._instances[name] = InstanceCounts(slot, version, totals, time.monotonic())
            if row is None:  # the next daemon must know it, too
                self._changed.add(name)
                self._write_at = 0.0
        return self._instances[name]

    def _refuse(self, path: Path, why: str) -> None:
        """Log the reason once, and remove the file."""
        log.warning("request_file_refused", file=path.name, why=why)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._refused.add(path.name)

    def _add(self, tracked: TrackedFile, cells: Cells, now: float, *, ended: bool) -> None:
        """Add what is new in a file."""
        instance = self._instances[tracked.instance]
        if now - tracked.read_at > LATE_SECONDS:
            tracked.since = int(now) + 1
        more = RequestTotals()
        if cells != tracked.cells:
            more = totals_of(tracked.cells, cells)
            for second, counts in added(tracked.cells, cells, int(now)):
                if second is not None and second >= tracked.since:
                    instance.add_second(second, counts)
                    tracked.note(second, counts)
        if ended:
            more.add(RequestTotals(RequestCounts(cut=left_open(cells))))
            for second, count in tracked.open.items():
                instance.add_second(second, RequestCounts(cut=max(count, 0)))
            tracked.end()
        tracked.cells, tracked.read_at = cells, now
        tracked.forget_sealed(now)
        if instance.add(more, now):
            self._recent.add(more.counts, now)
        if more != RequestTotals():
            self._note(tracked.instance, instance, more)

    def _add_relayed(self, present: Mapping[str, InstanceName], now: float) -> None:
        """Add what the relay has counted to the instances in the slots."""
        slots = {each.slot: each for each in present.values()}
        for slot, tally in self.relayed().items():
            if (known := slots.get(slot)) is None:
                continue
            more = tally.take()
            if known.kit:
                continue
            instance = self._instance(known.name, known.slot, known.version)
            for second, counts in more.seconds.items():
                instance.add_second(second, counts)
            if known.name in self.firsts.names:
                self.firsts.add(known.name, more.firsts)
                self.firsts.add_addresses(known.name, more.addresses)
            if instance.add(more.totals, now):
                self._recent.add(more.totals.counts, now)
            if more.totals != RequestTotals():
                self._note(known.name, instance, more.totals)

    def _note(self, name: str, instance: InstanceCounts, more: RequestTotals) -> None:
        """Note what is to be written, and shown as metrics."""
        key = instance.slot, instance.version
        self._history.note(*key, more)
        exposed = self._exposed.pop(key, RequestTotals())
        exposed.add(more)
        self._exposed[key] = exposed  # the latest one is the last
        for old in list(self._exposed)[:-_SERIES]:
            del self._exposed[old]
        self._changed.add(name)

    # Writing.

    async def write(self) -> None:
        """Write what is new, and remove files that are read to their end. Raises StoreError."""
        async with self._lock:
            await self._write()

    async def _write(self) -> None:
        ended = {name for name, tracked in self._files.items() if tracked.ended}
        cells = {
            name: tracked.cells
            for name, tracked in self._files.items()
            if not tracked.ended and tracked.cells is not tracked.saved
        }
        minutes = self._history.take()
        if not (self._changed or ended or cells or self._gone):
            return
        changed, self._changed = self._changed, set()
        gone = set(self._gone)
        try:
            await self.store.commit(
                RequestCommit(
                    minute=int(steady_time()) // WRITE_SECONDS * WRITE_SECONDS,
                    instances=[
                        InstanceRow(name, each.slot, each.version, each.totals)
                        for name, each in self._instances.items()
                    ],
                    files=[
                        (name, self._files[name].instance, packed(each))
                        for name, each in cells.items()
                    ],
                    gone=ended | gone,
                    minutes=minutes,
                )
            )
        except BaseException:
            self._history.give_back(minutes)
            self._changed |= changed
            raise
        self._history.written(minutes)
        self._gone -= gone
        for name, each in cells.items():
            self._files[name].saved = each
        for name in ended:
            with suppress(OSError):
                self._files[name].file.path.unlink(missing_ok=True)
            del self._files[name]


def _next_minute() -> float:
    return (int(steady_time()) // WRITE_SECONDS + 1) * WRITE_SECONDS
