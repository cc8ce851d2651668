"""The ring: a memory-mapped file in which a process writes its canary events for the daemon.

Protocol. The file is `STATE_DIR/canary/<pid>-<start_ticks>-<hex>.ring`, of fixed size, little
endian. It has two rings, for events without and with a key. One process writes, the daemon reads;
there is no lock and no system call between them.

- An event is one word of 64 bits; one with a key has the key's hash besides, which is written
  first. One aligned store makes it visible, so an event is either there or not.
- The event with index i is at place i % capacity. Its lap bit is that of i // capacity, so a word
  of the lap before is not taken for a new one. There is no head in the file: a word is written if
  its kind is not 0 and its lap bit fits. What a killed process has written is therefore reported.
- The daemon writes the tail: everything before it is in the database and its space is free. The
  process writes up to tail + capacity and counts what it drops; the daemon alone writes the tails,
  the process alone everything else.
- Outcomes may use a quarter of the ring that assignments may not, so a call that has started can
  always report its end.
- An assignment is STARTED (a call), ASKED (a decision alone) or RECORDED (with its outcome). Its
  outcome is ENDED or REPORTED, and repeats epoch, arm and slice of the assignment.
- A key word is the top 47 bits of the key's hash and, in the low 16, the serial of the call, which
  its outcome repeats: a key's overlapping calls stay apart. It is unique among the open calls of
  the key in this ring; the kit combines the next 16 bits of the hash with the assignment's place.
- The process publishes up to which index it has reserved places before it writes any of them, so
  nothing is written from there on. The file is sparse: blocks exist for the first places of both
  rings, and for all of one once half of those are used.

Layout 1, of earlier kits, has 63 bits of hash, no serial, and no cell of reserved places. The state
file's `ring_layout` is the newest layout that the daemon reads; without it the kit writes layout 1.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"ATLASCN1"
LAYOUT_VERSION = 2
FIRST_LAYOUT = 1  # without serials; the oldest that is read
MAIN_WORDS = 2**17
KEYED_ENTRIES = 2**15  # of two words: an event, and its key word
HEADER_BYTES = 4096
WORD_BYTES = 8
KEYED_OFFSET = HEADER_BYTES + MAIN_WORDS * WORD_BYTES
RING_BYTES = KEYED_OFFSET + KEYED_ENTRIES * 2 * WORD_BYTES
RING_SUFFIX = ".ring"
RING_MODE = 0o600
MAIN_FIRST_WORDS = 2**12
KEYED_FIRST_ENTRIES = 2**10
"""The places that a new file has blocks for; half of them are reserved at once at most."""
FOLDER_BYTES_LIMIT = 256 * RING_BYTES
"""With this much in the folder no daemon has read it for long; no more rings are added."""
REFUSED_CALLS_FILE = "refused_calls"
"""In the folder, made by the daemon: one cell, the number of calls of processes that could not
create a ring. Processes add to it under an exclusive `flock`."""

# Magic, layout version, both capacities, padding, pid, start ticks, boot id, instance, version;
# texts are UTF-8, cut to their width and padded with NUL.
_HEADER = struct.Struct("<8sIIIIQQ36s4x80s96s")
# Cells of eight bytes, each on a cache line of its own. "Dropped" counts calls that found no room,
# each once; "reserved" is the index from which on nothing is written.
TAIL_OFFSET = 256
KEYED_TAIL_OFFSET = 320
DROPPED_OFFSET = 384
KEYED_DROPPED_OFFSET = 448
RESERVED_OFFSET = 512
KEYED_RESERVED_OFFSET = 576

# An event's word from the top bit: lap 1, kind 3, arm 1, outcome 2, epoch 20, slice 26, bucket 11.
LAP = 1 << 63
SERIAL_MASK = (1 << 16) - 1
HASH_MASK = LAP - 1 - SERIAL_MASK
KIND_SHIFT = 60
ARM_SHIFT = 59
OUTCOME_SHIFT = 57
EPOCH_SHIFT = 37
SLICE_SHIFT = 11
BUCKET_MASK = (1 << SLICE_SHIFT) - 1
EPOCHS = 1 << 20
SLICES = 1 << 26
SLICE_SECONDS = 0.5
"""A slice is `int(time.monotonic() / SLICE_SECONDS) % SLICES`: the clock of the whole machine."""


class EventKind(IntEnum):
    """The kind of an event. ENDED follows STARTED, REPORTED follows ASKED.

    A VOID fills an index that was reserved and not used; readers skip it.
    """

    UNWRITTEN = 0
    STARTED = 1
    ASKED = 2
    ENDED = 3
    REPORTED = 4
    RECORDED = 5
    VOID = 7


class Outcome(IntEnum):
    """The outcome of a call."""

    OK = 0
    ERROR = 1
    CANCELLED = 2


class RingEvent(NamedTuple):
    """The fields of one event."""

    kind: int
    is_canary: bool
    outcome: int
    epoch: int
    slice_number: int
    bucket: int


class Owner(NamedTuple):
    """The process that writes a ring."""

    pid: int
    start_ticks: int
    boot_id: str
    instance: str
    version: str


def encode(
    kind: int, *, is_canary: bool, epoch: int, slice_number: int, outcome: int = 0, bucket: int = 0
) -> int:
    """Return an event's word without the lap bit; every field must fit its width."""
    return (
        kind << KIND_SHIFT
        | is_canary << ARM_SHIFT
        | outcome << OUTCOME_SHIFT
        | epoch << EPOCH_SHIFT
        | slice_number << SLICE_SHIFT
        | bucket
    )


def decode(word: int) -> RingEvent:
    """Return the fields of a word; the lap bit is ignored."""
    return RingEvent(
        word >> KIND_SHIFT & 7,
        bool(word >> ARM_SHIFT & 1),
        word >> OUTCOME_SHIFT & 3,
        word >> EPOCH_SHIFT & EPOCHS - 1,
        word >> SLICE_SHIFT & SLICES - 1,
        word & BUCKET_MASK,
    )


def pack_header(owner: Owner, layout: int = LAYOUT_VERSION) -> bytes:
    """Return the header of the file."""
    return _HEADER.pack(
        MAGIC,
        layout,
        MAIN_WORDS,
        KEYED_ENTRIES,
        0,
        owner.pid,
        owner.start_ticks,
        owner.boot_id.encode(),
        owner.instance.encode(errors="replace"),
        owner.version.encode(errors="replace"),
    )


def unpack_header(header: bytes) -> tuple[Owner, int]:
    """Return the owner of a ring, and its layout. Raises ValueError for an unknown layout."""
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError("not a ring")
    _, layout, words, entries, _, pid, ticks, *texts = _HEADER.unpack_from(header)
    known = FIRST_LAYOUT <= layout <= LAYOUT_VERSION
    if not known or (words, entries) != (MAIN_WORDS, KEYED_ENTRIES):
        raise ValueError(f"unknown layout {layout} ({words} words, {entries} entries)")
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is not a pid")
    boot_id, instance, version = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
    return Owner(pid, ticks, boot_id, instance, version), layout
