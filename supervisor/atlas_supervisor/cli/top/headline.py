"""The first lines of `atlasctl top`: whether users are served, the last change, and the slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.text import Text

from atlas_supervisor.cli.listing import widths_of
from atlas_supervisor.cli.status import STATE_STYLES, usage
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, safe, spaced
from atlas_supervisor.cli.units import (
    MISSING,
    SECOND,
    age,
    amount,
    duration,
    latency,
    percent,
    recent_errors,
)
from atlas_supervisor.cli.words import Record, is_recycle, mapping, objects

SUFFERING = 0.01
"""From this share of failed requests on, the sentence is red."""

SLOT_NAMES = ("slot", "state", "version", "up", "memory", "cpu", "req/s", "errors", "p95")
_VERSION = SLOT_NAMES.index("version")
_LEAST_VERSION = 8
_EXPENDABLE = ("memory", "cpu", "up")
"""Columns that a narrow terminal does without."""
_STYLES = {OK: "bold green", BAD: "bold red", NOTE: "bold yellow", EVENT: "dim"}
_NO_CHANGE = frozenset({"refused", "resumed", "not_needed"})
"""Outcomes in the audit trail by which nothing changed."""
_NO_ACTION = frozenset({"request", "session"})
"""A request that was denied, and a session of the dashboard: they change nothing that runs."""


class Headline(NamedTuple):
    """The sentence on top, with the sign that gives it its colour."""

    sign: str
    sentence: str

    @property
    def style(self) -> str:
        """Return the style for the whole sentence."""
        return _STYLES[self.sign]

    def as_of(self, seconds: float) -> Headline:
        """Return it as what was known so many seconds ago."""
        return Headline(EVENT, f"{duration(seconds * SECOND)} ago: {self.sentence}")


def headline(status: Record, health: Record) -> Headline:
    """Return whether users are served."""
    active = next((s for s in objects(status.get("slots")) if s.get("role") == "active"), {})
    port = mapping(mapping(health.get("checks")).get("port_active"))
    if active.get("state") != "running":
        state = f"{active.get('slot')} is {active.get('state')}" if active else "no active slot"
        return Headline(BAD, f"Users are not served: {state}{_exit(active)}")
    if port.get("status") == "fail" and len(_shares(status)) < 2:
        return Headline(BAD, f"Users are not served: {port.get('message')}")
    if held := mapping(mapping(status.get("traffic")).get("held")):
        waiting = f"{amount(held.get('waiting'))} wait, for {age(held.get('since'))} so far"
        return Headline(NOTE, f"New connections are held by {held.get('by')}: {waiting}")
    sign, figures = _figures(status)
    return Headline(sign, f"{_serves(status)}, {figures}" if figures else _serves(status))


def _exit(slot: Record) -> str:
    return f", {slot['last_exit']}" if slot.get("last_exit") else ""


def _serves(status: Record) -> str:
    """Return which version serves, or both with their shares."""
    if len(shares := _shares(status)) > 1:
        return f"{' and '.join(shares)} of the traffic"
    return f"{status.get('version')} serves all traffic"


def _shares(status: Record) -> list[str]:
    """Return the versions that get new connections, each with its share."""
    weights = mapping(mapping(status.get("traffic")).get("weights"))
    return [
        f"{slot.get('version')} {percent(weights[slot['slot']])}"
        for slot in objects(status.get("slots"))
        if weights.get(str(slot.get("slot"))) and slot.get("version")
    ]


def _figures(status: Record) -> tuple[str, str]:
    """Return the sign by the last minute's requests, and the words for those of five minutes."""
    recent = mapping(status.get("requests"))
    figures = [mapping(slot.get("requests")) for slot in objects(status.get("slots"))]
    counted = [each for each in figures if each.get("per_second") is not None]
    if not recent or not counted:
        return OK, ""
    rate = sum(float(each["per_second"]) for each in counted)
    failed = sum(float(each["per_second"]) * (each.get("error_share") or 0) for each in counted)
    errors = recent_errors(recent)
    if rate and failed / rate >= SUFFERING:
        return BAD, f"{percent(failed / rate)} of requests fail, {errors}"
    return (NOTE if recent.get("failed") else OK), f"{errors}, {rate:.3g} requests/s"


def last_change(status: Record, deploy: Record, entries: list[Record]) -> str:
    """Return the last change, when and by whom: by the audit trail, else by the last deploy."""
    last = mapping(status.get("last_deploy"))
    entry = next((e for e in entries if _is_change(e)), None)
    if entry is not None:
        what = f"{entry.get('action')}: {entry.get('outcome')}".replace("_", " ")
        if entry.get("subject") == last.get("deploy_id") and last.get("version"):
            what = f"{what} ({last['version']})"
        return f"{what}, {age(entry.get('ts'))} ago{_by(entry, entries)}"
    if not last:
        return "no deploy yet"
    what = str(last.get("result") or last.get("phase")).replace("_", " ")
    when = age(last.get("ended_ts") or last.get("started_ts"))
    # Its first transition says by whom it was requested.
    cause = "" if is_recycle(last) else mapping(next(iter(_transitions(deploy)), None)).get("cause")
    by = f": {cause}" if cause and deploy.get("deploy_id") == last.get("deploy_id") else ""
    return f"deploy: {what} ({last.get('version') or last.get('release')}), {when} ago{by}"


def _is_change(entry: Record) -> bool:
    return entry.get("outcome") not in _NO_CHANGE and entry.get("action") not in _NO_ACTION


def _by(entry: Record, entries: list[Record]) -> str:
    """Return who did it; of what the daemon did for a deploy, who had requested that."""
    same = (e for e in entries if entry.get("subject") and e.get("subject") == entry["subject"])
    begun = next((e for e in same if e.get("outcome") == "begun"), entry)
    if entry.get("actor") == begun.get("actor"):
        return f" by {entry.get('actor')}"
    return f", requested by {begun.get('actor')}"


def _transitions(deploy: Record) -> list[Record]:
    return objects(deploy.get("transitions"))


def slot_lines(status: Record, width: int) -> Iterator[Text]:
    """Yield the slots as lines of a table; where it is narrow, less is shown of each."""
    head = [safe(name, "dim") for name in SLOT_NAMES]
    rows = [head, *(_slot(slot) for slot in objects(status.get("slots")))]
    widths = widths_of(SLOT_NAMES, rows)
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    shown = list(range(len(SLOT_NAMES)))

    def excess() -> int:
        return sum(widths[n] + gap for n in shown) - gap - width

    widths[_VERSION] = max(_LEAST_VERSION, widths[_VERSION] - max(excess(), 0))
    for name in _EXPENDABLE:
        if excess() > 0:
            shown.remove(SLOT_NAMES.index(name))
    for row in rows:
        cells = [row[n].copy() for n in shown]
        for cell, n in zip(cells, shown, strict=True):
            cell.truncate(widths[n], overflow="ellipsis", pad=True)
        line = Text(" " * gap).join(cells)
        line.truncate(width, overflow="ellipsis")
        yield line


def _slot(slot: Record) -> list[Text]:
    active = slot.get("role") == "active"
    state, figures = str(slot.get("state")), mapping(slot.get("requests"))
    rate, share = figures.get("per_second"), figures.get("error_share")
    memory, cpu = usage(slot)
    return [
        safe(f"{'>' if active else ' '} {slot.get('slot')}", "bold" if active else ""),
        safe(state, STATE_STYLES.get(state, "")),
        safe(slot.get("version") or MISSING),
        safe(age(slot.get("started_ts"))),
        safe(memory),
        safe(cpu),
        safe(MISSING if rate is None else f"{rate:.3g}"),
        safe(percent(share), _error_style(share)),
        safe(latency(figures.get("p95_ms"))),
    ]


def _error_style(share: object) -> str:
    if not isinstance(share, int | float) or not share:
        return ""
    return "bold red" if share >= SUFFERING else "yellow"


def troubles(status: Record) -> Iterator[Text]:
    """Yield what an operator should look into, each with what to do about it."""
    if status.get("mode") == "single" and not objects(status.get("fallback_suggestions")):
        yield safe("! mode is single: deploys are disabled", "yellow")
    for each in objects(status.get("fallback_suggestions")):
        yield spaced(safe(f"! {each.get('message')}", "yellow"), safe(each.get("action"), "dim"))
