"""Releases: a folder with a version, and a name unless it is `WORKER_DIRECTORY`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.slot import SlotName


class Release(BaseModel):
    """A folder to run workers from, as it was found."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    path: Path
    version: str

    @property
    def label(self) -> str:
        """Its name in the log: the name, else the version."""
        return self.name or self.version


class LastDeploy(BaseModel):
    """The latest deploy of one release."""

    model_config = ConfigDict(frozen=True)

    deploy_id: str
    started_ts: datetime
    result: Result | None


class ReleaseView(BaseModel):
    """A release as `GET /releases` shows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    slots: list[SlotName] = Field(description="Where it runs now; empty if nowhere.")
    last_deploy: LastDeploy | None = Field(
        description="Its last deploy and the result; null if it was never deployed."
    )
