"""The fleet: whether it serves, its rollout and what that waits for, its hosts, its kill switch.

Absent where the machine belongs to no fleet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atlas_supervisor.cli.fleet_words import (
    ENDED,
    arms_in_words,
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
from atlas_supervisor.cli.words import Record, mapping, objects
from atlas_supervisor.dashboard.answers import Answers

FLEET, CANARY, RELEASES = "/fleet", "/deploy/canary", "/deploy/releases"
NEEDS: Mapping[str, float] = {FLEET: 2, CANARY: 5, RELEASES: 10}

_OFF = "fleet_is_off"
_MOST_FEATURES = 30
_TONES = {"running": "busy", "passed": "good", "halted": "bad"}
_BEGUN = ("running", "paused", "halted")


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the fleet in words, and the actions that are possible; nothing without a fleet."""
    error = answers.error(FLEET)
    fleet = answers[FLEET]
    if not fleet:
        return {"fleet": None, "error": error if error and error.get("code") != _OFF else None}
    rollout, engine = mapping(fleet.get("rollout")), mapping(fleet.get("engine"))
    hosts, more = listed(fleet)
    features = list(_features(answers))
    return {
        "error": None,
        "fleet": fleet.get("fleet"),
        "host": fleet.get("host"),
        "headline": headline(fleet)._asdict(),
        "away": None if engine.get("connected") else engine,
        "notes": objects(fleet.get("suggestions")),
        "rollout": _rollout(rollout) if rollout else None,
        "no_rollout": no_rollout_in_words(fleet),
        "slots": slots_in_words(fleet),
        "kills": kills_in_words(mapping(fleet.get("kills"))),
        "killed": bool(killed(mapping(fleet.get("kills")))),
        "hosts": [_host(host, rollout) for host in hosts],
        "more_hosts": more,
        "features": features[:_MOST_FEATURES],
        "more_features": max(len(features) - _MOST_FEATURES, 0),
        "actions": list(_actions(fleet, rollout)) if answers.audience.may_change else [],
        "releases": [each.get("name") for each in objects(answers[RELEASES].get("releases"))],
    }


def _rollout(rollout: Record) -> Record:
    return {
        "id": rollout.get("rollout_id"),
        "release": rollout.get("release"),
        "text": rollout_in_words(rollout),
        "tone": _TONES.get(str(rollout.get("state")), ""),
        "now": now_of(rollout),
        "waves": list(waves_in_words(rollout)) if rollout.get("state") not in ENDED else [],
        "started_ts": rollout.get("started_ts"),
        "started_by": rollout.get("started_by"),
        "passed": len(mapping(rollout.get("hosts")).get("passed") or []),
    }


def _host(host: Record, rollout: Record) -> Record:
    return {
        "name": host.get("name"),
        "version": host.get("version"),
        "health": host.get("health_score"),
        "mode": host.get("mode"),
        "life": life(host),
        "troubled": host.get("serves") is False,
        "lost": host.get("fresh") is False,
        "seen_ts": host.get("seen_ts") if host.get("fresh") is False else None,
        "part": part_of(host, rollout),
        "slot": host.get("slot"),
        "why": why(host),
    }


def _features(answers: Answers) -> Iterator[Record]:
    """Yield each feature that this host or another one has, and whether it is killed."""
    fleet = answers[FLEET]
    kills, evidence = mapping(fleet.get("kills")), mapping(fleet.get("evidence"))
    local = [str(each.get("feature")) for each in objects(answers[CANARY].get("features"))]
    off = kills.get("features") or []
    for name in sorted({*local, *evidence, *off}):
        yield {
            "name": name,
            "killed": bool(kills.get("every_feature")) or name in off,
            "calls": arms_in_words(mapping(evidence[name])) if name in evidence else "",
        }


def _actions(fleet: Record, rollout: Record) -> Iterator[str]:
    """Yield the actions on the rollout and on all features; those of a host are beside it."""
    if not mapping(fleet.get("engine")).get("connected"):
        return
    state, direction = str(rollout.get("state")), rollout.get("direction")
    if state not in _BEGUN:
        yield "fleet-rollout"
    if state == "running":
        yield "fleet-pause"
    if state in ("paused", "halted"):
        yield "fleet-resume"
    if state in _BEGUN:
        yield "fleet-abort"
    if rollout and direction != "back" and any(map(_has_begun, objects(fleet.get("hosts")))):
        yield "fleet-rollback"
    yield "fleet-kill-all"
    if killed(mapping(fleet.get("kills"))):
        yield "fleet-reset"


def _has_begun(host: Record) -> bool:
    return bool(host.get("part"))
