"""A process of the daemon's own user that forges what workers report, and edits the state file."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.system import procfs
from atlas_worker.contract import RINGS_DIRECTORY, latency_bucket
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import EventKind, Outcome
from tests.harness import DaemonProcess, eventually
from tests.integration.support import rows, scripted_daemon, slot, state_file


def logged(daemon: DaemonProcess, event: str) -> list[dict[str, Any]]:
    lines = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if f'"{event}"' in line]


def forge_ring(daemon: DaemonProcess, pid: int) -> Path:
    """Write a ring that has failed canary calls of another process."""
    policy = state_file(daemon)["canary"]["features"]["vision"]
    owner = layout.Owner(pid, procfs.start_ticks(pid) or 0, procfs.boot_id(), "blue-1", "v1")
    word = layout.encode(
        EventKind.RECORDED,
        is_canary=True,
        epoch=policy["epoch"],
        slice_number=1,
        outcome=Outcome.ERROR,
        bucket=latency_bucket(5.0),
    )
    ring = daemon.state_dir / RINGS_DIRECTORY / f"{pid}-{owner.start_ticks}-0badc0de.ring"
    content = bytearray(layout.RING_BYTES)
    header = layout.pack_header(owner)
    content[: len(header)] = header
    words = word.to_bytes(8, "little") * 300
    content[layout.HEADER_BYTES : layout.HEADER_BYTES + len(words)] = words
    ring.with_suffix(".tmp").write_bytes(content)
    return ring.with_suffix(".tmp").rename(ring)


@contextmanager
def bystander() -> Iterator[int]:
    """A process of our user that has nothing to do with the daemon."""
    with subprocess.Popen(("sleep", "60")) as process:
        try:
            yield process.pid
        finally:
            process.kill()


async def test_forged_reports_and_rings_do_not_count_for_a_worker(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"CANARY_ENABLED": "true"}) as daemon:
        worker = slot(await daemon.status(), "active")
        (launched,) = logged(daemon, "worker_launched")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(f"\0atlas-notify-{launched['instance']}")
            client.send(b"READY=1\nX_ATLAS_KIT=1\nX_ATLAS_ACCEPTING=0")
        await eventually(lambda: logged(daemon, "worker_report_refused"))
        with bystander() as pid:
            for each in (worker["pid"], pid):
                forge_ring(daemon, each)
            await eventually(
                lambda: "does not write it" in str(logged(daemon, "canary_ring_refused"))
            )
            counted = (await daemon.status())["canary_stats"]["canary"]
            assert (counted["calls"], counted["errors"]) == (0, 0)
        assert rows(daemon, "SELECT kit FROM instances") == [(0,)]


@pytest.mark.fault(
    "Disk and files", "a state file that another program changes", "it is put back and audited"
)
async def test_a_state_file_that_another_program_changes_is_put_back_and_audited(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        path = daemon.state_dir / "deploy_state.json"
        own = path.read_text()
        state = json.loads(own)
        changed = {**state, "active_port": state["staging_port"], "mode": "single"}
        whole = tmp_path / "changed.json"
        whole.write_text(json.dumps(changed))
        whole.replace(path)
        await eventually(lambda: path.read_text() == own)
        for make in (Path.unlink, lambda path: path.write_bytes(b"{"), in_its_place):
            make(path)
            await eventually(lambda: path.is_file() and path.read_text() == own)
            assert not path.is_symlink()
        entries = rows(daemon, "SELECT detail FROM audit WHERE action = 'state_file'")
        assert len(entries) == 1  # a program that goes on with it fills no disk
        assert re.search(r"changed mode, active_port", entries[0][0])
        assert (await daemon.deploy()).json["result"] == "switched"
        assert state_file(daemon)["active_port"] == state["staging_port"]


def in_its_place(path: Path) -> None:
    """Put a link in the file's place, which must not be written through."""
    other = path.with_name("elsewhere")
    other.write_text("precious")
    path.unlink()
    path.symlink_to(other)
    os.utime(other)
