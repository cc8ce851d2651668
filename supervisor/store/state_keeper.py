"""Holds the state that the daemon acts on, and puts every change on the disk first.

What is in memory is what was last written: if a write fails, nothing has changed.
"""

from __future__ import annotations

from typing import Any

import anyio
import structlog

from supervisor.clock import Stopwatch
from supervisor.model.state import DeployState
from supervisor.store.database import Database
from supervisor.store.state_file import StateFile, UnreadableStateError
from supervisor.store.statements import StoreError, Timed, untimed

log = structlog.get_logger(__name__)


class StateKeeper:
    """The one writer of the state file."""

    def __init__(
        self, file: StateFile, database: Database, state: DeployState, timed: Timed = untimed
    ) -> None:
        self._file = file
        self._database = database
        self._state = state
        self._timed = timed
        self._changing = anyio.Lock()

    @property
    def state(self) -> DeployState:
        """The state as it stands on the disk."""
        return self._state

    async def change(self, **changes: Any) -> DeployState:
        """Change the state durably and return it. Raises OSError, and then nothing changed."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                before = self._state
                after = before.model_copy(update={**changes, "generation": before.generation + 1})
                watch = Stopwatch()
                try:
                    await anyio.to_thread.run_sync(self._file.write, after)
                except OSError:
                    self._timed(watch.seconds, False)
                    await self._restore(before)
                    raise
                self._timed(watch.seconds, True)
                self._state = after
        return after

    async def _restore(self, before: DeployState) -> None:
        """Put the old content back if the new one is in place but could not be made durable."""
        try:
            if await anyio.to_thread.run_sync(self._file.read) != before:
                await anyio.to_thread.run_sync(self._file.write, before)
        except (OSError, UnreadableStateError) as error:
            log.critical("state_file_uncertain", why=str(error))

    async def copy_to_database(self) -> None:
        """Keep a copy where the file can be rebuilt from; a failure is logged, not raised."""
        try:
            await self._database.save_state(self._state)
        except StoreError as error:
            log.error("state_copy_failed", why=str(error))
