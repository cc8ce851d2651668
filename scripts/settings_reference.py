"""`docs/settings.md`: every key of `atlas.env`, with its comment there and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.config.settings import FIELD_OF_KEY, Settings
from scripts.markdown import linked, wrapped

ROOT = Path(__file__).resolve().parents[1]

DOCUMENT = """\
# Settings

<!-- Generated from atlas.env and config/settings.py by ./scripts/generate-docs; do not edit. -->

{preface}

When a change takes effect: [change a setting](how-to/upgrade.md#change-a-setting).
{sections}
"""

BULLET = re.compile(r"^  \* ", re.MULTILINE)
COMMAND = re.compile(r"(?:\w+=\d+ )?\./scripts/start|\.venv/bin/python [^`]*--check")
CODE = re.compile(r"\$?\{\w+\}|\bKEY=value|~(?!\w)|\b[A-Z]+(?:_[A-Z]+)+(?:=[\w.]+\w|/[\w.]+\w)?")
"""Placeholders, and settings with their values or a file below their folder."""


class Group(NamedTuple):
    """Keys that stand below one comment of `atlas.env`."""

    comment: str
    keys: list[tuple[str, str]]
    """Each with its default."""


def settings_reference() -> str:
    """Return the text of `docs/settings.md`."""
    preface, *sections = re.split(
        r"^# --- (.+?) -+$", (ROOT / "atlas.env").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    titled = zip(sections[::2], sections[1::2], strict=True)
    return DOCUMENT.format(
        preface=_preface(preface),
        sections="\n".join(_section(title, text) for title, text in titled),
    )


def _preface(text: str) -> str:
    """Return the file's first comment: a sentence and a list."""
    first, *points = BULLET.split(_uncommented(text))
    listed = [wrapped(f"- {marked(point)}", indent="  ") for point in points]
    return "\n".join([f"{marked(first)}\n", *listed])


def _uncommented(text: str) -> str:
    return re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)


def _section(title: str, text: str) -> str:
    title, _, document = title.partition(" (docs/")
    see = [f"See [{document[:-1]}]({document[:-1]})."] if document else []
    return "\n\n".join([f"\n## {title}", *see, *map(_entry, groups(text))])


def groups(text: str) -> Iterator[Group]:
    """Yield the groups of a section, each with the comment above it; it may have none."""
    for part in re.findall(r"((?:^#.*\n)*)((?:^[A-Z_]+=.*\n?)+)", text, re.MULTILINE):
        comment, lines = part
        pairs = [line.split("=", 1) for line in lines.splitlines()]
        yield Group(_uncommented(comment), [(key, default) for key, default in pairs])


def _entry(group: Group) -> str:
    names = ", ".join(f"`{key}`" for key, _ in group.keys)
    rows = [f"| `{key}` | {_default(default)} | {_accepted(key)} |" for key, default in group.keys]
    table = "\n".join(["| key | default | accepted |", "| --- | --- | --- |", *rows])
    return "\n\n".join([f"### {names}", *filter(None, [wrapped(marked(group.comment))]), table])


def _default(text: str) -> str:
    return f"`{text}`" if text else "empty"


def _accepted(key: str) -> str:
    return marked(str(Settings.model_fields[FIELD_OF_KEY[key]].description))


def marked(comment: str) -> str:
    """Return a comment as Markdown: commands, keys and placeholders as code, documents as links."""
    text = COMMAND.sub(r"`\g<0>`", " ".join(comment.split()))
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = (CODE.sub(r"`\g<0>`", part) for part in parts[::2])
    return linked("".join(parts))
