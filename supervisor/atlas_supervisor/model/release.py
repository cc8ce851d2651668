"""What is deployed: a folder, with a name where it has one, and a version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.slot import SlotName


class VersionSource(StrEnum):
    """Where a release's version comes from, the best source first."""

    FILE = "VERSION"
    GIT = "git"
    NAME = "name"
    DIGEST = "digest"


class Release(BaseModel, frozen=True):
    """A folder to run workers from, as it was when it was looked up."""

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    path: Path
    """Its real path: no link that is changed later leads elsewhere."""
    version: str
    source: VersionSource | None = None
    """None in records of earlier versions, as below."""
    identity: str | None = None
    """What distinguishes the folder from another one at the same path later."""
    note: str | None = None
    """Why its version has no better source."""
    recorded_version: str | None = None
    """The version that was deployed, if the folder holds another one by now."""
    problem: str | None = None
    """Why it is not what was deployed, in words."""
    irreversible: bool = False
    """Its `release.toml` says so: once it has had all the traffic, nothing reverts it by itself."""
    fault: str | None = None
    """What is wrong with its `release.toml`: it can't be deployed."""

    @property
    def label(self) -> str:
        """What the log calls it: its name, else its version."""
        return self.name or self.version

    @property
    def record(self) -> dict[str, Any]:
        """What the state file records of it."""
        return self.model_dump(include={"name", "version", "path", "identity", "source"})

    def is_same(self, other: Release) -> bool:
        """Return whether it is the same release in the same folder."""
        return _key(self) == _key(other)


def _key(release: Release) -> tuple[str | None, Path, str, str | None]:
    return release.name, release.path, release.version, release.identity


class Version(NamedTuple):
    """A release that had the traffic, and the slot that it ran in."""

    slot: SlotName
    release: Release
    undone: bool = False
    """A rollback or a revert has taken it away: it is not what the next rollback goes back to."""
    until: datetime | None = None
    """When it lost the traffic; None while it has it, and if that is not known."""
    complaint: str | None = None
    """What spoke against it while it served."""


@dataclass(frozen=True)
class VersionChange:
    """How a transition changes the list of the versions that had the traffic.

    With neither `added` nor `back` only the complaint is noted.
    """

    added: Version | None = None
    """It has the traffic now."""
    back: bool = False
    """It is gone back to: those after it are taken away. Without `added` it is the one before."""
    complaint: str | None = None
    """What speaks against the version that had the traffic until now."""
    moved: bool = False
    """Whether `added` is the last one again, and only its slot is another."""


class LastDeploy(BaseModel, frozen=True):
    """The latest deploy of one release."""

    deploy_id: str = Field(description="The deploy's name.")
    started_ts: datetime = Field(description="When it was requested.")
    result: Result | None = Field(description="Its outcome; null while it is in progress.")


class ReleaseView(BaseModel, frozen=True):
    """A release as the list of them shows it."""

    name: str = Field(description="Name of the folder below RELEASES_DIR.")
    version: str | None = Field(
        description="The release's version; null if only git knows it: then git is run for its "
        "deploy, and here for callers who are known by token or uid."
    )
    version_source: VersionSource | None = Field(
        description="Where the version comes from: `VERSION`, its file; `git`, its description; "
        "`name`, the folder's name."
    )
    note: str | None = Field(description="Why no better source could be used, if one was there.")
    slots: list[SlotName] = Field(description="The slots it runs in; empty if none.")
    last_deploy: LastDeploy | None = Field(
        description="Its latest deploy; null if it was never deployed."
    )


class EarlierVersion(BaseModel, frozen=True):
    """A version that served and can be gone back to, or why it can't."""

    version: str = Field(description="Its version; what `POST /deploy/rollback` takes.")
    release: str | None = Field(description="Its release's name; null for the worker directory.")
    last_served_ts: datetime | None = Field(
        description="When it lost the traffic; null if that is not known."
    )
    next: bool = Field(description="Whether a rollback without a version goes to it.")
    warm: bool = Field(
        description="Whether its worker still runs, so that it takes over at once; else it is "
        "launched."
    )
    fast: bool = Field(
        description="Whether `fast` may skip its gates: it ran without complaint within 24 h."
    )
    why_not_fast: str | None = Field(description="Why not; null if it may.")
    gone: str | None = Field(description="Why it can't be launched; null if it can.")
    past_irreversible: list[str] = Field(
        description="Irreversible versions that served after it: it may not suit what they changed."
    )


class EarlierVersions(BaseModel, frozen=True):
    """What can be gone back to."""

    active_version: str | None = Field(description="The version that has the traffic.")
    versions: list[EarlierVersion] = Field(
        description="The last five other versions that served, the latest first."
    )
