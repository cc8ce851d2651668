"""`deploy_state.json`: replaced as a whole and durably, so that a reader never sees half of it.

Workers and people read it with no lock; what the daemon acts on is the copy in memory, which is
only ever the last one that reached the disk.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from supervisor.model.state import SCHEMA_VERSION, DeployState
from supervisor.store.replace import replace


class UnreadableStateError(Exception):
    """The file is there and can't be used; the text says why."""


class StateFile:
    """The state file at `path`. Its calls block on the disk; run them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> DeployState | None:
        """Return what the file holds, or None if there is no file.

        Raises UnreadableStateError.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnreadableStateError(f"can't be read: {error}") from error
        if not content.strip():
            raise UnreadableStateError("is empty")
        try:
            state = DeployState.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise UnreadableStateError(f"is no valid state: {where}: {first['msg']}") from error
        if state.schema_version > SCHEMA_VERSION:
            raise UnreadableStateError(
                f"was written by a newer version (schema {state.schema_version}, "
                f"this one knows {SCHEMA_VERSION})"
            )
        return state

    def write(self, state: DeployState) -> None:
        """Replace the file's content durably.

        Raises OSError; the file then holds what it held before, or, if the very last step
        failed, what was to be written.
        """
        content = json.dumps(state.model_dump(mode="json"), indent=2) + "\n"
        replace(self.path, content)
        self._sync_folder()

    def set_aside(self, stamp: str) -> Path:
        """Rename the file out of the way, keeping it for a person to look at."""
        aside = self.path.with_name(f"{self.path.name}.unreadable-{stamp}")
        self.path.rename(aside)
        self._sync_folder()
        return aside

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
