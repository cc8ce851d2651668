"""The documents, their fenced blocks, and the commands in them; needs no package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```(sh|console|ini)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"[A-Z][A-Z_]+=.*?(?: +#.*)?")


@dataclass
class Command:
    """One command of a block, and the output that the document shows."""

    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def bare(self) -> str:
        """The command without a comment at its end."""
        return re.sub(r"(?<=\S) +# .*$", "", self.text)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: `sh`, `console`, or `ini` for settings alone."""

    language: str
    text: str

    def commands(self) -> Iterator[Command]:
        """Yield its commands: lines, or a here-document with its command; of settings, none."""
        if self.settings or self.language == "ini":
            return iter(())
        return _prompted(self.text) if self.language == "console" else _plain(self.text)

    @property
    def settings(self) -> dict[str, str]:
        """The settings that it shows, if it has nothing else."""
        lines = [line for line in self.text.splitlines() if line and not line.startswith("#")]
        if not all(map(SETTING.fullmatch, lines)):
            return {}
        pairs = (re.sub(r" +#.*", "", line).split("=", 1) for line in lines)
        return dict(pairs)


def documents() -> list[Path]:
    """Return every document with commands."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str) -> list[Block]:
    """Return the blocks of a document's text, in order."""
    return [Block(*found) for found in FENCED.findall(text)]


def _prompted(text: str) -> Iterator[Command]:
    """Yield what follows a prompt, with the output below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        whole, *shown = _whole_lines(part)
        yield Command(whole, shown)


def _plain(text: str) -> Iterator[Command]:
    for line in _whole_lines(text):
        if line.strip() and not line.startswith("#"):
            yield Command(line)


def _whole_lines(text: str) -> Iterator[str]:
    """Yield lines, each with those that continue it and its here-document."""
    begun: list[str] = []
    for line in text.splitlines():
        begun.append(line)
        here = re.search(r"<<'(\w+)'", begun[0])
        if line.endswith("\\") or (here and line != here[1]):
            continue
        yield "\n".join(begun)
        begun = []
    if begun:
        raise ValueError(f"a command does not end: {begun}")


def prose(text: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
