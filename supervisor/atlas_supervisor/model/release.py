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

    deploy_id: str = Field(description="The deploy's name.")
    started_ts: datetime = Field(description="When it was requested.")
    result: Result | None = Field(description="Its outcome; null while it is in progress.")


class ReleaseView(BaseModel):
    """A release as the list of them shows it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the folder below RELEASES_DIR.")
    version: str = Field(description="The release's version.")
    slots: list[SlotName] = Field(description="The slots it runs in; empty if none.")
    last_deploy: LastDeploy | None = Field(
        description="Its latest deploy; null if it was never deployed."
    )
