"""Reads `KEY=value` files strictly.

python-dotenv parses the syntax (quotes, `export`, comments). Its own front end skips malformed
lines, lets the last of two equal keys win, and expands `${NAME}` from the process environment.
Here the first two are reported, and values are literal.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from atlas_supervisor.errors import SettingsError
from atlas_supervisor.system.files import read_regular

_OPEN_QUOTE = re.compile(r"""(?:export\s+)?[^=\s]+\s*=\s*(["'])""")
_RESERVED = re.compile(r"ATLAS_.*|LISTEN_.*|NOTIFY_SOCKET")


@dataclass(frozen=True)
class Entry:
    """One `KEY=value` line; lines count from 1."""

    key: str
    value: str
    line: int


@dataclass(frozen=True)
class EnvFile:
    """A file's entries and faults."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """By key; the first one of a repeated key."""
    repeated: list[Entry] = field(default_factory=list)
    """Later entries of the same keys."""
    garbled: list[Entry] = field(default_factory=list)
    """Lines that are not `KEY=value`; the value is the whole line."""


def read_env_file(path: Path) -> EnvFile:
    """Read a file; raises SettingsError if it can't be read as text."""
    try:
        text = read_regular(path, follow=True).decode()
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: not UTF-8 text; lines of KEY=value are accepted"]) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError([f"{path}: {reason}; a readable file is accepted"]) from error
    found = EnvFile()
    for binding in parse_stream(io.StringIO(text, newline=None)):
        if binding.error or (binding.key is not None and binding.value is None):
            found.garbled.append(Entry("", binding.original.string.strip(), _line(binding)))
        elif binding.key is not None:
            entry = Entry(binding.key, binding.value or "", _line(binding))
            if found.entries.setdefault(entry.key, entry) is not entry:
                found.repeated.append(entry)
    return found


def why_garbled(entry: Entry) -> str:
    """Return the accepted form of a line, without its content, which may be a secret."""
    if found := _OPEN_QUOTE.match(entry.value):
        quote, other = found[1], "'" if found[1] == '"' else '"'
        return (
            f"its value begins with {quote} and does not end with the next one; if there are "
            f"quotes in it, put it into the other kind: KEY={other}{quote}a b{quote} c{other}"
        )
    return "not KEY=value, which is accepted"


def _line(binding: Binding) -> int:
    """Return the line number of the binding itself.

    The parser's number is that of the empty lines before it, which it includes.
    """
    original = binding.original.string
    before = original[: len(original) - len(original.lstrip())]
    return binding.original.line + before.count("\n")


def load_worker_env(path: Path) -> dict[str, str]:
    """Return the extra environment of workers.

    Raises SettingsError with all faults. None of them shows a value: applications keep their
    secrets in this file.
    """
    found = read_env_file(path)
    faults = [
        f"{path} line {entry.line}: {reason}"
        for entry, reason in [
            *((entry, why_garbled(entry)) for entry in found.garbled),
            *((entry, f"{entry.key} is given twice") for entry in found.repeated),
            *((entry, _worker_fault(entry)) for entry in found.entries.values()),
        ]
        if reason
    ]
    if faults:
        raise SettingsError(faults)
    return {entry.key: entry.value for entry in found.entries.values()}


def _worker_fault(entry: Entry) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", entry.key):
        return "this is not a variable name"  # it may be a secret in the wrong place
    if _RESERVED.fullmatch(entry.key):
        return f"{entry.key} is reserved for the supervisor"
    if "\0" in entry.value:
        return f"{entry.key} contains a NUL character"
    return None
