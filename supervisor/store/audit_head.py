"""The end of the audit trail's chain, noted outside of the database.

From the chain alone nobody can tell that its last entries were cut off. The note is written after
each entry is durable: a daemon that dies in between leaves it behind the database, never ahead.
"""

from __future__ import annotations

import json
from pathlib import Path

import structlog
from pydantic import BaseModel, Field, ValidationError

from supervisor.store.chain import Head
from supervisor.store.replace import replace

log = structlog.get_logger(__name__)

HEAD_FILE = "audit_head.json"


class _Note(BaseModel):
    id: int = Field(ge=1, lt=2**62)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")


class HeadFile:
    """The note at `path`. Its calls block on the disk; run them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Head | None:
        """Return what is noted; None if nothing is, or it can't be read, which is logged."""
        try:
            note = _Note.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.error("audit_head_unreadable", file=self.path.name, why=str(error))
            return None
        return Head(note.id, note.hash)

    def write(self, head: Head) -> None:
        """Note the end of the chain. Raises OSError; then it is as it was.

        The folder is not synced: a power cut may leave the note behind, which is no fault.
        """
        replace(self.path, json.dumps(head._asdict()) + "\n")
