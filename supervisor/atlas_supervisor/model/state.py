"""The content of `deploy_state.json`: the durable record of the active slot."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, PositiveInt

from atlas_supervisor.model.canary import CanaryPolicy
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.release import VersionSource

SCHEMA_VERSION = 1


class ActiveRelease(BaseModel, frozen=True, extra="ignore"):
    """The release on the active port."""

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    version: str
    path: Path | None = None
    """Its real path. None in files of earlier versions, as is the rest."""
    identity: str | None = None
    source: VersionSource | None = None


class Hold(BaseModel, frozen=True, extra="ignore"):
    """New connections to the public port wait."""

    hold_id: str = Field(description="Identifies this hold; a release may name it.")
    since: datetime = Field(description="When it began.")
    until: datetime = Field(description="When it ends by itself; of an ended one, when it ended.")
    by: str = Field(description="Who asked for it.")


class DeployState(BaseModel, frozen=True, extra="ignore"):
    """The state file's content. `generation` grows with every write."""

    schema_version: int = SCHEMA_VERSION
    generation: int = 0
    mode: Mode
    active_port: PositiveInt
    staging_port: PositiveInt
    active_release: ActiveRelease | None = None
    """Written together with the active port, so that it is known without the database. None in
    files of earlier versions."""
    last_deploy_ts: datetime | None = None
    last_switch_ts: datetime | None = None
    staging_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of new connections that the staging slot has: the new version's while its deploy waits
    for the switch or ramps, the old one's in a holdback."""
    hold: Hold | None = None
    """The hold, for the next program of a reload."""
    announce_close: bool = False
    """Whether workers with the kit announce that they close connections: in a hold, and shortly
    after it."""
    canary_disabled_fallback: bool = False
    canary: CanaryPolicy | None = None
    """None in files of versions without canaries."""
