"""Random files in place of rings: a broken worker, or another program, writes what it likes."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from atlas_supervisor.system import procfs
from atlas_worker.contract import RINGS_DIRECTORY
from atlas_worker.contract import ring as layout
from tests.harness import FUZZ_SECONDS, fuzzed
from tests.unit.supervisor.canary.support import NO_PID, Canaries, running

ROUNDS = 4
FILES = 5
"""In one round."""
LARGEST_MB = 80
"""By which the process may grow: rings are read whole, and evidence on them is bounded."""
CELLS = range(256, 640, 64)  # tails, counts of what was dropped, and what a later layout adds
NUMBERS = (0, 1, 2**12, 2**17 - 1, 2**17, 2**17 + 5, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


def word(random: Random) -> int:
    """Return an event's word: any bits, or ones that make sense but for their context."""
    if random.random() < 0.2:
        return random.getrandbits(64)
    made = layout.encode(
        random.randrange(8),
        is_canary=random.random() < 0.5,
        epoch=random.choice((0, 1, 2, 3, random.randrange(layout.EPOCHS))),
        slice_number=random.choice((999, 1000, 1001, random.randrange(layout.SLICES))),
        outcome=random.randrange(4),
        bucket=random.randrange(2048),
    )
    return made | random.choice((0, layout.LAP))


def ring(random: Random) -> bytearray:
    """Return a ring whose owner lives, or does not, with events and positions of all kinds."""
    pid = random.choice((os.getpid(), os.getpid(), NO_PID, 1, 2**31 - 1, random.getrandbits(31)))
    ticks = random.choice((procfs.start_ticks(os.getpid()) or 1, 0, random.getrandbits(64)))
    owner = layout.Owner(pid, ticks, procfs.boot_id(), "blue-1", "v1")
    data = bytearray(layout.RING_BYTES)
    header = layout.pack_header(owner)
    data[: len(header)] = header
    for cell in CELLS:
        if random.random() < 0.3:
            struct.pack_into("<Q", data, cell, random.choice((*NUMBERS, random.getrandbits(64))))
    few = [word(random) for _ in range(random.choice((0, 1, 20, 400)))]
    for offset, most in ((layout.HEADER_BYTES, 2**17), (layout.KEYED_OFFSET, 2**16)):
        times = random.choice((1, 1, 3, most // max(len(few), 1)))
        words = (few * times)[:most]
        struct.pack_into(f"<{len(words)}Q", data, offset, *words)
    return data


def flip(random: Random, data: bytearray) -> bytearray:
    for _ in range(random.randrange(1, 30)):
        data[random.choice((random.randrange(256), random.randrange(len(data))))] ^= 1 << (
            random.randrange(8)
        )
    return data


def put(random: Random, path: Path) -> None:
    """Make something of a ring's name."""
    kinds: list[Callable[[], object]] = [
        lambda: path.write_bytes(ring(random)),
        lambda: path.write_bytes(ring(random)),
        lambda: path.write_bytes(ring(random)),
        lambda: path.write_bytes(flip(random, ring(random))),
        lambda: path.write_bytes(ring(random)[: random.randrange(layout.RING_BYTES)]),
        lambda: path.write_bytes(random.randbytes(random.randrange(8192))),
        lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
    ]
    random.choice(kinds)()


def disturb(random: Random, path: Path) -> None:
    """Change a file that is being read: cut it, lengthen it, overwrite it, remove it."""
    if not path.is_file():
        return
    size = path.stat().st_size
    action = random.randrange(5)
    if action == 0:
        os.truncate(path, random.choice((0, 100, layout.HEADER_BYTES, size // 2, size + 1)))
    elif action == 1:
        path.unlink()
    elif action == 2 and size < 2**30:
        with path.open("r+b") as file:
            file.seek(random.randrange(max(size, 1)))
            file.write(random.randbytes(64))


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def one_round(canaries: Canaries, folder: Path, random: Random) -> None:
    for number in range(FILES):
        put(random, folder / f"{random.getrandbits(22)}-{number}-{random.getrandbits(32):x}.ring")
    for _ in range(3):
        await canaries.look(after=random.choice((0.0, 0.5, 70.0)))
        for path in files_in(folder):
            disturb(random, path)
    await canaries.service.report(1)
    assert canaries.service.view().features
    for path in files_in(folder):
        remove(path)
    await canaries.look()


@pytest.mark.timeout(60 + 2 * FUZZ_SECONDS)
async def test_no_file_in_place_of_a_ring_stops_the_canaries_or_takes_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / RINGS_DIRECTORY
    async with running(tmp_path, monkeypatch) as canaries:
        for number, randoms in enumerate(fuzzed(ROUNDS)):
            for random in randoms.values():
                async with asyncio.timeout(10):  # one look must not take the daemon's time
                    await one_round(canaries, folder, random)
            if number == 0:
                before = resident_mb()
        assert resident_mb() - before < LARGEST_MB
