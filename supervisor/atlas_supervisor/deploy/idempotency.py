"""Requests under an `Idempotency-Key`: a repeated request has no second effect.

A key is written together with the deploy that it begins, or before the event that it offers to one.
So a repetition is known as soon as there is an effect, and over a restart of the daemon. A request
that is refused leaves no key: it may be made again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.machine import Event
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store.keys import KeyStore
from atlas_supervisor.store.statements import StoreError

log = structlog.get_logger(__name__)

_ASKED: dict[Event, str] = {
    Event.SWITCH_REQUESTED: Result.SWITCHED,
    Event.ABORT_REQUESTED: Result.ABORTED,
    Event.ROLLBACK_REQUESTED: Result.ROLLED_BACK,
}


class IdempotentRequests:
    """Carries requests out under their keys. To be used while no other request can begin."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def steer(
        self, run: DeployRun, event: Event, cause: str, key: IdempotencyKey | None
    ) -> bool:
        """Offer the event to the run, under the key; return whether it was accepted."""
        if key is None:
            return run.offer(event, cause)
        if not run.accepts(event):
            return False
        await self._add(key, run, _ASKED[event])
        if run.offer(event, cause):
            return True
        await self._forget(key)
        return False

    async def ramp(
        self, run: DeployRun, event: Event, cause: str, key: IdempotencyKey | None
    ) -> bool:
        """Let the event happen to a ramp, under the key; return whether it did, once published."""
        if key is not None:
            await self._add(key, run, event.value)
        taken = await run.handled(event, cause)
        if not taken and key is not None:
            await self._forget(key)
        return taken

    async def before(self, key: IdempotencyKey | None) -> str | None:
        """Return the deploy of the request that was made before under this key, if any."""
        row = await self._keys.find(key) if key else None
        return row.deploy_id if row else None

    async def _add(self, key: IdempotencyKey, run: DeployRun, asked: str) -> None:
        """Write a key before its effect. What comes of it shows whether that was missed."""
        try:
            await self._keys.add(key, deploy_id=run.record.deploy_id, asked=asked)
        except StoreError as error:
            what = "the request could not be saved, so it had no effect"
            raise errors.not_durable(what, error) from error

    @asynccontextmanager
    async def forgotten_if_refused(self, key: IdempotencyKey | None) -> AsyncIterator[None]:
        """Forget the key if the block raises RefusedError."""
        try:
            yield
        except RefusedError:
            if key is not None:
                await self._forget(key)
            raise

    async def mode_set(self, key: IdempotencyKey | None) -> None:
        """Remember the key of a mode that was set, so that it is not set again."""
        if key is None:
            return
        try:
            await self._keys.add(key)
        except StoreError as error:
            log.error("key_not_saved", why=str(error))

    async def _forget(self, key: IdempotencyKey) -> None:
        try:
            await self._keys.forget(key)
        except StoreError as error:
            log.error("key_not_removed", why=str(error))
