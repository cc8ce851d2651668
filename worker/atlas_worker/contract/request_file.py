"""The request file: memory-mapped counts of a process's requests, which the daemon reads.

Protocol. The file is `STATE_DIR/canary/<pid>-<start_ticks>-<hex>.requests`, of fixed size, little
endian, and has all its blocks. One process writes, the daemon reads; there is no lock and no system
call between them. Cells of 64 bits only ever grow; each changes by one aligned store.

- A request adds 1 to `BEGUN` of the second in which it begins: the cells of
  `int(time.monotonic()) % SECONDS`, which are used again after `SECONDS`, and go on from there.
- Its end adds 1 to the cell of its outcome: of that same second if it took less than
  `SLOW_SECONDS`, else of the record behind the last second. And 1 to the bucket of its latency, if
  the outcome is a class of status.
- So the difference of all that has begun and all that has an outcome is what is open; what is open
  when the process has died was cut. A SIGKILL loses no count.
"""

from __future__ import annotations

import struct

from atlas_worker.contract import SLOWEST_BUCKET
from atlas_worker.contract.ring import Owner

MAGIC = b"ATLASRQ1"
LAYOUT_VERSION = 1
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
FILE_BYTES = HEADER_BYTES + CELLS * WORD_BYTES

# Magic, layout version, seconds, cells, padding, pid, start ticks, boot id, instance, version.
_HEADER = struct.Struct("<8sIIIIQQ36s4x80s96s")


def pack_header(owner: Owner) -> bytes:
    """Return the header of the file."""
    return _HEADER.pack(
        MAGIC,
        LAYOUT_VERSION,
        SECONDS,
        CELLS,
        0,
        owner.pid,
        owner.start_ticks,
        owner.boot_id.encode(),
        owner.instance.encode(errors="replace"),
        owner.version.encode(errors="replace"),
    )


def unpack_header(header: bytes) -> Owner:
    """Return the owner of a file. Raises ValueError for an unknown layout."""
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError("not a request file")
    _, layout, seconds, cells, _, pid, ticks, *texts = _HEADER.unpack_from(header)
    if (layout, seconds, cells) != (LAYOUT_VERSION, SECONDS, CELLS):
        raise ValueError(f"unknown layout {layout} ({seconds} seconds, {cells} cells)")
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is not a pid")
    boot_id, instance, version = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
    return Owner(pid, ticks, boot_id, instance, version)
