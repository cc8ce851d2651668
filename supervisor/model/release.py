"""What is deployed: a folder, with a name where it has one, and a version."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Release(BaseModel):
    """A folder to run workers from, as it was when it was looked up."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    path: Path
    version: str
