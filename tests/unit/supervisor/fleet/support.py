"""Documents of a fleet, as its hosts write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from atlas_supervisor.fleet.documents import (
    EVIDENCE,
    HOSTS,
    KILL,
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    ArmCount,
    Document,
    Evidence,
    FeatureCount,
    Holder,
    HostResult,
    HostState,
    KillSwitch,
    Member,
    Presence,
    Purpose,
    Rollout,
    Semaphore,
)
from atlas_supervisor.fleet.engine import Entry, Snapshot

START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
RUN = "20260105-093000-4f2a11"


def snapshot(documents: dict[str, Document | bytes]) -> Snapshot:
    """Return the documents of a store, by key, as of one revision."""
    entries = (
        Entry(key, value if isinstance(value, bytes) else value.written(), revision)
        for revision, (key, value) in enumerate(sorted(documents.items()), 1)
    )
    return Snapshot(len(documents), tuple(entries))


def fleet_of(*hosts: str, away: tuple[str, ...] = (), **presence: Any) -> dict[str, Document]:
    """Return the documents of hosts that announce themselves, but for those that are away."""
    members: dict[str, Document] = {HOSTS + host: Member(joined_ts=START) for host in hosts}
    present: dict[str, Document] = {
        PRESENT + host: present_host(**presence) for host in hosts if host not in away
    }
    return members | present


def present_host(**fields: Any) -> Presence:
    """Return the presence of a healthy host."""
    usual = {"version": "1.3.2", "daemon_version": "2.0.0", "health_score": 100}
    return Presence(**{**usual, "mode": "bluegreen", "sent_ts": START, **fields})


def rollout_of(*order: str, wave_ends: tuple[int, ...] = (), **fields: Any) -> dict[str, Document]:
    """Return the document of a rollout of 1.4.0."""
    usual = {"rollout_id": RUN, "release": "1.4.0", "max_unavailable": 1, "started_by": "uid:0"}
    ends = wave_ends or (len(order),)
    return {
        ROLLOUT: Rollout(**{**usual, "started_ts": START, **fields}, order=order, wave_ends=ends)
    }


def results(**states: HostState) -> dict[str, Document]:
    """Return how far hosts are with that rollout."""
    return {f"{RESULTS}{RUN}/{host}": part(state) for host, state in states.items()}


def part(state: HostState) -> HostResult:
    """Return a host's part in that rollout."""
    ended = None if state is HostState.DEPLOYING else START + timedelta(seconds=70)
    return HostResult(state=state, started_ts=START, ended_ts=ended)


def slots_of(slots: int = 1, **generations: int) -> dict[str, Document]:
    """Return the semaphore, with the generations at which hosts took theirs for that rollout."""
    holders = {
        host: Holder(purpose=Purpose.DEPLOY, since_ts=START, generation=generation, rollout_id=RUN)
        for host, generation in generations.items()
    }
    generation = max(generations.values())
    return {SEMAPHORE: Semaphore(slots=slots, generation=generation, holders=holders)}


def kill(epoch: int, *features: str, every: bool = False) -> KillSwitch:
    """Return a kill switch."""
    return KillSwitch(
        epoch=epoch, every_feature=every, features=features, set_ts=START, set_by="uid:0"
    )


def killed(epoch: int, *features: str) -> dict[str, Document]:
    """Return the document of a kill switch."""
    return {KILL: kill(epoch, *features)}


def calls(**counts: FeatureCount) -> dict[str, Document]:
    """Return the counts of hosts for the feature `vision`."""
    return {
        EVIDENCE + host: Evidence(boot_epoch="b1", features={"vision": count}, counted_ts=START)
        for host, count in counts.items()
    }


def count(canary: tuple[int, int], stable: tuple[int, int] = (1000, 10)) -> FeatureCount:
    """Return calls and errors of both arms."""
    return FeatureCount(
        canary=ArmCount(calls=canary[0], errors=canary[1]),
        stable=ArmCount(calls=stable[0], errors=stable[1]),
    )
