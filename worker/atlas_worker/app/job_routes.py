"""The jobs over HTTP. A smoke test's job runs inside its own request and leaves nothing behind."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from aiohttp import web

from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.app.kinds import KINDS, Run
from atlas_worker.app.memory import MEMORY, Memory
from atlas_worker.app.requests import is_number, is_smoke, query_count, read_object
from atlas_worker.app.scheduler import Scheduler

SCHEDULER: web.AppKey[Scheduler] = web.AppKey("scheduler", Scheduler)
routes = web.RouteTableDef()

# 9999-12-31: the last day of a datetime.
_LAST_MOMENT = 253402214400.0


@routes.post("/jobs")
async def post_job(request: web.Request) -> web.Response:
    """Queue a job; 201 with the job."""
    scheduler = _scheduler(request)
    memory: Memory | None = request.app.get(MEMORY)
    body = await read_object(request, fields=frozenset({"kind", "payload", "run_at"}))
    kind, payload = _kind_of(body, memory), _payload_of(body)
    KINDS[kind].check(payload)
    run_at = _moment(body.get("run_at"))
    smoke = is_smoke(request)
    job = await scheduler.store.add(kind, payload, run_at=run_at, keep=not smoke)
    if smoke:
        result = await KINDS[kind].run(Run(job["id"], payload, memory, keep=False))
        job |= {"state": "done", "result": result}
    else:
        scheduler.wake()
    location = f"jobs/{job['id']}"  # relative: holds behind a path prefix
    return web.json_response(job, status=201, headers={"Location": location})


@routes.get("/jobs")
async def get_jobs(request: web.Request) -> web.Response:
    """Return the newest jobs."""
    scheduler = _scheduler(request)
    limit = query_count(request, "limit", default=50, high=500)
    return web.json_response({"jobs": await scheduler.store.newest(limit)})


@routes.get("/jobs/{id}")
async def get_job(request: web.Request) -> web.Response:
    """Return one job."""
    job = await _scheduler(request).store.get(request.match_info["id"])
    if job is None:
        raise RequestError(
            "unknown_job",
            f"there is no job {request.match_info['id'][:80]}",
            hint="GET /jobs lists them",
            status=404,
        )
    return web.json_response(job)


def _scheduler(request: web.Request) -> Scheduler:
    scheduler = request.app.get(SCHEDULER)
    if scheduler is None:
        raise RequestError(
            "module_off", "the scheduler is disabled", hint="set SCHEDULER_ENABLED=true", status=404
        )
    return scheduler


def _kind_of(body: dict[str, Any], memory: Memory | None) -> str:
    kind = body.get("kind")
    known = sorted(name for name in KINDS if memory is not None or not KINDS[name].needs_memory)
    if not isinstance(kind, str) or kind not in known:
        raise bad_field("kind", "is missing or unknown", f"one of {', '.join(known)}")
    return kind


def _payload_of(body: dict[str, Any]) -> dict[str, Any]:
    payload = body.get("payload")
    if payload is None:
        return {}
    if not isinstance(payload, dict):
        raise bad_field("payload", "is not a JSON object", "a JSON object")
    return payload


def _moment(value: Any) -> float | None:
    """Return Unix seconds of an ISO 8601 text with its offset, or of a number."""
    if value is None:
        return None
    seconds = math.nan
    if is_number(value):
        seconds = value
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            seconds = moment.timestamp()
    if not 0 <= seconds <= _LAST_MOMENT:
        raise bad_field(
            "run_at",
            "is not a time",
            "ISO 8601 with an offset (2030-01-01T00:00:00Z) or Unix seconds",
        )
    return float(seconds)
