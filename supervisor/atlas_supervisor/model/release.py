"""What is deployed: a folder, with a name where it has one, and a version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.slot import SlotName


class Release(BaseModel):
    """A folder to run workers from, as it was when it was looked up."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    path: Path
    version: str

    @property
    def label(self) -> str:
        """What the log calls it: its name, else its version."""
        return self.name or self.version


class Version(NamedTuple):
    """A release that had the traffic, and the slot that it ran in."""

    slot: SlotName
    release: Release


@dataclass(frozen=True)
class VersionChange:
    """How a flip changes the list of the versions that had the traffic."""

    added: Version | None
    """None: the last one is taken away, since the one before it has the traffic again."""


class LastDeploy(BaseModel):
    """The latest deploy of one release."""

    model_config = ConfigDict(frozen=True)

    deploy_id: str
    started_ts: datetime
    result: Result | None


class ReleaseView(BaseModel):
    """A release as the list of them shows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    slots: list[SlotName] = Field(description="Where it runs now; empty if nowhere.")
    last_deploy: LastDeploy | None = Field(
        description="When it was deployed last, and how that ended; null if it never was."
    )
