"""What an operator of a fleet should know, and do, in words; the most urgent first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atlas_supervisor.fleet.documents import KILL, Direction, RolloutState
from atlas_supervisor.fleet.situation import FAILURES
from atlas_supervisor.fleet.view import FleetView, KillsView, RolloutView
from atlas_supervisor.model.status import Suggestion

_MOST_NAMES = 5


def suggestions(view: FleetView) -> Iterator[Suggestion]:
    """Yield the conditions of a fleet that need an operator, as `view` shows them."""
    if not view.engine.connected:
        yield Suggestion(
            code="engine_away",
            message=_sentence(f"The fleet's etcd can't be used: {view.engine.error}"),
            action="Each machine goes on by itself, and no rollout goes on. Look at etcd "
            "(`atlasctl doctor`); to switch a feature off meanwhile, `atlasctl canary set FEATURE "
            "0` on each machine.",
        )
    if view.has_double:
        yield Suggestion(
            code="host_not_unique",
            message=f"Another supervisor announces itself as {view.host}; this one takes no part.",
            action="Give each machine a FLEET_HOST of its own, and reload it (`atlasctl reload`).",
        )
    if view.unreadable:
        yield Suggestion(
            code="document_unreadable",
            message=_sentence(
                f"{len(view.unreadable)} of the fleet's documents can't be read: "
                f"{view.unreadable[0]}"
            ),
            action="Nothing is decided by them. docs/fleet.md names the documents: put back what "
            "another program has changed. `atlasctl fleet kill` writes `kill` anew.",
        )
    is_read = not any(each.startswith(f"{KILL} ") for each in view.unreadable)
    yield from _of_kills(view.kills, is_known=view.engine.connected and is_read)
    if view.rollout:
        yield from _of_rollout(view.rollout)
    yield from _of_hosts(view)
    yield from _of_evidence(view)


def killed(kills: KillsView) -> str:
    """Return the features that are off; empty if none is."""
    return "every feature" if kills.every_feature else ", ".join(kills.features)


def _of_kills(kills: KillsView, *, is_known: bool) -> Iterator[Suggestion]:
    features = killed(kills)
    if kills.behind and features:
        yield Suggestion(
            code="kill_not_everywhere",
            message=f"{features} may still be on at {_some(kills.behind)}: no acknowledgement "
            f"({kills.acknowledged} of {kills.hosts} hosts have the kill).",
            action="A host applies it as soon as it reaches etcd. Until then, on that host: "
            f"`atlasctl canary set {'FEATURE' if kills.every_feature else kills.features[0]} 0`.",
        )
    if is_known and kills.epoch > (kills.engine_epoch or 0):
        present = f"epoch {kills.engine_epoch}" if kills.engine_epoch else "no epoch"
        yield Suggestion(
            code="kill_lost_in_engine",
            message=f"etcd has {present} of the kill switch, and this host {kills.epoch}: etcd has "
            "lost data.",
            action="Nothing was switched on by that. Repeat the kill with `atlasctl fleet kill`, "
            "or end it with `atlasctl fleet reset`.",
        )
    if kills.former:
        yield Suggestion(
            code="kill_of_former_fleet",
            message=f"This host has {_some(kills.former)} off by a kill of the fleet that it was "
            "in before.",
            action="Once the cause is mended, `atlasctl fleet reset` ends it.",
        )
    if kills.unknown:
        yield Suggestion(
            code="killed_unknown_feature",
            message=f"{_some(kills.unknown)}: no feature of this host, and no host has counted "
            "calls of it.",
            action="Look at the name; `atlasctl canary status` lists this host's features.",
        )
    if features:
        yield Suggestion(
            code="killed",
            message=f"The kill switch has {features} off in the whole fleet, by {kills.set_by}.",
            action="Once the cause is mended, `atlasctl fleet reset` ends it.",
        )


def _of_rollout(rollout: RolloutView) -> Iterator[Suggestion]:
    if rollout.state is RolloutState.HALTED and rollout.halt:
        yield Suggestion(
            code="rollout_halted",
            message=_sentence(
                f"The rollout of {rollout.release} is halted: {rollout.halt.host} failed: "
                f"{rollout.halt.reason}"
            ),
            action="`atlasctl fleet resume` tries that host again, `atlasctl fleet rollback` takes "
            "the release back where it is, `atlasctl fleet abort` leaves all as it is.",
        )
    if rollout.state is RolloutState.PAUSED:
        yield Suggestion(
            code="rollout_paused",
            message=f"The rollout of {rollout.release} is paused.",
            action="`atlasctl fleet resume` goes on with it, `atlasctl fleet abort` ends it.",
        )


def _of_hosts(view: FleetView) -> Iterator[Suggestion]:
    lost = [host for host in view.hosts if host.fresh is False]
    for host in lost:
        if slot := host.slot:
            yield Suggestion(
                code="slot_of_lost_host",
                message=f"{host.name} holds a slot and shows no sign of life, so no other host "
                "may take it.",
                action=f"Start its supervisor. If the machine is lost: `atlasctl fleet break "
                f"{host.name} --generation {slot.generation}`.",
            )
    if names := [host.name for host in lost if not host.slot]:
        yield Suggestion(
            code="host_lost",
            message=f"No sign of life of {_some(names)}; while that is so, no host takes a slot.",
            action="Start its supervisor. If the machine is gone for good: `atlasctl fleet forget "
            f"{names[0]}`.",
        )
    if failed := list(_that_stop_others(view)):
        yield Suggestion(
            code="host_failed",
            message=f"The last deploy of {_some(failed)} failed; while that is so, no host takes "
            "a slot.",
            action="Deploy a release there that passes (`atlasctl mode bluegreen`, then `atlasctl "
            "deploy`, on that machine), or have it tried first: `atlasctl fleet pause`, then "
            "`atlasctl fleet resume`.",
        )


def _that_stop_others(view: FleetView) -> Iterator[str]:
    """Yield the hosts whose failed last deploy keeps the rollout from going on."""
    rollout = view.rollout
    if rollout and rollout.state is RolloutState.RUNNING and rollout.direction is Direction.FORWARD:
        for host in view.hosts:
            failed = host.last_deploy is not None and host.last_deploy.result in FAILURES
            if failed and host.name not in rollout.excused:
                yield host.name


def _of_evidence(view: FleetView) -> Iterator[Suggestion]:
    for feature, evidence in view.evidence.items():
        for each in evidence.outliers:
            yield Suggestion(
                code="outlier",
                message=f"{each.host} fails {each.errors / each.calls:.1%} of {feature}'s "
                f"{each.arm} calls, the other hosts {each.others_error_rate:.1%}.",
                action=f"Look at that machine: `atlasctl canary report {feature}` there.",
            )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _some(names: Sequence[str]) -> str:
    """Return the names, but not hundreds of them."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
