"""Example values for the fleet's routes: made as the daemon makes them, out of documents."""

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
    Direction,
    Document,
    Evidence,
    FeatureCount,
    Halt,
    Holder,
    HostDeploy,
    HostResult,
    HostState,
    KillSwitch,
    Member,
    Presence,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
)
from atlas_supervisor.fleet.engine import Entry, Snapshot
from atlas_supervisor.fleet.overview import Knowledge, Sighting, overview
from atlas_supervisor.fleet.view import FleetView

_START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
_SEEN = _START + timedelta(seconds=96)
_RUN = "20260105-093000-4f2a11"
_ROLLOUT = Rollout(
    rollout_id=_RUN,
    release="1.4.0",
    max_unavailable=1,
    order=("web1", "web2", "web3"),
    wave_ends=(1, 3),
    started_ts=_START,
    started_by="uid:0",
)
_BACK_RUN = "20260105-094000-90c3d7"
_HOSTS: dict[str, Any] = {
    "web1": {"version": "1.4.0", "waits_for": ""},
    "web2": {"version": "1.3.2", "waits_for": ""},
    "web3": {"version": "1.3.2", "waits_for": "waits: 1 of 1 slots is held by web2"},
}


def _presence(version: str, waits_for: str, kill_epoch: int = 3) -> Presence:
    return Presence(
        version=version,
        daemon_version="1.3.0",
        health_score=100,
        mode="bluegreen",
        last_deploy=HostDeploy(
            deploy_id="20260105-093004-77aa01",
            result="switched",
            release=version,
            version=version,
            ended_ts=_START + timedelta(seconds=7),
        ),
        waits_for=waits_for,
        kill_epoch=kill_epoch,
        sent_ts=_SEEN,
    )


def _result(state: HostState, seconds: int, **more: Any) -> HostResult:
    ended = None if state is HostState.DEPLOYING else _START + timedelta(seconds=seconds + 68)
    return HostResult(
        state=state, started_ts=_START + timedelta(seconds=seconds), ended_ts=ended, **more
    )


def _count(calls: int, errors: int) -> FeatureCount:
    canary = ArmCount(calls=calls, errors=errors)
    return FeatureCount(canary=canary, stable=ArmCount(calls=9 * calls, errors=10 * errors))


_WEB2 = Holder(
    purpose=Purpose.DEPLOY, since_ts=_START + timedelta(seconds=72), generation=17, rollout_id=_RUN
)
_PASSED = _result(HostState.PASSED, 2, deploy_id="20260105-093004-77aa01", version="1.4.0")
_DOCUMENTS: dict[str, Document] = {
    **{f"{HOSTS}{host}": Member(joined_ts=_START - timedelta(days=30)) for host in _HOSTS},
    **{f"{PRESENT}{host}": _presence(**fields) for host, fields in _HOSTS.items()},
    **{
        f"{EVIDENCE}{host}": Evidence(
            boot_epoch="5f0c2d9a", features={"vision": _count(412, 4)}, counted_ts=_SEEN
        )
        for host in _HOSTS
    },
    KILL: KillSwitch(epoch=3, set_ts=_START - timedelta(days=2), set_by="uid:0"),
    ROLLOUT: _ROLLOUT,
    SEMAPHORE: Semaphore(slots=1, generation=17, holders={"web2": _WEB2}),
    f"{RESULTS}{_RUN}/web1": _PASSED,
    f"{RESULTS}{_RUN}/web2": _result(HostState.DEPLOYING, 72),
}
_FREE: dict[str, Document] = {SEMAPHORE: Semaphore(slots=1, generation=18)}


def _view(changes: dict[str, Document], *without: str) -> FleetView:
    documents = {
        key: each for key, each in (_DOCUMENTS | changes).items() if not key.startswith(without)
    }
    entries = (Entry(key, each.written(), 42) for key, each in sorted(documents.items()))
    seen = {
        key.removeprefix(PRESENT): Sighting(each, _SEEN)
        for key, each in documents.items()
        if isinstance(each, Presence)
    }
    return overview(Knowledge("default", "web1", Snapshot(42, tuple(entries)), sightings=seen))


def _rollout(state: RolloutState, **more: Any) -> dict[str, Document]:
    return {ROLLOUT: _ROLLOUT.model_copy(update={"state": state, **more})}


FLEET = _view({})
BEGUN = _view(_FREE, RESULTS)
PAUSED = _view(_rollout(RolloutState.PAUSED))
ABORTED = _view(_FREE | _rollout(RolloutState.ABORTED, ended_ts=_SEEN), f"{RESULTS}{_RUN}/web2")
HALTED = _view(
    {
        **_FREE,
        **_rollout(
            RolloutState.HALTED,
            halt=Halt(host="web2", reason="its slot was broken by uid:0", at_ts=_SEEN),
        ),
        f"{PRESENT}web3": _presence("1.3.2", "waits: the rollout is halted by web2"),
        f"{RESULTS}{_RUN}/web2": _result(
            HostState.FAILED, 72, reason="its slot was broken by uid:0"
        ),
    },
    f"{PRESENT}web2",
)
BACK = _view(
    {
        **_FREE,
        ROLLOUT: _ROLLOUT.model_copy(
            update={
                "rollout_id": _BACK_RUN,
                "direction": Direction.BACK,
                "order": ("web2", "web1"),
                "wave_ends": (2,),
                "undoes": _RUN,
            }
        ),
    },
)
KILLED = _view(
    {
        KILL: KillSwitch(epoch=4, features=("vision",), set_ts=_SEEN, set_by="uid:0"),
        f"{PRESENT}web1": _presence("1.4.0", "", kill_epoch=4),
    }
)
