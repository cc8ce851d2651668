"""`GET /health`: the checks that only the worker can do, cheap enough for frequent polls."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from aiohttp import web

from atlas_worker.aiohttp import DRAIN
from atlas_worker.app import checks
from atlas_worker.app.ask import LANGUAGE_MODEL
from atlas_worker.app.identity import IDENTITY
from atlas_worker.app.integrity import Integrity
from atlas_worker.app.job_routes import SCHEDULER
from atlas_worker.app.memory import MEMORY

INTEGRITY: web.AppKey[Integrity] = web.AppKey("integrity", Integrity)

_MAY_BE_CURED = ("scheduler", "memory")
"""Checks whose failure is answered with 503, because a restart may help.

It does not help a corrupt file or a model that is down, and the instance would serve no requests
meanwhile.
"""

routes = web.RouteTableDef()


@routes.get("/health")
async def get_health(request: web.Request) -> web.Response:
    """Answer with all checks: 200, or 503 if one fails that a restart may fix."""
    app, identity = request.app, request.app[IDENTITY]
    memory, integrity = await asyncio.gather(
        checks.memory(app.get(MEMORY)), checks.db_integrity(app.get(INTEGRITY))
    )
    found = {
        "llm_latency": checks.llm_latency(app.get(LANGUAGE_MODEL)),
        "scheduler": checks.scheduler(app.get(SCHEDULER), leading=app[DRAIN].leading),
        "memory": memory,
        "db_integrity": integrity,
    }
    words = {check.status for check in found.values()}
    body: dict[str, Any] = {
        "status": "fail" if "fail" in words else "degraded" if "warn" in words else "ok",
        "checks": {name: asdict(check) for name, check in found.items()},
        "version": identity.version,
        "slot": identity.slot,
        "instance": identity.instance,
        "uptime_seconds": round(time.monotonic() - identity.started, 3),
    }
    sick = any(found[name].status == "fail" for name in _MAY_BE_CURED)
    return web.json_response(body, status=503 if sick else 200)
