"""The ring reader: files that are not rings, gaps, laps, and truncated files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atlas_supervisor.canary.ring_reader import Positions, RingReader, RingRefusedError, ring_files
from atlas_supervisor.system import procfs
from atlas_worker.contract import SLOWEST_BUCKET
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import EventKind, Owner, decode, encode

DEAD = Owner(2**22 + 5, 1, "another boot", "green-1", "1.2")


def living() -> Owner:
    ticks = procfs.start_ticks(os.getpid())
    assert ticks is not None
    return Owner(os.getpid(), ticks, procfs.boot_id(), "green-1", "1.2")


class Writer:
    """Writes a ring by the layout alone, as a program in any language would."""

    def __init__(self, path: Path, owner: Owner, version: int = layout.LAYOUT_VERSION) -> None:
        self.path = path
        self.version = version
        self.reserved = {layout.RESERVED_OFFSET: 0, layout.KEYED_RESERVED_OFFSET: 0}
        path.write_bytes(layout.pack_header(owner, version).ljust(layout.RING_BYTES, b"\0"))

    def reserve(self, cell: int, end: int) -> None:
        self.reserved[cell] = max(self.reserved[cell], end)
        if self.version > layout.FIRST_LAYOUT:
            self.put(cell, self.reserved[cell])

    def main(self, index: int, word: int) -> None:
        lap = index // layout.MAIN_WORDS % 2 << 63
        self.reserve(layout.RESERVED_OFFSET, index + 1)
        self.put(layout.HEADER_BYTES + index % layout.MAIN_WORDS * 8, word | lap)

    def keyed(self, index: int, word: int, key: int) -> None:
        lap = index // layout.KEYED_ENTRIES % 2 << 63
        self.reserve(layout.KEYED_RESERVED_OFFSET, index + 1)
        place = layout.KEYED_OFFSET + index % layout.KEYED_ENTRIES * 16
        self.put(place, word | lap if word else 0)
        self.put(place + 8, key | lap if key else 0)

    def quarter(self, index: int, word: int) -> None:
        count = layout.MAIN_WORDS // 4
        lap = index // layout.MAIN_WORDS % 2 << 63
        self.reserve(layout.RESERVED_OFFSET, index + count)
        with self.path.open("r+b") as file:
            file.seek(layout.HEADER_BYTES + index % layout.MAIN_WORDS * 8)
            file.write(struct.pack("<Q", word | lap) * count)

    def put(self, offset: int, value: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack("<Q", value))


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "1-2-ab.ring", living())


@pytest.fixture
def dead(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "3-4-cd.ring", DEAD)


@pytest.fixture
def ring(writer: Writer) -> Iterator[RingReader]:
    opened = RingReader.open(writer.path)
    yield opened
    opened.close()


def asked(epoch: int) -> int:
    return encode(EventKind.ASKED, is_canary=True, epoch=epoch, slice_number=5)


def epochs(words: object) -> list[int]:
    return sorted(decode(word).epoch for word in words)  # type: ignore[attr-defined]  # a Counter


def test_a_word_holds_every_field_to_its_width() -> None:
    word = encode(
        EventKind.VOID,
        is_canary=True,
        outcome=3,
        epoch=2**20 - 1,
        slice_number=2**26 - 1,
        bucket=2047,
    )
    assert word == 2**63 - 1
    assert decode(word | layout.LAP) == (7, True, 3, 2**20 - 1, 2**26 - 1, 2047)


def test_a_ring_names_its_owner(ring: RingReader) -> None:
    assert ring.owner == living()
    assert ring.alive()


def test_equal_events_are_counted_and_voids_are_skipped(writer: Writer, ring: RingReader) -> None:
    for index, word in enumerate((asked(1), asked(2), asked(1), EventKind.VOID << 60, asked(1))):
        writer.main(index, word)
    writer.keyed(0, asked(3), 77 << 16 | 0x8001)
    writer.keyed(1, EventKind.VOID << 60, 1)

    batch = ring.read(Positions())

    assert batch.events == {asked(1): 3, asked(2): 1}
    assert batch.keyed == [(asked(3), 77 << 16, 0x18001)]
    assert batch.next == Positions(5, 2)
    assert ring.read(batch.next).events == {}


def test_a_ring_is_followed_over_many_laps(writer: Writer, ring: RingReader) -> None:
    batch = ring.read(Positions())
    step = layout.MAIN_WORDS // 4 * 3
    for first in range(0, 3 * layout.MAIN_WORDS, step):
        for index in range(first, first + step, layout.MAIN_WORDS // 4):
            writer.quarter(index, asked(7))

        batch = ring.read(batch.next)
        ring.advance(batch.next)

        assert batch.events == {asked(7): step}
        assert batch.next.main == first + step
    assert ring.tail == batch.next


def test_events_before_the_tail_are_not_read_again(writer: Writer, ring: RingReader) -> None:
    for index in range(4):
        writer.main(index, asked(index))
    ring.advance(Positions(3, 0))

    assert epochs(ring.read(ring.tail).events) == [3]


def test_a_gap_of_a_living_process_is_waited_for(writer: Writer, ring: RingReader) -> None:
    writer.main(0, asked(0))
    writer.main(2, asked(2))
    writer.keyed(0, asked(0), 0)  # its hash is not written yet
    writer.keyed(1, asked(1), 3)

    batch = ring.read(Positions())
    assert (epochs(batch.events), batch.next, batch.keyed) == ([0], Positions(1, 0), [])
    writer.main(1, asked(1))
    writer.keyed(0, asked(0), 3)

    batch = ring.read(batch.next)
    assert (epochs(batch.events), batch.next.main, batch.skipped) == ([1, 2], 3, 0)
    assert len(batch.keyed) == 2


def test_gaps_of_a_dead_process_are_skipped_and_counted(dead: Writer) -> None:
    far = layout.MAIN_WORDS - 2
    for index in (0, 2, far, far + 3):
        dead.main(index, asked(index % 1000))
    dead.keyed(0, asked(1), 0)
    dead.keyed(1, 0, 5)
    dead.keyed(2, asked(2), 5 << 16 | 7)
    ring = RingReader.open(dead.path)

    dead.put(layout.TAIL_OFFSET, 2)
    batch = ring.read(Positions(2, 0))
    ring.advance(batch.next)

    assert not batch.alive
    assert ring.tail == Positions(2, 0)
    assert sorted(batch.events) == sorted(asked(i % 1000) for i in (2, far, far + 3))
    assert batch.next == Positions(far + 4, 3)
    assert batch.skipped == (far + 4 - 2) - 3 + 2
    assert batch.keyed == [(asked(2), 5 << 16, 0x10007)]
    again = ring.read(batch.next)
    assert (again.events, again.skipped, again.next) == ({}, 0, batch.next)
    ring.close()


@pytest.mark.parametrize(
    "owner",
    [
        living()._replace(start_ticks=1),
        living()._replace(boot_id="0" * 36),
        living()._replace(pid=2**22 + 1),
    ],
    ids=["pid used again", "another boot", "gone"],
)
def test_a_ring_of_another_boot_or_of_a_reused_or_unused_pid_is_not_alive(
    tmp_path: Path, owner: Owner
) -> None:
    ring = RingReader.open(Writer(tmp_path / "a.ring", owner).path)
    assert not ring.alive()
    ring.close()


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    ticks = procfs.start_ticks(child.pid)
    assert ticks is not None
    assert procfs.is_alive(child.pid, ticks)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not procfs.is_alive(child.pid, ticks)
    with child:
        pass
    assert not procfs.is_alive(child.pid, ticks)


# Files that are not rings.


def refused(path: Path) -> str:
    with pytest.raises(RingRefusedError) as caught:
        RingReader.open(path)
    return str(caught.value)


def test_a_file_that_is_not_a_ring_is_refused(tmp_path: Path, writer: Writer) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    good = writer.path.read_bytes()
    cases = {
        "empty": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "magic": b"ATLASCN2" + good[8:],
        "layout": good[:8] + b"\3" + good[9:],
        "no layout": good[:8] + b"\0" + good[9:],
        "capacity": good[:12] + b"\1" + good[13:],
        "pid": good[:24] + b"\xff" * 8 + good[32:],
        "zero": bytes(layout.RING_BYTES),
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.ring"
        path.write_bytes(content)
        assert path.name in refused(path)

    (tmp_path / "link.ring").symlink_to(writer.path)
    os.mkfifo(tmp_path / "fifo.ring")
    (tmp_path / "folder.ring").mkdir()
    for name in ("link", "fifo", "folder", "missing"):
        refused(tmp_path / f"{name}.ring")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.needs_root
def test_a_ring_of_another_uid_is_refused(writer: Writer) -> None:
    os.chown(writer.path, 65534, 65534)
    assert "uid 65534" in refused(writer.path)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_ring_of_a_process_that_exits_meanwhile_is_not_refused_as_forged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: bool
) -> None:
    has_mapped = procfs.has_mapped
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        owner = Owner(
            child.pid, procfs.start_ticks(child.pid) or 0, procfs.boot_id(), "blue-1", "v1"
        )
        writer = Writer(tmp_path / "1-2-ab.ring", owner)
        writer.main(0, asked(1))

        def exits_before(pid: int, name: str) -> bool | None:
            child.kill()
            os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
            return has_mapped(pid, name)

        with closing(RingReader.open(writer.path)) as ring:
            with pytest.raises(RingRefusedError, match="does not write it"):
                ring.refuse_forged()
            monkeypatch.setattr(procfs, "has_mapped", exits_before)
            ring.refuse_forged()
            assert ring.read(Positions()).events == {asked(1): 1}


def test_a_file_truncated_while_open_is_refused(writer: Writer, ring: RingReader) -> None:
    for index in range(10):
        writer.main(index, asked(1))
    os.truncate(writer.path, layout.HEADER_BYTES + 16)

    with pytest.raises(RingRefusedError):
        ring.read(Positions())
    os.truncate(writer.path, 0)
    with pytest.raises(RingRefusedError):
        ring.read(Positions())
    with pytest.raises(RingRefusedError):
        _ = ring.dropped


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("owner", [DEAD, living()], ids=["dead", "living"])
def test_a_ring_of_noise_is_refused(tmp_path: Path, owner: Owner, version: int) -> None:
    writer = Writer(tmp_path / "noise.ring", owner, version)
    content = bytearray(writer.path.read_bytes())
    content[256:] = os.urandom(len(content) - 256)
    writer.path.write_bytes(content)
    with closing(RingReader.open(writer.path)) as ring, pytest.raises(RingRefusedError):
        ring.read(Positions(5, 2**63))


BIG = 2**63


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (layout.DROPPED_OFFSET, BIG),
        (layout.DROPPED_OFFSET, 2**64 - 1),
        (layout.KEYED_DROPPED_OFFSET, 2**62 + 1),
        (layout.TAIL_OFFSET, BIG),
        (layout.TAIL_OFFSET, 3),
        (layout.KEYED_TAIL_OFFSET, 2**64 - 1),
        (layout.KEYED_TAIL_OFFSET, 1),
        (layout.RESERVED_OFFSET, BIG),
        (layout.RESERVED_OFFSET, layout.MAIN_WORDS + 1),
        (layout.RESERVED_OFFSET, 1),
        (layout.KEYED_RESERVED_OFFSET, layout.KEYED_ENTRIES + 1),
        (layout.HEADER_BYTES + 16, 6 << layout.KIND_SHIFT),
        (layout.HEADER_BYTES + 16, EventKind.ENDED << layout.KIND_SHIFT | 3 << 57),
        (layout.KEYED_OFFSET, 6 << layout.KIND_SHIFT),
    ],
)
def test_a_ring_with_an_impossible_cell_is_refused(
    writer: Writer, ring: RingReader, offset: int, value: int
) -> None:
    writer.main(0, asked(1))
    writer.main(1, asked(1))
    before = ring.read(Positions())
    writer.main(2, asked(1))
    writer.keyed(0, asked(1), 7)

    writer.put(offset, value)

    with pytest.raises(RingRefusedError, match=r"1-2-ab\.ring"):
        ring.read(before.next)


def test_a_latency_above_a_minute_is_read_as_a_minute(writer: Writer, ring: RingReader) -> None:
    recorded = encode(EventKind.RECORDED, is_canary=True, epoch=1, slice_number=5)
    writer.main(0, recorded | 2047)
    writer.main(1, recorded | SLOWEST_BUCKET)
    writer.keyed(0, recorded | 2047, 5 << 16 | 7)

    batch = ring.read(Positions())

    assert batch.events == {recorded | SLOWEST_BUCKET: 2}
    assert batch.keyed == [(recorded | SLOWEST_BUCKET, 5 << 16, 0x10007)]


# The first layout, of earlier kits.


@pytest.mark.parametrize("alive", [True, False])
def test_a_ring_of_the_first_layout_is_read_without_serials(tmp_path: Path, alive: bool) -> None:
    writer = Writer(tmp_path / "old.ring", living() if alive else DEAD, version=1)
    far = layout.MAIN_WORDS - 1
    writer.main(0, asked(1))
    writer.keyed(0, asked(3), 77 << 16 | 0x1234)
    if not alive:
        writer.main(far, asked(2))
    with closing(RingReader.open(writer.path)) as ring:
        batch = ring.read(Positions())

    assert epochs(batch.events) == ([1] if alive else [1, 2])
    assert batch.keyed == [(asked(3), 77 << 16, 0)]
    assert batch.next == Positions(1 if alive else far + 1, 1)


def test_a_closed_ring_is_not_read(ring: RingReader) -> None:
    ring.close()
    ring.close()
    with pytest.raises(RingRefusedError):
        ring.read(Positions())


def test_unfinished_files_and_a_missing_folder_give_no_rings(
    tmp_path: Path, writer: Writer
) -> None:
    (tmp_path / ".5-6-ef.ring.new").touch()
    assert ring_files(tmp_path) == [writer.path]
    assert ring_files(tmp_path / "none") == []
