"""`atlasctl doctor`: what would keep a deploy from working on this machine, and what mends it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.endpoint import ConnectionOptions, find_env_file
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.program import DOCTOR, run_program
from atlas_supervisor.cli.session import local_options
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, Screen, safe, write_json
from atlas_supervisor.cli.words import Record, objects

_SIGNS = {"ok": OK, "warn": NOTE, "fail": BAD}
_STYLES = {"warn": "yellow", "fail": "red"}
_COUNTED = {"fail": "failure", "warn": "warning"}


@click.command()
def doctor() -> None:
    """Check this machine and the installation; change nothing.

    Works with and without a running daemon, and without an env file. Exits with 1 if something
    fails; warnings alone are 0.
    """
    given = click.get_current_context().ensure_object(ConnectionOptions)
    if given.url is not None:
        raise click.UsageError("doctor looks at this machine; it can't look by --url.")
    env_file = find_env_file(given)
    screen = Screen()
    with screen.waiting(lambda: "looking"):
        done = run_program(DOCTOR, *([] if env_file is None else [env_file]))
    try:
        report = json.loads(done.stdout)
        found = objects(report["findings"])
    except (ValueError, KeyError):
        why = done.stderr.strip() or f"exit {done.returncode}"
        raise FailedError(f"The check itself failed: {why}") from None
    if given.json:
        write_json(done.stdout.encode())
    else:
        screen.print(*_lines(screen, found))
    if any(each.get("status") == "fail" for each in found):
        raise click.exceptions.Exit(FailedError.exit_code)


doctor.params += local_options()


def _lines(screen: Screen, found: list[Record]) -> Iterator[RenderableType]:
    width = max((len(str(each.get("check"))) for each in found), default=0)
    for each in found:
        status = str(each.get("status"))
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        line.add_column(min_width=width + 2, no_wrap=True)
        line.add_column(overflow="fold")
        name = safe(each.get("check"), _STYLES.get(status, ""))
        text = safe(each.get("message"))
        if mend := each.get("mend"):
            text = Text("\n").join((text, Text.assemble(("mend: ", "dim"), safe(mend))))
        line.add_row(Text(" ").join((screen.sign(_SIGNS.get(status, EVENT)), name)), text)
        yield line
    yield Text()
    yield _summary(screen, found)


def _summary(screen: Screen, found: list[Record]) -> Text:
    counts = [
        f"{count} {word}{'s' * (count != 1)}"
        for status, word in _COUNTED.items()
        if (count := sum(each.get("status") == status for each in found))
    ]
    worst = next((each for each in _COUNTED if any(e.get("status") == each for e in found)), "ok")
    text = ", ".join(counts) or "all is well"
    return Text(" ").join((screen.sign(_SIGNS[worst]), safe(text, _STYLES.get(worst, "green"))))
