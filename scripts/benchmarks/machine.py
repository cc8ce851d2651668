"""The machine that was measured on: a number without it says little."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return cores that may be used, processor, memory (GiB), kernel and Python."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first("/proc/cpuinfo", "model name"),
        "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it goes; its children get it too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "0 unknown"
