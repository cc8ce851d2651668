"""`docs/commands.md`: every verb of `atlasctl`, from its own help.

The prose around it is `scripts/templates/commands.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from atlas_supervisor.cli.session import common_options
from atlas_supervisor.cli.verbs import main
from scripts.markdown import linked, row, wrapped

TEMPLATE = Path(__file__).parent / "templates/commands.md"
DOCS = Path(__file__).resolve().parents[1] / "docs"
PROGRAM = "atlasctl"

SEE = {
    "abort": "how-to/split-traffic.md",
    "audit": "audit.md",
    "canary": "canary-in-code.md",
    "deploy": "how-to/ci-pipeline.md",
    "fleet": "fleet.md",
    "health": "health.md",
    "hold": "how-to/hold-requests.md",
    "init": "how-to/first-deploy.md",
    "logs": "logs.md",
    "mode": "how-to/after-a-switch.md",
    "ramp": "how-to/ramp.md",
    "reload": "how-to/upgrade.md",
    "rollback": "how-to/go-back.md",
    "traffic": "how-to/split-traffic.md",
}
"""The document that explains a verb, if there is one."""


def command_reference() -> str:
    """Return the text of `docs/commands.md`."""
    verbs = list(calls(main, PROGRAM))
    rows = [
        row(f"[`{line}`](#{anchor(line)})", _first_sentence(command)) for line, command in verbs
    ]
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{overview}", "\n".join(rows))
    return text.replace("{verbs}", "\n\n".join(_section(*each) for each in verbs))


def calls(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each verb and how it is called; of a group, each of its own verbs."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from calls(command, f"{before} {name}")
        else:
            yield usage(command, f"{before} {name}"), command


def usage(command: click.Command, called: str) -> str:
    """Return how a verb is called, of its options only with those that it needs."""
    pieces = command.collect_usage_pieces(click.Context(command, info_name=called))
    needed = (
        f"{each.opts[0]} {each.metavar}"
        for each in command.params
        if isinstance(each, click.Option) and each.required
    )
    return " ".join([called, *(piece for piece in pieces if piece != "[OPTIONS]"), *needed])


def anchor(heading: str) -> str:
    """Return the name that a forge gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _first_sentence(command: click.Command) -> str:
    return " ".join(cleandoc(command.help or "").split("\n\n")[0].split()).removesuffix(".")


def _section(line: str, command: click.Command) -> str:
    paragraphs = [wrapped(linked(" ".join(part.split()))) for part in _paragraphs(command)]
    table = [row(f"`{names}`", text) for names, text in _options(command)]
    if table:
        paragraphs.append("\n".join(["| option | |", "| --- | --- |", *table]))
    if page := SEE.get(line.split()[1]):
        title = (DOCS / page).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        paragraphs.append(f"See [{title}]({page}).")
    return "\n\n".join([f"### `{line}`", *paragraphs])


def _paragraphs(command: click.Command) -> list[str]:
    return cleandoc(command.help or "").split("\n\n")


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield the options that are a verb's own: not those that every verb takes."""
    common = {option for each in common_options() for option in each.opts} | {"--help"}
    context = click.Context(command, info_name=PROGRAM)
    for each in command.get_params(context):
        if isinstance(each, click.Option) and not common & {*each.opts}:
            record = each.get_help_record(context)
            if record is not None:
                yield record
