"""Assembles the bundled worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from atlas_worker.aiohttp import DRAIN
from atlas_worker.app import ask, health, job_routes, memory, routes, streams
from atlas_worker.app.ask import LANGUAGE_MODEL
from atlas_worker.app.errors import error_middleware
from atlas_worker.app.health import INTEGRITY
from atlas_worker.app.identity import IDENTITY, Identity
from atlas_worker.app.integrity import Integrity
from atlas_worker.app.job_routes import SCHEDULER
from atlas_worker.app.jobs import JobStore
from atlas_worker.app.llm import LanguageModel
from atlas_worker.app.memory import MEMORY, Memory
from atlas_worker.app.scheduler import LEASE_SECONDS, Scheduler
from atlas_worker.app.settings import AppSettings
from atlas_worker.instance import Instance


def make_app(instance: Instance, settings: AppSettings) -> web.Application:
    """Return the application; its modules open their files when it starts."""
    app = web.Application(middlewares=[error_middleware], client_max_size=routes.ECHO_BYTES)
    app[IDENTITY] = Identity.of(instance)
    for table in (routes, streams, ask, health, memory, job_routes):
        app.add_routes(table.routes)
    # In this order, because the scheduler's jobs use the memory until the last one ends.
    if settings.memory_enabled:
        app[MEMORY] = Memory(settings.directory)
        app.cleanup_ctx.append(_memory)
    if settings.scheduler_enabled:
        store = JobStore(settings.directory, instance=instance.id, lease_seconds=LEASE_SECONDS)
        app[_STORE] = store
        app[INTEGRITY] = Integrity(store.path)
        app.cleanup_ctx.append(_scheduler)
    if settings.model is not None:
        app[LANGUAGE_MODEL] = LanguageModel(settings.model)
        app.cleanup_ctx.append(_language_model)
    return app


_STORE: web.AppKey[JobStore] = web.AppKey("job_store", JobStore)


async def _memory(app: web.Application) -> AsyncIterator[None]:
    await app[MEMORY].open()
    yield
    await app[MEMORY].close()


async def _scheduler(app: web.Application) -> AsyncIterator[None]:
    drain, store = app[DRAIN], app[_STORE]
    await store.open()
    app[SCHEDULER] = scheduler = Scheduler(store, app.get(MEMORY), may_claim=lambda: drain.leading)
    scheduler.start()
    yield
    await scheduler.stop(drain.remaining)
    await app[INTEGRITY].stop()
    await store.close()


async def _language_model(app: web.Application) -> AsyncIterator[None]:
    await app[LANGUAGE_MODEL].open()
    yield
    await app[LANGUAGE_MODEL].close()
