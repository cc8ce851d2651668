"""Counts the requests of this process, without a lock or a system call on the request's path.

The layout and its protocol are in `atlas_worker.contract.request_file`. A cell is changed by
`cells[place] += 1` with a place that is known before: the interpreter switches threads and runs
signal handlers only at calls and at backward jumps, and there is none between reading and writing.
That needs the global interpreter lock; without it nothing is counted.

What counts: a request of a user, from its head until the response has ended (a stream to its last
byte). Not the supervisor's probes and smoke tests, which carry a header. A WebSocket is a
connection: its handshake is the request, and ended when it is answered. A response that the
application did not finish counts as 500, also if its first line had another status; a client that
left before its end is no failure.

Of each connection that was drawn between two versions, the first request counts once more, for the
comparison of the versions: later requests of a connection are no draws of their own. It must begin
within a second of the connection's beginning, so that a changed share is known to apply a second
later. Testers' connections are not drawn, and those that do not come by the public socket. Where
addresses are drawn, the unit is an address: the first of these requests that one makes in a second
is listed, and the supervisor finds the first of all seconds and processes.

A forked child counts in a file of its own, from its first request on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from time import monotonic
from typing import Protocol

from atlas_worker.contract import (
    ENV_ADDRESS_KEY,
    ENV_INSTANCE,
    ENV_STATE_DIR,
    ENV_TESTERS,
    RINGS_DIRECTORY,
    SLOWEST_BUCKET,
    latency_bucket,
)
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.addresses import Drawn, address_key, key_id
from atlas_worker.contract.request_file import (
    ADDRESS_FAILED,
    CLASSES,
    FIRST_CELLS,
    FIRST_FAILED,
    FIRST_LATENCIES,
    FIRST_WITHIN_SECONDS,
    FIRSTS,
    KEY_SHIFT,
    LATENCIES,
    LEFT,
    RECORD_CELLS,
    SECOND_SHIFT,
    SECONDS,
    SLOW_RECORD,
    SLOW_SECONDS,
    latency_class,
)
from atlas_worker.contract.ring import Owner
from atlas_worker.process_file import create

CLIENT_LEFT = 0
"""In place of a status: the client left before the response had ended."""
UNFINISHED = 500
"""The status of a response that the application did not finish."""
NOT_COUNTED = 0.0
"""In place of a beginning."""
NOT_DRAWN = 0.0
"""In place of a connection's beginning: its next request is not its first, or it was not drawn."""

_BYTES = layout.FILE_BYTES[layout.LAYOUT_VERSION]
_LATENCY_CELLS = bytes(FIRST_LATENCIES + latency_class(each) for each in range(SLOWEST_BUCKET + 1))
_OUTCOMES = bytes(min(max(status // 100, 1), CLASSES) if status else LEFT for status in range(1000))


class Begin(Protocol):
    """What `RequestCounter.begin` is."""

    def __call__(self, since: float = NOT_DRAWN, /) -> float:
        """Count a request that begins, the first one of a connection if `since` is given."""


class RequestCounter:
    """The counts of one process. `begin` and `end` never raise.

    begin(since) -> float: counts a request that begins, and returns what its end is to be called
        with. `since` is what `connected` has returned for its connection, if it is the first one.
    end(began, status): counts its end. One that was not counted at its beginning is not counted.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the state of a process before its first request; a fork has its parent's."""
        self._lock = threading.Lock()
        self._opened = False
        self.begin: Begin = self._open_and_begin
        self.end: Callable[[float, int], None] = _ignore

    def open(self) -> None:
        """Create the file, unless there is one. Without a supervisor nothing is counted."""
        with self._lock:
            if self._opened:
                return
            self._opened = True
            self.begin, self.end = _uncounted, _ignore
            if not os.environ.get(ENV_INSTANCE):
                return
            folder = Path(os.environ.get(ENV_STATE_DIR) or "state").absolute() / RINGS_DIRECTORY
            count = counting_addresses if _secret() else counting
            try:
                file, _path = create(folder, layout.SUFFIX, _BYTES, _fill)
            except FileNotFoundError:
                return  # there is no supervisor
            except (OSError, ValueError) as error:
                problem = str(error)
            else:
                self.begin, self.end = count(memoryview(file)[layout.HEADER_BYTES :].cast("Q"))
                return
        import logging  # noqa: PLC0415 - most processes log nothing here

        logging.getLogger("atlas.worker").warning(
            "requests of this process are not counted: %s", problem
        )

    def connected(self, client: str | None) -> float:
        """Return when a drawn connection has begun: now; `client` is its address, if it is known.

        With testers, one from this machine counts for none: the relay may have carried it.
        """
        if testers := _testers():
            try:
                address = ip_address((client or "").partition("%")[0])
            except ValueError:
                return NOT_DRAWN
            address = getattr(address, "ipv4_mapped", None) or address
            if address.is_loopback or any(address in network for network in testers):
                return NOT_DRAWN
        if secret := _secret():
            key = _key_of(client or "", secret)
            return Drawn(monotonic(), key) if key else NOT_DRAWN
        return monotonic()

    def _open_and_begin(self, since: float = NOT_DRAWN) -> float:
        self.open()
        return self.begin(since)


@cache
def _testers() -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks whose connections are not drawn: TRAFFIC_TESTERS of the supervisor."""
    named = os.environ.get(ENV_TESTERS, "").split(",")
    try:
        return tuple(ip_network(each) for each in named if each)
    except ValueError:  # the supervisor sends no such thing, so all may be testers
        return ip_network("0.0.0.0/0"), ip_network("::/0")


@cache
def _secret() -> bytes:
    """Return the secret for hashing addresses; empty if connections are drawn."""
    try:
        return bytes.fromhex(os.environ.get(ENV_ADDRESS_KEY, ""))
    except ValueError:  # the supervisor sends no such thing
        return b""


_key_of = lru_cache(4096)(address_key)

Counting = tuple[Begin, Callable[[float, int], None]]
"""`begin` and `end`."""


def counting(cells: memoryview[int]) -> Counting:
    """Return `begin` and `end` that count in these cells.

    The beginning of a first request is negative.
    """
    opened = monotonic()

    def begin(since: float = NOT_DRAWN) -> float:
        began = monotonic()
        second = int(began) % SECONDS
        place = second * RECORD_CELLS
        cells[place] += 1
        if began - since > FIRST_WITHIN_SECONDS:
            return began
        place = FIRSTS + second * FIRST_CELLS
        cells[place] += 1
        return -began

    def end(began: float, status: int) -> None:
        first = began < 0
        if first:
            began = -began
        if began < opened:  # not counted, or by the process before a fork
            return
        took = monotonic() - began
        bucket = latency_bucket(took * 1000)
        second = int(began) % SECONDS
        outcome = _OUTCOMES[status] if 0 <= status < 1000 else CLASSES
        place = (SLOW_RECORD if took >= SLOW_SECONDS else second * RECORD_CELLS) + outcome
        cells[place] += 1
        if outcome != LEFT:
            place = LATENCIES + bucket
            cells[place] += 1
        if first and took < SLOW_SECONDS:
            record = FIRSTS + second * FIRST_CELLS
            if outcome == CLASSES:
                place = record + FIRST_FAILED
                cells[place] += 1
            place = record + _LATENCY_CELLS[bucket]
            cells[place] += 1

    return begin, end


class _First(float):
    """What `begin` returns for the first request of an address in a second; it is negative."""

    __slots__ = ("place",)
    place: int
    """Its cell."""


def counting_addresses(cells: memoryview[int]) -> Counting:
    """Return `begin` and `end` that count in these cells, and list addresses by the second."""
    count_begin, count_end = counting(cells)
    opened = monotonic()
    listed: set[int] = set()
    """The addresses of the second."""
    listed_second = -1

    def begin(since: float = NOT_DRAWN) -> float:
        nonlocal listed_second
        began = count_begin()
        if not isinstance(since, Drawn) or began - since > FIRST_WITHIN_SECONDS:
            return began
        second, key = int(began), since.key
        if second != listed_second:
            listed.clear()
            listed_second = second
        if key in listed:
            return began
        listed.add(key)  # two threads may list one twice
        first = _First(-began)
        record = FIRSTS + second % SECONDS * FIRST_CELLS
        head = cells[record]
        if head >> SECOND_SHIFT != second:
            head = second << SECOND_SHIFT
        head += 1
        place = record + (head & 0xFFFFFFFF)
        if place < record + FIRST_CELLS:
            cells[place] = key << KEY_SHIFT
            cells[record] = head
            first.place = place
            return first
        cells[record] = head
        return began

    def end(began: float, status: int) -> None:
        if not isinstance(began, _First):
            count_end(began, status)
            return
        place, began = began.place, -began
        count_end(began, status)
        took = monotonic() - began
        if began >= opened and took < SLOW_SECONDS:  # else of the process before a fork, or slow
            outcome = latency_class(latency_bucket(took * 1000)) + 1
            cells[place] |= outcome | _failed(status)

    return begin, end


def _failed(status: int) -> int:
    outcome = _OUTCOMES[status] if 0 <= status < 1000 else CLASSES
    return ADDRESS_FAILED if outcome == CLASSES else 0


def _uncounted(_since: float = NOT_DRAWN) -> float:
    return NOT_COUNTED


def _ignore(_began: float, _status: int) -> None:
    pass


def _fill(descriptor: int, owner: Owner) -> None:
    os.posix_fallocate(descriptor, 0, _BYTES)
    own = (layout.ADDRESS_LAYOUT, key_id(_secret())) if _secret() else ()
    os.pwrite(descriptor, layout.pack_header(owner, *own), 0)


counter = RequestCounter()
os.register_at_fork(after_in_child=counter.reset)
