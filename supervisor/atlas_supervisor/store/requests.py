"""Counts of users' requests, by instance and by minute: all that a minute brought, in one go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from atlas_supervisor.model.deploy import Cause
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import (
    RequestCounts,
    RequestMinute,
    RequestTotals,
    TrafficSwitch,
)
from atlas_supervisor.store.statements import Statement, Statements

RETENTION_SECONDS = 26 * 3600
"""The last hour, and the same hour of the day before, can be asked for."""


class InstanceRow(NamedTuple):
    """What an instance has counted since its first request."""

    instance: str
    slot: str
    version: str
    totals: RequestTotals


@dataclass
class RequestCommit:
    """What is to be written together: nothing of it may be there without the rest."""

    minute: int
    instances: Iterable[InstanceRow] = ()
    files: Iterable[tuple[str, str, bytes]] = ()
    """Each file with its instance and the cells that are contained in its totals."""
    gone: Iterable[str] = ()
    """Files that are read to their end and no more."""
    minutes: Iterable[RequestMinute] = ()


class RequestStore:
    """What is known of users' requests, for `RETENTION_SECONDS`."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def commit(self, commit: RequestCommit) -> None:
        """Write it all, or nothing; forget what is too old."""
        before = {"before": commit.minute - RETENTION_SECONDS}
        statements: list[Statement] = [
            *(
                (
                    "put_request_instance",
                    {
                        "instance": row.instance,
                        "slot": row.slot,
                        "version": row.version,
                        "minute": commit.minute,
                        **_columns(row.totals),
                    },
                )
                for row in commit.instances
            ),
            *(
                ("put_request_file", {"file": file, "instance": instance, "cells": cells})
                for file, instance, cells in commit.files
            ),
            *(("forget_request_file", {"file": file}) for file in commit.gone),
            *(
                (
                    "add_request_minute",
                    {
                        "minute": row.minute,
                        "slot": row.slot,
                        "version": row.version,
                        **_columns(row.totals),
                    },
                )
                for row in commit.minutes
            ),
            ("trim_request_minutes", before),
            ("trim_request_instances", before),
        ]
        await self._statements.write(*statements)

    async def instances(self) -> list[InstanceRow]:
        """Return the totals of all instances."""
        rows = await self._statements.read("request_instances")
        return [
            InstanceRow(row["instance"], row["slot"], row["version"], _totals(row)) for row in rows
        ]

    async def files(self) -> dict[str, bytes]:
        """Return the cells of all files, by name."""
        return {row["file"]: row["cells"] for row in await self._statements.read("request_files")}

    async def minutes(self, version: str | None, since: int, until: int) -> list[RequestMinute]:
        """Return the minutes of a version, or of all, that begin in `[since, until)`, Unix time."""
        rows = await self._statements.read(
            "request_minutes", version=version, since=since, until=until
        )
        return [
            RequestMinute(row["minute"], row["slot"], row["version"], _totals(row)) for row in rows
        ]

    async def switches(self, since: datetime) -> list[TrafficSwitch]:
        """Return the switches since then, oldest first."""
        return [
            TrafficSwitch(
                ts=datetime.fromisoformat(row["ts"]),
                deploy_id=row["deploy_id"],
                version=row["version"],
                taken_back=row["phase"] == "revert",
                recycled=row["deploy_cause"] == Cause.RECYCLED,
            )
            for row in await self._statements.read("flips", since=since.isoformat())
        ]

    async def save_evidence(self, deploy_id: str, saved: dict[str, Any]) -> None:
        """Save what the next daemon goes on with; in place of what was saved before."""
        row = {"deploy_id": deploy_id, "saved": json.dumps(saved)}
        await self._statements.write(("put_deploy_evidence", row))

    async def evidence(self, deploy_id: str) -> dict[str, Any] | None:
        """Return the evidence that was saved last; None if there is none."""
        rows = await self._statements.read("deploy_evidence", deploy_id=deploy_id)
        return json.loads(rows[0]["saved"]) if rows else None


def _columns(totals: RequestTotals) -> dict[str, str | bytes]:
    return {
        "counts": json.dumps(astuple(totals.counts)),
        "latency": totals.latency.to_bytes(),
    }


def _totals(row: sqlite3.Row) -> RequestTotals:
    counts = RequestCounts.from_list(json.loads(row["counts"]))
    return RequestTotals(counts, Histogram.from_bytes(row["latency"]))
