"""Named checks of the worker's own parts, cheap enough to be asked for all the time."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from worker.app.identity import IDENTITY
from worker.app.job_routes import SCHEDULER
from worker.app.memory import MEMORY, Memory
from worker.app.scheduler import Scheduler
from worker.kit.aiohttp import DRAIN

_MEMORY_SECONDS = 1.0
# The scheduler turns twice a second; its database may make it wait for some seconds.
_SILENT_WARN, _SILENT_FAIL = 5.0, 30.0

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True)
class Check:
    """One check's finding; `status` is pass, warn, fail or skipped."""

    status: str
    value: float | None = None
    unit: str | None = None
    message: str = ""


@routes.get("/health")
async def get_health(request: web.Request) -> web.Response:
    """Answer 200 unless a check fails, then 503."""
    identity = request.app[IDENTITY]
    checks = {
        "scheduler": _scheduler(request.app.get(SCHEDULER), leading=request.app[DRAIN].leading),
        "memory": await _memory(request.app.get(MEMORY)),
    }
    found = {check.status for check in checks.values()}
    status = "fail" if "fail" in found else "degraded" if "warn" in found else "ok"
    body: dict[str, Any] = {
        "status": status,
        "checks": {name: asdict(check) for name, check in checks.items()},
        "version": identity.version,
        "slot": identity.slot,
        "instance": identity.instance,
        "uptime_seconds": round(time.monotonic() - identity.started, 3),
    }
    return web.json_response(body, status=503 if status == "fail" else 200)


def _scheduler(scheduler: Scheduler | None, *, leading: bool) -> Check:
    if scheduler is None:
        return Check("skipped", message="SCHEDULER_ENABLED is false")
    silence = scheduler.silence()
    if silence == float("inf"):
        return Check("fail", None, "s", "the scheduler has ended")
    value = round(silence, 3)
    if silence > _SILENT_FAIL:
        return Check("fail", value, "s", f"no turn for {silence:.0f} s")
    if silence > _SILENT_WARN:
        return Check("warn", value, "s", f"no turn for {silence:.0f} s")
    waiting = "takes jobs" if leading else "leaves jobs to the active instance"
    return Check("pass", value, "s", f"{waiting}, {scheduler.running()} running")


async def _memory(memory: Memory | None) -> Check:
    if memory is None:
        return Check("skipped", message="MEMORY_ENABLED is false")
    try:
        async with asyncio.timeout(_MEMORY_SECONDS):
            count = await memory.count()
    except TimeoutError:
        return Check("warn", None, "notes", f"no answer within {_MEMORY_SECONDS:g} s")
    except sqlite3.Error as error:
        return Check("fail", None, "notes", f"the database failed: {error}")
    return Check("pass", count, "notes", "readable")
