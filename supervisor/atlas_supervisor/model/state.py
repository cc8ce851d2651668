"""What `deploy_state.json` holds: the durable truth about who is active."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, PositiveInt

from atlas_supervisor.model.canary import CanaryPolicy
from atlas_supervisor.model.deploy import Mode

SCHEMA_VERSION = 1


class ActiveRelease(BaseModel):
    """What runs on the active port."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None
    """Its name below `RELEASES_DIR`; None is `WORKER_DIRECTORY`."""
    version: str


class DeployState(BaseModel):
    """The state file's content. `generation` grows with every write."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    generation: int = 0
    mode: Mode
    active_port: PositiveInt
    staging_port: PositiveInt
    active_release: ActiveRelease | None = None
    """Written with the port that it has, so that it is known without the database. None in files
    from before it was written."""
    last_deploy_ts: datetime | None = None
    last_switch_ts: datetime | None = None
    canary_disabled_fallback: bool = False
    canary: CanaryPolicy | None = None
    """None until the first start of a daemon that knows of canaries."""
