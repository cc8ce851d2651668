"""The cost of a feature canary for its caller, beside three flag SDKs, in one process.

The SDKs are no part of the project's own environment: they are installed into a throw-away one,
and without a package index ours is measured alone. `canary_calls.py` does the measuring there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks.result import CannotRunError, Options, Result

ROOT = Path(__file__).parents[2]
_INSTALL_SECONDS = 300.0


async def run(options: Options) -> Result:
    calls, rounds = options.count or 10_000_000, options.rounds or 15
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        python = await environment(Path(name), notes)
        command = (python, "-m", "scripts.benchmarks.canary_calls", name, str(rounds), str(calls))
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "worker")},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await child.communicate()
    if child.returncode != 0:
        raise CannotRunError(f"the measuring program failed with status {child.returncode}")
    data: dict[str, Any] = json.loads(output)
    memory = data["memory"]
    notes.append(
        f"memory over {memory['calls']:,} calls: {memory['before_kib']:,} KiB resident before, "
        f"{memory['after_kib']:,} KiB after; dropped {memory['dropped']:,}"
    )
    notes.append(f"the reader: {data['reader_ns']:.0f} ns of CPU for an event")
    notes.append("CPU time of the measured threads, the best of the rounds; a loop's own is in it")
    return Result([table(data["rows"])], data, notes)


async def environment(folder: Path, notes: list[str]) -> str:
    """Return an interpreter with the SDKs, or ours if they can't be installed."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    python = folder / "env/bin/python"
    for command in (
        (sys.executable, "-m", "venv", str(folder / "env")),
        (str(python), "-m", "pip", "install", "--quiet", *groups["bench"]),
    ):
        child = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(_INSTALL_SECONDS):
                failed = await child.wait() != 0
        except TimeoutError:
            child.kill()
            await child.wait()
            failed = True
        if failed:
            notes.append(f"{', '.join(groups['bench'])} could not be installed: ours alone")
            return sys.executable
    return str(python)


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="ns of CPU for one call", title_justify="left")
    shown.add_column("")
    threads = [str(count) for count in rows[0]["cpu_ns"]]
    for count in threads:
        shown.add_column(f"{count} threads" if count != "1" else "1 thread", justify="right")
    for row in rows:
        shown.add_row(row["name"], *(f"{row['cpu_ns'][count]:,.0f}" for count in threads))
    return shown
