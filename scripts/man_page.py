"""The man page of `atlasctl`, made from the commands' own help."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from inspect import cleandoc

import click

from atlas_supervisor.cli.session import common_options
from atlas_supervisor.cli.verbs import main

PROGRAM = "atlasctl"
EXIT_STATUS = (
    ("0", "done"),
    ("1", "refused or failed"),
    ("2", "wrong usage"),
    ("3", "no daemon"),
    ("130", "interrupted"),
)
FILES = (
    ("atlas.env", "the daemon's settings; the client reads STATE_DIR from it"),
    ("STATE_DIR/supervisor.sock", "the daemon's Unix socket"),
)


def man_page() -> str:
    """Return the text of `docs/man/atlasctl.1`."""
    return "\n".join([*lines(), ""])


def lines() -> Iterator[str]:
    yield '.\\" Generated from the help of atlasctl by ./scripts/generate-docs; do not edit.'
    yield f'.TH ATLASCTL 1 "" "ATLAS {version("atlas-supervisor")}" "ATLAS Supervisor"'
    yield ".SH NAME"
    yield f"{PROGRAM} \\- control an ATLAS supervisor"
    yield ".SH SYNOPSIS"
    yield f".B {PROGRAM}"
    yield "[OPTIONS] COMMAND [ARGS]..."
    yield ".SH DESCRIPTION"
    yield from paragraphs(main)
    yield ".SH OPTIONS"
    yield from options(main, shared=True)
    yield ".SH COMMANDS"
    yield from commands(main, PROGRAM)
    yield ".SH EXIT STATUS"
    yield from entries(EXIT_STATUS)
    yield ".SH FILES"
    yield from entries(FILES)


def commands(group: click.Group, before: str) -> Iterator[str]:
    """Yield a section for each verb; for a group of verbs, for each of its own."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
            continue
        context = click.Context(command, info_name=name)
        usage = " ".join((f"{before} {name}", *command.collect_usage_pieces(context)))
        yield f'.SS "{escaped(usage.replace("[OPTIONS] ", "").replace(" [OPTIONS]", ""))}"'
        yield from paragraphs(command)
        yield from options(command, shared=False)


def paragraphs(command: click.Command) -> Iterator[str]:
    for number, each in enumerate(cleandoc(command.help or "").split("\n\n")):
        if number:
            yield ".PP"
        yield escaped(" ".join(each.split()))


def options(command: click.Command, *, shared: bool) -> Iterator[str]:
    """Yield the options of a command; `shared` are those that every verb takes."""
    common = {option for each in common_options() for option in each.opts} | {"--help"}
    # With these settings, -h is an option, too; click caches the options that were asked for first.
    context = click.Context(command, info_name=PROGRAM, **command.context_settings)
    records = [
        record
        for each in command.get_params(context)
        if isinstance(each, click.Option) and (shared or not common & {*each.opts})
        if (record := each.get_help_record(context)) is not None
    ]
    yield from entries(records)


def entries(records: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in records:
        yield ".TP"
        yield f"\\fB{escaped(name)}\\fR"
        yield escaped(text)


def escaped(text: str) -> str:
    """Return a line of roff; what stands in backquotes is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text[:1] in {".", "'"} else text
