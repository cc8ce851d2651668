"""What several tests know of the packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = ("supervisor", "worker")
ADAPTERS = {
    "aiohttp",
    "aiohttp_streams",
    "gunicorn",
    "asgi.__main__",
    "asgi.command",
    "asgi.protocols",
    "asgi.runner",
}
"""Modules of the kit for applications that have the framework installed themselves."""


class LogCall(NamedTuple):
    """A call of a module's `log`."""

    place: str
    level: str
    event: ast.expr


@cache
def log_calls() -> Sequence[LogCall]:
    """Return each call of a module's `log`, in the daemon and in the worker's kit."""
    return [
        LogCall(f"{path.relative_to(ROOT)}:{node.lineno}", level, event)
        for path in sorted(path for each in SOURCES for path in (ROOT / each).rglob("*.py"))
        if re.search(r"\blog\.", text := path.read_text())  # few do, and to parse takes long
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "log"
        for level, event in [(node.func.attr, node.args[0])]
    ]
