"""Idempotency keys: what was asked for under one, and which deploy came of it."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from atlas_supervisor.errors import IDEMPOTENCY_KEY_REUSED, RefusedError
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.clock import now

KEYS_KEPT = timedelta(hours=24)
"""At least so long; the key of a deploy is kept as long as the deploy's record."""

NEWEST_KEPT = 1000
"""As many are kept however old they look by the wall clock."""


class KeyRow(NamedTuple):
    """What a key stands for."""

    fingerprint: str
    deploy_id: str | None
    """The deploy that began, or was steered; None if the mode was set."""


class KeyStore:
    """The keys, in the database: a repetition is known over a restart."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def get(self, value: str) -> KeyRow | None:
        """Return the request of the key; None if it is unknown."""
        rows = await self._statements.read("key", key=value)
        return KeyRow(rows[0]["fingerprint"], rows[0]["deploy_id"]) if rows else None

    async def find(self, key: IdempotencyKey) -> KeyRow | None:
        """Return the request of a key that was used before, and mark the key as repeated.

        Raises RefusedError if it was used for another request.
        """
        row = await self.get(key.value)
        if row is None:
            return None
        if row.fingerprint != key.fingerprint:
            raise _reused(key)
        key.repeated = True
        return row

    async def add(
        self, key: IdempotencyKey, *, deploy_id: str | None = None, asked: str | None = None
    ) -> None:
        """Remember a key; `asked` is the result that it steers its deploy to, or its event."""
        old = {"since": (now() - KEYS_KEPT).isoformat(), "kept": NEWEST_KEPT}
        await self._statements.write(
            key_added(key, deploy_id=deploy_id, asked=asked), ("trim_keys", old)
        )

    async def forget(self, key: IdempotencyKey) -> None:
        """Forget the key of a request that was refused after all."""
        await self._statements.write(("forget_key", {"key": key.value}))

    async def forget_undone(self) -> None:
        """Forget the keys of requests that the last daemon did not carry out."""
        await self._statements.write(("forget_undone_keys", {}))


def key_added(
    key: IdempotencyKey, *, deploy_id: str | None = None, asked: str | None = None
) -> Statement:
    """Return the statement that remembers a key."""
    row = {"key": key.value, "fingerprint": key.fingerprint, "ts": now().isoformat()}
    return "add_key", {**row, "deploy_id": deploy_id, "asked": asked}


def _reused(key: IdempotencyKey) -> RefusedError:
    """Return the error for a key that was used for another request."""
    return IDEMPOTENCY_KEY_REUSED.error(key=key.value)
