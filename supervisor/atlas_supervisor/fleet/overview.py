"""Makes the view of a fleet out of its documents, by pure functions.

Nothing here asks the engine. While that is away, the view is of what this machine knew last: it
says so (`engine`), and claims of no host that it is alive (`fresh` is null).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from atlas_supervisor.fleet.documents import (
    EVIDENCE,
    HOSTS,
    KILL,
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    Document,
    Evidence,
    FeatureCount,
    Holder,
    HostResult,
    HostState,
    KillSwitch,
    Member,
    Presence,
    Rollout,
    RolloutState,
    Semaphore,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import NOTHING, Outage, Snapshot
from atlas_supervisor.fleet.outliers import outliers, total
from atlas_supervisor.fleet.suggestions import suggestions
from atlas_supervisor.fleet.view import (
    EngineView,
    FeatureEvidence,
    FleetView,
    HolderView,
    HostPart,
    HostsByState,
    HostView,
    KillsView,
    RolloutView,
    SemaphoreView,
    SlotHeld,
    WaveView,
)
from atlas_supervisor.health.score import status_of
from atlas_supervisor.model.canary import Kills
from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.health import HealthStatus

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Sighting:
    """What a host announced last, and when this machine saw it, by its own clock."""

    presence: Presence
    seen_ts: datetime


@dataclass(frozen=True)
class Knowledge:
    """What a machine knows of its fleet."""

    fleet: str
    host: str
    snapshot: Snapshot = NOTHING
    """Every document; none before the engine's first answer."""
    outage: Outage | None = None
    """Since when the engine is away, and why."""
    own: Presence | None = None
    """While it is away, what this machine would announce; None if its name is another one's."""
    sightings: Mapping[str, Sighting] = field(default_factory=dict)
    """Of the hosts that have announced themselves since this daemon's start."""
    has_double: bool = False
    """Whether another supervisor announces itself under this host's name."""
    features: Collection[str] = ()
    """The canary's features on this machine."""
    former_kills: Kills | None = None
    """Those of a fleet that this machine was in before, which hold until this one sets its own."""
    applied: KillSwitch | None = None
    """The kill switch that is applied on this machine; None if none ever was."""


def overview(known: Knowledge) -> FleetView:
    """Return the fleet as a machine knows it."""
    read = _Documents(known.snapshot)
    # One that announces itself, or would do so, is about to join.
    names = sorted({*read.hosts, *read.present, *([known.host] if known.own else [])})
    hosts = [_host(name, known, read, known.sightings.get(name)) for name in names]
    view = FleetView(
        fleet=known.fleet,
        host=known.host,
        engine=_engine(known.outage),
        hosts=hosts,
        rollout=_rollout(read, hosts) if read.rollout else None,
        semaphore=_semaphore(read.semaphore),
        kills=_kills(known, read, hosts),
        evidence=_evidence(read.evidence),
        has_double=known.has_double,
        unreadable=read.unreadable,
        suggestions=[],
    )
    return view.model_copy(update={"suggestions": list(suggestions(view))})


class _Documents:
    """The documents of a snapshot; those that can't be read are left out and named."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.unreadable: list[str] = []
        self.kill = self._one(KILL, KillSwitch)
        self.rollout = self._one(ROLLOUT, Rollout)
        self.semaphore = self._one(SEMAPHORE, Semaphore) or Semaphore()
        self._all(HOSTS, Member)
        self.hosts = [
            entry.key.removeprefix(HOSTS)
            for entry in snapshot.entries
            if entry.key.startswith(HOSTS)
        ]
        """Also those whose document can't be read: a rollout waits for them."""
        self.present = self._all(PRESENT, Presence)
        self.evidence = self._all(EVIDENCE, Evidence)
        self.results: dict[str, HostResult] = {}
        if self.rollout:
            self.results = self._all(f"{RESULTS}{self.rollout.rollout_id}/", HostResult)

    def _one(self, key: str, kind: type[D]) -> D | None:
        value = self._snapshot.value(key)
        return None if value is None else self._read(key, value, kind)

    def _all(self, prefix: str, kind: type[D]) -> dict[str, D]:
        found = {
            entry.key.removeprefix(prefix): self._read(entry.key, entry.value, kind)
            for entry in self._snapshot.entries
            if entry.key.startswith(prefix)
        }
        return {name: each for name, each in found.items() if each is not None}

    def _read(self, key: str, value: bytes, kind: type[D]) -> D | None:
        try:
            return kind.read(key, value)
        except UnreadableDocumentError as error:
            self.unreadable.append(str(error))
            return None


def _engine(outage: Outage | None) -> EngineView:
    since, error = outage or (None, None)
    return EngineView(connected=outage is None, since_ts=since, error=error)


def _host(name: str, known: Knowledge, read: _Documents, seen: Sighting | None) -> HostView:
    own = known.own if name == known.host else None
    if own is not None:
        seen = Sighting(own, own.sent_ts)
    presence = own or read.present.get(name) or (seen.presence if seen else None)
    holder, result = read.semaphore.holders.get(name), read.results.get(name)
    fresh = name in read.present if known.outage is None else None
    return HostView(
        name=name,
        version=presence.version if presence else None,
        health_score=presence.health_score if presence else None,
        mode=presence.mode if presence else None,
        last_deploy=presence.last_deploy if presence else None,
        fresh=fresh,
        seen_ts=seen.seen_ts if seen else None,
        serves=is_served(presence.version, presence.health_score) if presence and fresh else fresh,
        daemon_version=presence.daemon_version if presence else None,
        slot=SlotHeld(**_held(holder)) if holder else None,
        waits_for=presence.waits_for if presence and fresh else "",
        part=HostPart(**result.model_dump()) if result else None,
        kill_epoch=presence.kill_epoch if presence else None,
    )


def is_served(version: str | None, health_score: int | None) -> bool:
    """Return whether a host that is alive has a version that serves."""
    healthy = health_score is not None and status_of(health_score) is not HealthStatus.UNHEALTHY
    return healthy and version is not None


def _held(holder: Holder) -> dict[str, Any]:
    return holder.model_dump(include=set(SlotHeld.model_fields))


def _semaphore(semaphore: Semaphore) -> SemaphoreView:
    holders = [
        HolderView(host=name, **_held(holder)) for name, holder in sorted(semaphore.holders.items())
    ]
    return SemaphoreView(slots=semaphore.slots, generation=semaphore.generation, holders=holders)


# The rollout.


def _rollout(read: _Documents, hosts: Sequence[HostView]) -> RolloutView:
    rollout = read.rollout
    if rollout is None:
        raise ValueError("no rollout was read")
    starts = (0, *rollout.wave_ends)
    waves = [
        rollout.order[start:end] for start, end in zip(starts, rollout.wave_ends, strict=False)
    ]
    by_state = _by_state(rollout.order, read.results)
    return RolloutView(
        **rollout.model_dump(exclude={"order", "wave_ends"}),
        now=_now(rollout, by_state, {host.name: host for host in hosts}),
        waves=[_wave(wave, read.results) for wave in waves],
        hosts=by_state,
    )


def _by_state(order: Iterable[str], results: Mapping[str, HostResult]) -> HostsByState:
    states = [(host, results[host].state if host in results else None) for host in order]

    def those(wanted: HostState | None) -> list[str]:
        return [host for host, state in states if state is wanted]

    return HostsByState(
        waiting=those(None),
        deploying=those(HostState.DEPLOYING),
        passed=those(HostState.PASSED),
        failed=those(HostState.FAILED),
    )


def _wave(order: Sequence[str], results: Mapping[str, HostResult]) -> WaveView:
    counts = {name: len(hosts) for name, hosts in _by_state(order, results)}
    return WaveView(hosts=list(order), **counts)


def _now(rollout: Rollout, by_state: HostsByState, hosts: Mapping[str, HostView]) -> str:
    """Return the rollout's doings in words, or why no host begins."""
    if rollout.state in {RolloutState.ABORTED, RolloutState.PASSED}:
        return ""
    doing = [_doing(name, hosts.get(name)) for name in by_state.deploying]
    if rollout.state is RolloutState.RUNNING:
        return "; ".join(doing) or _next(by_state.waiting, hosts)
    why = "it is paused"
    if halt := rollout.halt:
        why = f"{halt.host} failed: {halt.reason}"
    return "; ".join([*doing, f"no host begins: {why}"])


def _doing(name: str, host: HostView | None) -> str:
    if host is not None and host.fresh is False:
        return f"{name} holds its slot and shows no sign of life"
    if host and host.last_deploy and host.last_deploy.result == Result.AWAITING_SWITCH:
        return f"{name} has passed its gates and waits for its switch: atlasctl switch on it"
    return f"{name} deploys"


def _next(waiting: Sequence[str], hosts: Mapping[str, HostView]) -> str:
    """Return why the next host has not begun."""
    for name in waiting:
        if name in hosts and (why := hosts[name].waits_for):
            return f"{name} {why}"
    return f"{waiting[0]} is next" if waiting else ""


# Kills and evidence.


def _kills(known: Knowledge, read: _Documents, hosts: Sequence[HostView]) -> KillsView:
    """Return the kill switch of the highest epoch that is known."""
    engine = read.kill
    found = [each for each in (engine, known.applied) if each]
    kill = max(found, key=lambda each: each.epoch, default=None)
    counted = (name for each in read.evidence.values() for name in each.features)
    features = {*known.features, *counted}
    epoch, own = kill.epoch if kill else 0, known.applied.epoch if known.applied else 0
    behind = [
        host.name
        for host in hosts
        if max(host.kill_epoch or 0, own if host.name == known.host else 0) < epoch
    ]
    return KillsView(
        epoch=epoch,
        every_feature=kill.every_feature if kill else False,
        features=list(kill.features) if kill else [],
        unknown=[each for each in (kill.features if kill else ()) if each not in features],
        set_ts=kill.set_ts if kill else None,
        set_by=kill.set_by if kill else None,
        former=_former(known),
        acknowledged=len(hosts) - len(behind),
        hosts=len(hosts),
        behind=behind,
        engine_epoch=engine.epoch if engine else None,
    )


def _former(known: Knowledge) -> list[str]:
    """Return the features that a kill of another fleet has off on this machine."""
    kills = known.former_kills
    if kills is None or known.applied is not None:
        return []
    return sorted(known.features if kills.every_feature else kills.features)


def _evidence(found: Mapping[str, Evidence]) -> dict[str, FeatureEvidence]:
    """Return the sum of all hosts' counts, by feature."""
    counts: dict[str, dict[str, FeatureCount]] = {}
    for host, evidence in found.items():
        for feature, count in evidence.features.items():
            counts.setdefault(feature, {})[host] = count
    return {
        feature: FeatureEvidence(
            canary=total(by_host, "canary"),
            stable=total(by_host, "stable"),
            hosts=len(by_host),
            outliers=outliers(by_host),
        )
        for feature, by_host in sorted(counts.items())
    }
