"""The harness itself: what the other tests trust without looking."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import eventually, free_ports, processes_with, write_release


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))


async def test_a_process_left_over_is_found_by_its_environment(tmp_path: Path) -> None:
    environment = {**os.environ, "ATLAS_STATE_DIR": str(tmp_path)}
    program = (sys.executable, "-c", "input()")
    process = await asyncio.create_subprocess_exec(
        *program, env=environment, stdin=asyncio.subprocess.PIPE
    )
    await eventually(lambda: processes_with("ATLAS_STATE_DIR", str(tmp_path)) == [process.pid])
    assert processes_with("ATLAS_STATE_DIR", str(tmp_path / "other")) == []
    await process.communicate(b"\n")
    assert processes_with("ATLAS_STATE_DIR", str(tmp_path)) == []


async def test_waiting_for_what_never_happens_fails_in_words() -> None:
    with pytest.raises(AssertionError, match="rain in the desert"):
        await eventually(lambda: False, within=0.05, what="rain in the desert")


def test_a_release_is_its_version_and_its_files(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "r" / "1.0", "1.0", {"lib/a.txt": "a"})
    assert (folder / "VERSION").read_text() == "1.0\n"
    assert (folder / "lib" / "a.txt").read_text() == "a"
