"""`atlasctl status`: the current status on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.health import score_text
from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.listing import fits, listing
from atlas_supervisor.cli.render_deploy import note, result_text, suggestions
from atlas_supervisor.cli.render_findings import hint_line
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import Screen, safe, spaced
from atlas_supervisor.cli.units import (
    MISSING,
    SECOND,
    age,
    amount,
    duration,
    latency,
    percent,
)
from atlas_supervisor.cli.words import (
    GO_AHEAD,
    PENDING,
    PENDING_HINT,
    Record,
    awaits_switch,
    doing,
    guarded,
    mapping,
    objects,
)

STATE_STYLES = {
    "running": "green",
    "warm": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "backoff": "red",
    "empty": "dim",
}
_SLOT_NAMES: Sequence[str] = ("slot", "role", "state", "port", "pid", "version", "up", "restarts")
_QUANTILES = ("p50", "p95", "p99")
_PADDING = 2
_FRAME = 2 * (1 + _PADDING)
"""Columns of the frame and its padding."""


@verb
async def status(session: Session) -> None:
    """Show mode, slots, traffic, health and the last deploy."""
    answer = await session.daemon.get("/deploy/status")
    session.report(answer, lambda data: overview(session.screen, data), "mode", "slots")


def overview(screen: Screen, data: Record) -> RenderableType:
    """Return the status: framed on a terminal, as plain lines in a pipe."""
    parts: list[RenderableType] = [_facts(data), Text(), _slots(screen, data)]
    parts += [*_requests(data), *_exits(data), *draining(data)]
    notes = [*_waiting(screen, data), *_pending(screen, data), *suggestions(screen, data)]
    if notes:
        parts += [Text(), *notes]
    if not screen.is_terminal:
        return Group(*parts)
    return Panel(
        Group(*parts),
        title=Text("atlas", style="bold"),
        title_align="left",
        border_style="dim",
        box=box.ROUNDED,
        padding=(1, _PADDING),
        expand=False,
    )


def _waiting(screen: Screen, data: Record) -> Iterator[RenderableType]:
    """Yield what to do if a deploy waits for an operator; it waits without a limit."""
    last = data.get("last_deploy")
    if data.get("deploy_in_progress") and isinstance(last, dict) and awaits_switch(last):
        yield note(screen, f"{last.get('version')} passed its gates and waits.", GO_AHEAD)


def _pending(screen: Screen, data: Record) -> Iterator[RenderableType]:
    """Yield what to do if worker settings have changed since the active worker's launch."""
    if mapping(data.get("daemon")).get("settings_pending"):
        yield note(screen, PENDING, PENDING_HINT)


def _facts(data: Record) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    mode = str(data.get("mode"))
    grid.add_row("mode", safe(mode, "bold" if mode == "bluegreen" else "bold yellow"))
    grid.add_row("active", _line(f"port {data.get('active_port')}", data.get("version")))
    grid.add_row("public", _public(data))
    grid.add_row("traffic", _traffic(data))
    grid.add_row("health", score_text(data.get("health_score")))
    grid.add_row("channel", safe(_or_missing(data.get("channel"))))
    if daemon := mapping(data.get("daemon")):
        grid.add_row("daemon", _daemon(daemon))
    if recycle := mapping(data.get("recycle")):
        grid.add_row("recycle", _recycle(recycle))
    last = data.get("last_deploy")
    if data.get("deploy_in_progress") and isinstance(last, dict):
        grid.add_row("deploying", _line(str(last.get("deploy_id")), doing(last)))
    else:
        grid.add_row("last deploy", _last_deploy(last))
    if isinstance(last, dict) and (seen := guarded(last)):
        grid.add_row("guard", safe(seen))
    return grid


def _daemon(daemon: Record) -> Text:
    begun = {"reload": "since its reload", "adopted": "since it took its workers over"}
    how = begun.get(str(daemon.get("start")), "since its start")
    facts = f"pid {daemon.get('pid')}", f"{age(daemon.get('started_ts'))} {how}"
    return spaced(safe(daemon.get("version")), *(safe(fact, "dim") for fact in facts))


def _recycle(recycle: Record) -> Text:
    """Return the limits of a worker, and whether the active one is beyond them."""
    memory, age_limit = recycle.get("max_rss_mb"), recycle.get("max_age_seconds")
    limits = [f"{amount(memory)} MB"] if isinstance(memory, int | float) else []
    if isinstance(age_limit, int | float):
        limits.append(f"{duration(age_limit * SECOND)} of age")
    parts = [safe(f"at {' or '.join(limits)}")]
    if recycle.get("due"):
        waits = recycle.get("waits")
        parts.append(safe(f"due: {waits}" if waits else "due", "yellow"))
    return spaced(*parts)


def _public(data: Record) -> Text:
    if data.get("public_port") is None:
        return safe("off; clients use the active port")
    plane = (data.get("traffic") or {}).get("plane")
    return _line(f"port {data['public_port']}", f"{plane} plane" if plane else None)


def _traffic(data: Record) -> Text:
    """Return the weights, and before them that new connections wait."""
    held = mapping(mapping(data.get("traffic")).get("held"))
    if not held:
        return safe(_weights(data))
    who = f"held for {age(held.get('since'))} by {held.get('by')}"
    waiting = f"{amount(held.get('waiting'))} connections wait"
    return spaced(safe(who, "bold yellow"), safe(waiting), safe(_weights(data), "dim"))


def _weights(data: Record) -> str:
    weights = (data.get("traffic") or {}).get("weights") or {}
    return ", ".join(f"{slot} {share:.4g} %" for slot, share in _percent(weights)) or MISSING


def _percent(weights: dict[str, Any]) -> list[tuple[str, float]]:
    return [(slot, float(share) * 100) for slot, share in weights.items()]


def _last_deploy(record: Record | None) -> Text:
    if record is None:
        return safe("none yet", "dim")
    ago = age(record.get("ended_ts") or record.get("started_ts"))
    parts = [result_text(record)]
    if record.get("version"):
        parts.append(safe(record["version"]))
    return spaced(*parts, safe(f"{ago} ago", "dim"), safe(record.get("deploy_id"), "dim"))


def _slots(screen: Screen, data: Record) -> RenderableType:
    """Return the slots; memory and CPU where there is room for them."""
    slots = objects(data.get("slots"))
    names, rows = _SLOT_NAMES, [_slot(slot) for slot in slots]
    if any(usage(slot) != [MISSING, MISSING] for slot in slots):
        wider = (*names, "memory", "cpu")
        used = [[*row, *map(safe, usage(slot))] for row, slot in zip(rows, slots, strict=True)]
        crowded = not fits(screen, names, rows, frame=_FRAME)  # even so; then a line more
        if crowded or fits(screen, wider, used, frame=_FRAME):
            names, rows = wider, used
    return listing(screen, names, rows, frame=_FRAME, named=True)


def _slot(slot: Record) -> list[Text]:
    active = slot.get("role") == "active"
    state = str(slot.get("state"))
    return [
        safe(slot.get("slot"), "bold" if active else ""),
        safe(slot.get("role"), "" if active else "dim"),
        safe(state, STATE_STYLES.get(state, "")),
        *(safe(_or_missing(slot.get(name))) for name in ("port", "pid", "version")),
        safe(age(slot.get("started_ts"))),
        safe(slot.get("restarts"), "yellow" if slot.get("restarts") else ""),
    ]


def usage(instance: Record) -> list[str]:
    """Return the memory and the CPU of an instance."""
    memory, cpu = instance.get("memory_mb"), instance.get("cpu_percent")
    return [
        MISSING if memory is None else f"{amount(memory)} MB",
        f"{cpu:.0f} %" if isinstance(cpu, int | float) else MISSING,
    ]


def _requests(data: Record) -> Iterator[RenderableType]:
    """Yield a line for each slot whose worker counts its requests and has some."""
    for slot in objects(data.get("slots")):
        figures = mapping(slot.get("requests"))
        if not figures.get("per_second"):
            continue
        share = figures.get("error_share")
        latencies = [f"{name} {latency(figures.get(f'{name}_ms'))}" for name in _QUANTILES]
        yield spaced(
            safe(f"{slot.get('slot')}: {figures['per_second']:.4g} requests/s"),
            safe(f"{percent(share)} failed", "yellow" if share else "dim"),
            safe(", ".join(latencies), "dim"),
        )


def _exits(data: Record) -> Iterator[RenderableType]:
    """Yield the last unexpected exit of each slot that has restarts or is in trouble."""
    for slot in data.get("slots") or []:
        troubled = slot.get("restarts") or slot.get("state") == "backoff"
        if troubled and slot.get("last_exit"):
            yield safe(f"{slot.get('slot')}: last unexpected exit: {slot['last_exit']}", "yellow")
            if words := hint(slot["last_exit"]):
                yield hint_line(words)


def draining(data: Record) -> Iterator[RenderableType]:
    """Yield a line for each draining worker."""
    for each in data.get("draining") or []:
        kinds = each.get("left") or {"connections": each.get("connections")}
        counts = [_counted(kind, count) for kind, count in kinds.items() if count]
        nothing = MISSING if None in kinds.values() else "nothing left"
        text = f"{each.get('slot')} drains {each.get('version')}, pid {each.get('pid')}"
        since = f"for {age(each.get('since_ts'))}"
        left = ", ".join(counts) or nothing
        used = ", ".join(part for part in usage(each) if part != MISSING)
        yield spaced(safe(text, "yellow"), safe(since, "dim"), safe(left), safe(used, "dim"))


def _counted(kind: str, count: int) -> str:
    words = kind.replace("_", " ")
    return f"{count} {words.removesuffix('s') if count == 1 else words}"


def _line(first: str, second: Any) -> Text:
    return safe(first) if second is None else spaced(safe(first), safe(second))


def _or_missing(value: Any) -> Any:
    return MISSING if value is None else value
