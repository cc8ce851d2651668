"""A state folder with a policy, a reader of its rings, and programs that use canaries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.canary.ring_reader import Batch, Positions, RingReader, ring_files
from atlas_worker.canary.process import process
from atlas_worker.contract.ring import LAYOUT_VERSION, EventKind, RingEvent, decode

ROOT = Path(__file__).parents[3]
SALT = "5a" * 16


@dataclass
class Canaries:
    """The daemon's side: writes the policy, reads the rings."""

    folder: Path
    _read: dict[Path, Positions] = field(default_factory=dict)

    @property
    def state_file(self) -> Path:
        return self.folder / "deploy_state.json"

    def decide(
        self, shares: dict[str, Any], *, epoch: int = 17, enabled: bool = True,
        latched: bool = False, schema: int = 1, ring_layout: int = LAYOUT_VERSION,
    ) -> None:  # fmt: skip
        features = {name: {"share": share, "epoch": epoch} for name, share in shares.items()}
        self.replace(
            json.dumps(
                {
                    "schema_version": schema,
                    "canary_disabled_fallback": latched,
                    "canary": {
                        "enabled": enabled,
                        "salt": SALT,
                        "features": features,
                        "ring_layout": ring_layout,
                    },
                }
            ).encode()
        )

    def replace(self, content: bytes) -> None:
        new = self.folder / ".new"
        new.write_bytes(content)
        new.replace(self.state_file)

    @property
    def rings(self) -> list[Path]:
        return ring_files(self.folder / "canary")

    def drain(self) -> list[tuple[Path, Batch]]:
        """Read the new events of every ring, and release their space."""
        batches = []
        for path in self.rings:
            ring = RingReader.open(path)
            batch = ring.read(self._read.get(path, ring.tail))
            ring.advance(batch.next)
            ring.close()
            self._read[path] = batch.next
            batches.append((path, batch))
        return batches

    def events(self) -> list[RingEvent]:
        """Return all new events without a key, equal ones together."""
        return [
            decode(word)
            for _, batch in self.drain()
            for word, count in batch.events.items()
            for _ in range(count)
        ]

    def kinds(self) -> Counter[EventKind]:
        return Counter(EventKind(event.kind) for event in self.events())

    def dropped(self) -> int:
        total = 0
        for path in self.rings:
            ring = RingReader.open(path)
            total += ring.dropped
            ring.close()
        return total


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    """Reset this process, with a state folder as a daemon creates it."""
    (tmp_path / "canary").mkdir(mode=0o700)
    monkeypatch.setenv("ATLAS_STATE_DIR", str(tmp_path))
    reset_process()
    yield Canaries(tmp_path)
    reset_process()


def reset_process() -> None:
    """Reset the canary state of this process, as in a forked child; its helper thread ends."""
    with process._lock:
        process.after_fork()
    for thread in threading.enumerate():
        if thread.name == "atlas-canary":
            thread.join(10)


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until the condition is true; fail on a timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.002)


@contextmanager
def program(folder: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in its own process, which is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", "from atlas_worker import *\n" + code],
        env={**os.environ, "ATLAS_STATE_DIR": str(folder), "PYTHONPATH": str(ROOT / "worker")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)


def output(folder: Path, code: str) -> str:
    """Return the output of the code, which must exit with status 0."""
    with program(folder, code) as child:
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 0
        return out
