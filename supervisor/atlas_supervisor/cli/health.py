"""`atlasctl health`: the score, and every check."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.answer_words import applicable, value_in_words
from atlas_supervisor.cli.client import ApiResponse
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, Screen, safe, spaced
from atlas_supervisor.cli.units import MISSING
from atlas_supervisor.cli.words import Record, mapping

_SIGNS = {"pass": OK, "warn": NOTE, "fail": BAD, "skipped": EVENT}
_STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
_STATUS_STYLES = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}

_BEST = 100


# A seven-segment display, as three lines of plain ASCII per digit.
_DIGITS = {
    "0": (" _ ", "| |", "|_|"),
    "1": ("   ", "  |", "  |"),
    "2": (" _ ", " _|", "|_ "),
    "3": (" _ ", " _|", " _|"),
    "4": ("   ", "|_|", "  |"),
    "5": (" _ ", "|_ ", " _|"),
    "6": (" _ ", "|_ ", "|_|"),
    "7": (" _ ", "  |", "  |"),
    "8": (" _ ", "|_|", "|_|"),
    "9": (" _ ", "|_|", " _|"),
}


@verb
async def health(session: Session) -> None:
    """Show the health score, 0 to 100, and every check."""
    answer = await session.daemon.get("/health")
    if not _is_unhealthy(answer):
        session.report(answer, lambda data: health_view(session.screen, data), "score", "checks")
        return
    # Unhealthy is answered with 503, and the caller wants to see the checks.
    if session.json:
        session.report_json(answer)
    session.screen.print(health_view(session.screen, answer.data))
    raise click.exceptions.Exit(FailedError.exit_code)


def _is_unhealthy(answer: ApiResponse) -> bool:
    return not answer.ok and isinstance(answer.data.get("checks"), dict)


def score_text(score: Any) -> Text:
    """Return a score on one line; below 100 with the verb that shows more."""
    if score == _BEST:
        return safe(score, "green")
    return spaced(
        safe(MISSING if score is None else score, "yellow"), safe("atlasctl health", "dim")
    )


def health_view(screen: Screen, data: Record) -> RenderableType:
    """Return the score and each check."""
    return Group(_headline(screen, data), Text(), _checks(screen, data))


def _headline(screen: Screen, data: Record) -> RenderableType:
    word = str(data.get("status"))
    style = f"bold {_STATUS_STYLES.get(word, '')}".strip()
    score = str(data.get("score"))
    about = f"{data.get('slot')}, version {data.get('version') or MISSING}"
    age = data.get("age_seconds")
    seen = "not checked yet" if age is None else f"checked {age:.1f} s ago"
    if not screen.is_terminal or not set(score) <= set(_DIGITS):
        return spaced(safe(f"{score}", style), safe(word, style), safe(about), safe(seen))
    lines = (" ".join(_DIGITS[digit][row] for digit in score) for row in range(3))
    grid = Table.grid(padding=(0, 3))
    beside = Text("\n", overflow="fold").join([safe(word, style), safe(about), safe(seen, "dim")])
    grid.add_row(Text("\n".join(lines), style=style), beside)
    return grid


def _checks(screen: Screen, data: Record) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for number in range(4):
        table.add_column(no_wrap=number < 3, overflow="fold")
    for name, found in applicable(mapping(data.get("checks"))).items():
        word = str(found.get("status"))
        style = _STYLES.get(word, "")
        trouble = style if word in {"warn", "fail"} else "dim" if word == "skipped" else ""
        table.add_row(
            Text.assemble(screen.sign(_SIGNS.get(word, EVENT)), " ", safe(name, trouble)),
            safe(word, style),
            safe(value_in_words(found)),
            safe(found.get("message") or "", trouble),
        )
    return table
