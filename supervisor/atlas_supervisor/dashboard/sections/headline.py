"""The sentence on top: whether users are served, by which version, and with how many errors.

It is red if users suffer, and only then: no version serves, or requests fail at this moment. Errors
of the last five minutes make it yellow. That deploys are
disabled, or one has failed, is no harm to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_supervisor.cli import units
from atlas_supervisor.cli.words import Record, mapping, objects
from atlas_supervisor.dashboard.answers import Answers

STATUS, READY = "/deploy/status", "/readyz"
NEEDS: Mapping[str, float] = {STATUS: 1, READY: 1}

_SUFFERING = 0.01
"""Share of failed requests from which on users are said to suffer."""


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the sentence, how serious it is, and what an operator should know besides."""
    status = answers[STATUS]
    sentence = _sentence(status, ready=not answers.error(READY))
    daemon = mapping(status.get("daemon"))
    return {
        **sentence._asdict(),
        "mode": status.get("mode"),
        "health": status.get("health_score"),
        "started_ts": daemon.get("started_ts"),
        "daemon": daemon,
        "channel": status.get("channel"),
        "public_port": status.get("public_port"),
        "plane": mapping(status.get("traffic")).get("plane"),
        "notes": objects(status.get("fallback_suggestions")),
    }


class _Sentence(NamedTuple):
    tone: str
    sentence: str
    """A screen reader reads it when it changes."""
    errors: str = ""
    """What ends the sentence, and changes all the time."""
    detail: str = ""
    """What stands beside it."""


def _sentence(status: Record, *, ready: bool) -> _Sentence:
    slots = {str(slot.get("slot")): slot for slot in objects(status.get("slots"))}
    if not status:
        return _Sentence("unknown", "The supervisor does not know its state")
    if not ready:
        active: Record = next((s for s in slots.values() if s.get("role") == "active"), {})
        why = str(active.get("last_exit") or f"{active.get('slot')} is {active.get('state')}")
        return _Sentence("bad", "No version serves: requests fail or wait", detail=why)
    held = mapping(mapping(status.get("traffic")).get("held"))
    if held:
        waiting = units.amount(held.get("waiting"))
        detail = f"{waiting} wait, none is refused"
        return _Sentence("watch", "New connections are held", detail=detail)
    served = _served(status, slots)
    recent = mapping(status.get("requests"))
    if not recent:
        return _Sentence("good", served, detail="requests are not counted")
    figures = [mapping(slot.get("requests")) for slot in slots.values()]
    per_second = sum(each.get("per_second") or 0 for each in figures)
    errors, detail = units.recent_errors(recent), f"{rate(per_second)} requests/s"
    if (share := _failing(figures)) >= _SUFFERING:
        fail = f"{served}, and {units.percent(share)} of requests fail"
        return _Sentence("bad", fail, errors, detail)
    return _Sentence("watch" if recent.get("failed") else "good", served, errors, detail)


def rate(per_second: float) -> str:
    """Return a rate with three digits, or to the whole from a hundred on."""
    return f"{per_second:.3g}" if per_second < 100 else f"{per_second:,.0f}"


def _served(status: Record, slots: Mapping[str, Record]) -> str:
    """Return who serves: one version, or each with its share."""
    weights = mapping(mapping(status.get("traffic")).get("weights"))
    shares = {name: float(weight) for name, weight in weights.items() if weight}
    if len(shares) > 1:
        by_share = sorted(shares.items(), key=lambda each: -each[1])
        (most, share), *others = by_share
        parts = (f"{_version(slots, name)} has {units.percent(part)}" for name, part in others)
        rest = ", ".join(parts)
        return f"{_version(slots, most)} serves {units.percent(share)} of the traffic, {rest}"
    version = _version(slots, next(iter(shares))) if shares else status.get("version")
    return f"{version} serves all traffic"


def _version(slots: Mapping[str, Record], name: str) -> str:
    return str(mapping(slots.get(name)).get("version") or name)


def _failing(figures: Sequence[Record]) -> float:
    """Return the share of the last minute's requests that failed, in all slots together."""
    begun = sum(each.get("per_second") or 0 for each in figures)
    failed = sum((e.get("per_second") or 0) * (e.get("error_share") or 0) for e in figures)
    return failed / begun if begun else 0.0
