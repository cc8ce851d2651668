"""A state and a deploy to write down, and what is in the database then."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_supervisor.model.deploy import DeployEvent, DeployRecord, Mode, Step, StepName
from atlas_supervisor.model.state import DeployState

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def a_state(**changes: Any) -> DeployState:
    values: dict[str, Any] = {
        "mode": Mode.BLUEGREEN,
        "active_port": 8791,
        "staging_port": 8792,
        "generation": 7,
        "last_switch_ts": WHEN,
    }
    return DeployState(**{**values, **changes})


def a_deploy(deploy_id: str = "d1", **changes: Any) -> DeployRecord:
    values: dict[str, Any] = {
        "deploy_id": deploy_id,
        "result": None,
        "dry_run": False,
        "release": "v2",
        "version": None,
        "active_port": 8791,
        "staging_port": 8792,
        "steps": [],
        "reason": None,
        "phase": "preflight",
        "started_ts": WHEN,
        "ended_ts": None,
    }
    return DeployRecord(**{**values, **changes})


def a_step(name: StepName = StepName.PREFLIGHT, **detail: Any) -> Step:
    return Step(name=name, ok=True, duration_ms=1.5, detail={"message": "fine", **detail})


def moved(
    record: DeployRecord, *, source: str, event: str, cause: str = "", **more: Any
) -> tuple[DeployRecord, DeployEvent]:
    """Return a deploy after a transition, and the transition."""
    happened = DeployEvent.of(record, ts=WHEN, source=source, event=event, cause=cause, **more)
    return record, happened


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Ask from outside, on a connection of our own."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()
