"""Opens the fleet's engine for a daemon; what it can't be opened with refuses the start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.etcd import EtcdEngine, engine_of


@asynccontextmanager
async def opened_engine(settings: Settings) -> AsyncIterator[EtcdEngine | None]:
    """Yield the engine, which connects when it is asked; None if there is no fleet.

    Raises StartRefusedError if a certificate or the password can't be used, or the password may
    be known to other users.
    """
    async with AsyncExitStack() as stack:
        engine = None
        if settings.fleet_etcd_endpoints:
            try:
                engine = await stack.enter_async_context(engine_of(settings))
            except EngineError as error:
                raise StartRefusedError(str(error)) from error
        yield engine


def check_access(settings: Settings) -> None:
    """Raise StartRefusedError if the engine can't be opened. It connects to nothing."""
    if settings.fleet_etcd_endpoints:
        try:
            engine_of(settings)
        except EngineError as error:
            raise StartRefusedError(str(error)) from error
