"""The sentence on top: whether users are served, by which version, and with how many errors.

It is red if users suffer, and only then: no version serves, or requests fail. That deploys are
disabled, or one has failed, is no harm to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    tone, sentence, detail = _sentence(status, ready=not answers.error(READY))
    daemon = mapping(status.get("daemon"))
    return {
        "tone": tone,
        "sentence": sentence,
        "detail": detail,
        "mode": status.get("mode"),
        "health": status.get("health_score"),
        "started_ts": daemon.get("started_ts"),
        "daemon": daemon,
        "channel": status.get("channel"),
        "public_port": status.get("public_port"),
        "plane": mapping(status.get("traffic")).get("plane"),
        "notes": objects(status.get("fallback_suggestions")),
    }


def _sentence(status: Record, *, ready: bool) -> tuple[str, str, str]:
    """Return tone, sentence and what stands beside it."""
    slots = {str(slot.get("slot")): slot for slot in objects(status.get("slots"))}
    if not status:
        return "unknown", "The supervisor does not know its state", ""
    if not ready:
        active: Record = next((s for s in slots.values() if s.get("role") == "active"), {})
        why = str(active.get("last_exit") or f"{active.get('slot')} is {active.get('state')}")
        return "bad", "No version serves: requests fail or wait", why
    held = mapping(mapping(status.get("traffic")).get("held"))
    if held:
        waiting = units.amount(held.get("waiting"))
        return "watch", "New connections are held", f"{waiting} wait, none is refused"
    served = _served(status, slots)
    requests, failed = _requests(slots.values())
    if requests is None:
        return "good", served, "requests are not counted"
    errors = "no errors" if not failed else f"{units.amount(failed)} of {requests:,.0f} failed"
    detail = f"{errors} in the last minute, {rate(requests / 60)} requests/s"
    if failed and failed >= _SUFFERING * requests:
        share = units.percent(failed / requests)
        return "bad", f"{served}, and {share} of requests fail", detail
    return ("watch" if failed else "good"), served, detail


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


def _requests(slots: Any) -> tuple[float | None, float]:
    """Return how many requests there were in the last minute, and how many of them failed."""
    figures = [mapping(slot.get("requests")) for slot in slots if slot.get("requests")]
    if not figures:
        return None, 0
    counts = [(each["per_second"] * 60, each.get("error_share") or 0) for each in figures]
    return sum(count for count, _ in counts), round(sum(count * share for count, share in counts))
