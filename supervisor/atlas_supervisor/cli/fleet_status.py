"""Renders a fleet: whether it serves, the rollout, its hosts, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.fleet_words import (
    ENDED,
    evidence_in_words,
    headline,
    killed,
    kills_in_words,
    life,
    listed,
    no_rollout_in_words,
    now_of,
    part_of,
    rollout_in_words,
    slots_in_words,
    waves_in_words,
    why,
)
from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.terminal import BAD, NOTE, OK, Screen, safe, spaced
from atlas_supervisor.cli.units import MISSING, age, amount
from atlas_supervisor.cli.words import Record, mapping, objects

_SIGNS = {"good": OK, "bad": BAD}
_STYLES = {"good": "bold green", "bad": "bold red", "watch": "bold yellow"}
_STATE_STYLES = {
    "running": "cyan",
    "paused": "yellow",
    "halted": "red",
    "aborted": "yellow",
    "passed": "green",
}
_PART_STYLES = {"passed": "green", "failed": "red", "deploying": "cyan"}
_NAMES = ("host", "version", "health", "mode", "state", "rollout", "why")
_BEST = 100
_PADDING = 2
_FRAME = 2 * (1 + _PADDING)


def fleet_view(screen: Screen, fleet: Record, *, everything: bool = False) -> RenderableType:
    """Return the fleet: framed on a terminal, as plain lines in a pipe."""
    parts: list[RenderableType] = [_headline(screen, fleet), Text(), _facts(fleet), Text()]
    parts += _hosts(screen, fleet, everything=everything)
    if notes := [note(screen, *_said(each)) for each in objects(fleet.get("suggestions"))]:
        parts += [Text(), *notes]
    if not screen.is_terminal:
        return Group(*parts)
    return Panel(
        Group(*parts),
        title=safe(f"fleet {fleet.get('fleet')}", "bold"),
        title_align="left",
        subtitle=safe(f"as {fleet.get('host')} knows it", "dim"),
        subtitle_align="left",
        border_style="dim",
        box=box.ROUNDED,
        padding=(1, _PADDING),
        expand=False,
    )


def rollout_line(rollout: Record) -> Text:
    """Return the rollout's state and how far it is, in its colour."""
    style = _STATE_STYLES.get(str(rollout.get("state")), "")
    return safe(rollout_in_words(rollout), style)


def _said(suggestion: Record) -> tuple[object, object]:
    return suggestion.get("message"), suggestion.get("action")


def _headline(screen: Screen, fleet: Record) -> RenderableType:
    tone, sentence, detail = headline(fleet)
    line = Table.grid(padding=(0, 1))
    line.add_row(screen.sign(_SIGNS.get(tone, NOTE)), safe(sentence, _STYLES.get(tone, "bold")))
    if detail:
        line.add_row("", safe(detail, "red" if tone == "bad" else "yellow"))
    return line


def _facts(fleet: Record) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(fleet):
        grid.add_row(name, value)
    return grid


def _rows(fleet: Record) -> Iterator[tuple[str, Text]]:
    rollout = mapping(fleet.get("rollout"))
    if rollout:
        yield "rollout", rollout_line(rollout)
        if now := now_of(rollout):
            yield "now", safe(now)
        if rollout.get("state") not in ENDED:
            for number, (hosts, far) in enumerate(waves_in_words(rollout), 1):
                yield f"wave {number}", spaced(safe(hosts), safe(far, "dim"))
        begun = f"{age(rollout.get('started_ts'))} ago by {rollout.get('started_by')}"
        yield "begun", spaced(safe(begun), safe(rollout.get("rollout_id"), "dim"))
    else:
        yield "rollout", safe(no_rollout_in_words(fleet), "dim")
    yield "slots", safe(slots_in_words(fleet))
    kills = mapping(fleet.get("kills"))
    yield "kills", safe(kills_in_words(kills), "yellow" if killed(kills) else "")
    for feature, calls in evidence_in_words(fleet):
        yield feature, safe(calls)
    engine = mapping(fleet.get("engine"))
    if engine.get("connected"):
        yield "engine", safe("connected")
    else:
        away = f"away for {age(engine.get('since_ts'))}: {engine.get('error')}"
        yield "engine", safe(away, "red")


def _hosts(screen: Screen, fleet: Record, *, everything: bool) -> Iterator[RenderableType]:
    hosts, more = listed(fleet, everything=everything)
    if not hosts:
        return
    rollout = mapping(fleet.get("rollout"))
    rows = [_host(host, rollout) for host in hosts]
    yield listing(screen, _NAMES, rows, frame=_FRAME)
    if more:
        yield safe(f"{amount(more)} more, of which none needs attention; --all lists them", "dim")


def _host(host: Record, rollout: Record) -> list[Text]:
    part = part_of(host, rollout)
    troubled = host.get("serves") is False
    mode, score = host.get("mode"), host.get("health_score")
    return [
        safe(host.get("name"), "bold red" if troubled else "bold"),
        safe(host.get("version") or MISSING),
        safe(MISSING if score is None else score, "green" if score == _BEST else "yellow"),
        safe(mode or MISSING, "yellow" if mode == "single" else ""),
        safe(life(host), "red" if troubled else ""),
        safe(part or MISSING, _PART_STYLES.get(part, "dim")),
        safe(why(host), "dim"),
    ]
