"""The request file: memory-mapped counts of a process's requests, which the daemon reads.

Protocol. The file is `STATE_DIR/canary/<pid>-<start_ticks>-<hex>.requests`, of fixed size, little
endian, and has all its blocks. One process writes, the daemon reads; there is no lock and no system
call between them. Cells of 64 bits only ever grow; each changes by one aligned store.

- A request adds 1 to `BEGUN` of the second in which it begins: the cells of
  `int(time.monotonic()) % SECONDS`, which are used again after `SECONDS`, and go on from there.
- Its end adds 1 to the cell of its outcome: of that same second if it took less than
  `SLOW_SECONDS`, else of the record behind the last second. And 1 to the bucket of its latency, if
  the outcome is a class of status.
- A first request of a connection, which is the unit of evidence when versions are compared, adds 1
  to `FIRST_BEGUN` of its second's cells from `FIRSTS` on as well. Its end adds 1 to `FIRST_FAILED`
  if it is one of 5xx, and then to the class of its latency; of one that took `SLOW_SECONDS`,
  nothing. Layout 1 ends before these cells.
- Where client addresses are drawn (layout 3) these cells are a list of addresses: the first one of
  a second has that second and how many addresses there were, each other one the key of an address
  (`addresses`) with the outcome of its first request in that second. The entry is written first,
  then the number. What comes when the list is full is only in the number. A reader leaves out lists
  that are older than a minute: their cells are used again.
- So the difference of all that has begun and all that has an outcome is what is open; what is open
  when the process has died was cut. A SIGKILL loses no count.
"""

from __future__ import annotations

import struct

from atlas_worker.contract import SLOWEST_BUCKET
from atlas_worker.contract.ring import Owner

MAGIC = b"ATLASRQ1"
LAYOUT_VERSION = 2
SUFFIX = ".requests"
FILE_MODE = 0o600
HEADER_BYTES = 4096
WORD_BYTES = 8
SECONDS = 128
SLOW_SECONDS = 60
"""A request that is open for so long is slow. `SECONDS` is more than this and the time between two
readings of a daemon that keeps up."""
CLASSES = 5  # of status: 1xx to 5xx
BEGUN = 0  # in a record; the classes are 1 to 5
LEFT = CLASSES + 1
RECORD_CELLS = 8  # one cache line; one cell is unused
SLOW_RECORD = SECONDS * RECORD_CELLS
"""The cell at which the record of slow requests begins."""
LATENCIES = SLOW_RECORD + RECORD_CELLS
"""The cell of latency bucket 0."""
CELLS = LATENCIES + SLOWEST_BUCKET + 1
"""The cells of all requests, with which layout 1 ends."""
FIRSTS = CELLS
"""The cell at which the first requests of connections begin."""
FIRST_CELLS = 128  # of a second
FIRST_WITHIN_SECONDS = 1.0
"""How long after its connection's beginning a first request may begin, to count as one."""
FIRST_BEGUN, FIRST_FAILED, FIRST_LATENCIES = 0, 1, 2
LATENCY_CLASSES = FIRST_CELLS - FIRST_LATENCIES
BUCKETS_PER_CLASS = 5  # a class is as wide as 10 %
CLASSES_BELOW = SLOWEST_BUCKET // BUCKETS_PER_CLASS - LATENCY_CLASSES + 1
"""Latencies of so many classes, under half a millisecond, are in the first one as well."""
ALL_CELLS = FIRSTS + SECONDS * FIRST_CELLS
ADDRESS_LAYOUT = 3
FILE_BYTES = {
    1: HEADER_BYTES + CELLS * WORD_BYTES,
    2: HEADER_BYTES + ALL_CELLS * WORD_BYTES,
    ADDRESS_LAYOUT: HEADER_BYTES + ALL_CELLS * WORD_BYTES,
}
"""Of each layout."""
ADDRESSES = FIRST_CELLS - 1
"""Addresses of a second, with those that are only counted beyond."""
SECOND_SHIFT = 32  # in the first cell of a list of addresses; how many there were is below
KEY_SHIFT = 8  # in an entry; below is 0 without an outcome, else the class of its latency and 1
ADDRESS_FAILED = 0x80

# Magic, layout version, seconds, cells, `key_id`, pid, start ticks, boot id, instance, version.
_HEADER = struct.Struct("<8sIIIIQQ36s4x80s96s")


def latency_class(bucket: int) -> int:
    """Return the class of a latency bucket, as first requests are counted by."""
    return max(bucket // BUCKETS_PER_CLASS - CLASSES_BELOW, 0)


def pack_header(owner: Owner, layout: int = LAYOUT_VERSION, key_id: int = 0) -> bytes:
    """Return the header of the file; `key_id` is that of the secret of layout 3."""
    return _HEADER.pack(
        MAGIC,
        layout,
        SECONDS,
        CELLS,
        key_id,
        owner.pid,
        owner.start_ticks,
        owner.boot_id.encode(),
        owner.instance.encode(errors="replace"),
        owner.version.encode(errors="replace"),
    )


def unpack_header(header: bytes) -> Owner:
    """Return the owner of a file. Raises ValueError for an unknown layout."""
    layout_of(header)
    _, _, _, _, _, pid, ticks, *texts = _HEADER.unpack_from(header)
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is not a pid")
    boot_id, instance, version = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
    return Owner(pid, ticks, boot_id, instance, version)


def key_id_of(header: bytes) -> int:
    """Return the `key_id` of a header that was unpacked; 0 if connections are counted."""
    return int(_HEADER.unpack_from(header)[4])


def layout_of(header: bytes) -> int:
    """Return the layout of a file. Raises ValueError for an unknown one."""
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError("not a request file")
    _, layout, seconds, cells, *_ = _HEADER.unpack_from(header)
    if layout not in FILE_BYTES or (seconds, cells) != (SECONDS, CELLS):
        raise ValueError(f"unknown layout {layout} ({seconds} seconds, {cells} cells)")
    return int(layout)
