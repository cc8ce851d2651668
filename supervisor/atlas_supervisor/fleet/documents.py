"""The documents that a fleet's machines share, and under which keys they stand.

    kill                        KillSwitch
    turns/rollout               Rollout, the last one begun
    turns/semaphore             Semaphore: which hosts may be unavailable now, and why
    results/ROLLOUT/HOST        HostResult: how far a host is with a rollout
    hosts/HOST                  Member: stays until an operator forgets the host
    present/HOST                Presence, under a lease
    evidence/HOST               Evidence

A document that can't be read is an error of its key (`UnreadableDocumentError`), never a guess.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_supervisor.fleet.engine import EngineError

KILL = "kill"
TURNS = "turns/"
"""Both documents that decide whose turn it is stand under it, so that one watch has them."""
ROLLOUT, SEMAPHORE = "turns/rollout", "turns/semaphore"
RESULTS, HOSTS, PRESENT, EVIDENCE = "results/", "hosts/", "present/", "evidence/"


class UnreadableDocumentError(EngineError):
    """What stands under a key is no document of this fleet; nothing is decided by it."""


class Document(BaseModel):
    """A JSON document. Keys that a newer version has added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def read(cls, key: str, value: bytes) -> Self:
        """Parse what stands under a key. Raises UnreadableDocumentError."""
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"]) or "document"
            raise UnreadableDocumentError(f"{key} can't be read: {where}: {fault['msg']}") from None

    def written(self) -> bytes:
        """Return it as it is written."""
        return self.model_dump_json().encode()


class Purpose(StrEnum):
    """What a slot of the semaphore is used for."""

    DEPLOY = "deploy"
    REBOOT = "reboot"


class Holder(Document):
    """A host that has a slot."""

    purpose: Purpose
    since_ts: datetime
    generation: int = Field(ge=1)
    """The semaphore's generation when the slot was taken; breaking the slot names it."""
    rollout_id: str | None = None
    client_id: str | None = None
    """The FleetLock client that asked for a reboot's slot; it alone gives it back."""


class Semaphore(Document):
    """The budget of hosts that may be unavailable at a time, for deploys and reboots alike.

    No lease: a host that dies with a slot keeps it until an operator breaks it.
    """

    slots: int = Field(default=1, ge=1)
    generation: int = Field(default=0, ge=0)
    """Grows by one with every change."""
    holders: dict[str, Holder] = {}


class RolloutState(StrEnum):
    """Where a rollout stands. `running` alone lets a host take a slot."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ABORTED = "aborted"
    PASSED = "passed"


class Direction(StrEnum):
    """Whether hosts deploy the release, or go back to the version before it."""

    FORWARD = "forward"
    BACK = "back"


class Halt(Document):
    """Why a rollout stopped."""

    host: str = Field(description="The host that failed.")
    reason: str = Field(description="Why it failed.")
    at_ts: datetime = Field(description="When.")


class Rollout(Document):
    """One rollout of a release over the fleet's hosts."""

    rollout_id: str
    release: str
    direction: Direction = Direction.FORWARD
    state: RolloutState = RolloutState.RUNNING
    max_unavailable: int = Field(ge=1)
    order: tuple[str, ...]
    """All of its hosts, in the order in which they may take a slot."""
    wave_ends: tuple[int, ...]
    """How many hosts are through at the end of each wave; the last is all of them."""
    started_ts: datetime
    started_by: str
    ended_ts: datetime | None = None
    halt: Halt | None = None
    undoes: str | None = None
    """The rollout whose hosts go back, if this one goes back."""
    excused: tuple[str, ...] = ()
    """Hosts whose last deploy failed before, which stops no other host: they are tried first."""


class HostState(StrEnum):
    """How far a host is with a rollout; a host without a result has not begun."""

    DEPLOYING = "deploying"
    PASSED = "passed"
    FAILED = "failed"


class HostResult(Document):
    """A host's part in a rollout."""

    state: HostState
    started_ts: datetime
    ended_ts: datetime | None = None
    deploy_id: str | None = None
    version: str | None = None
    reason: str = ""


class Member(Document):
    """A host that belongs to the fleet, whether it is present or not."""

    joined_ts: datetime


class HostDeploy(Document):
    """A host's last deploy, by itself or for a rollout."""

    deploy_id: str = Field(description="Its id, on that host.")
    result: str = Field(description="Its result, as a deploy's answer has it.")
    release: str | None = Field(default=None, description="The release, if one was named.")
    version: str | None = Field(default=None, description="Its version.")
    ended_ts: datetime | None = Field(default=None, description="When it ended.")


class Presence(Document):
    """What a host says of itself every few seconds."""

    version: str | None = None
    daemon_version: str
    health_score: int | None = None
    mode: str
    last_deploy: HostDeploy | None = None
    waits_for: str = ""
    """Why the host takes no slot now; empty if it waits for none."""
    kill_epoch: int = 0
    """The kill switch's epoch that is applied and on its disk."""
    installation: str = ""
    """Differs between two supervisors, so that two with one FLEET_HOST are noticed."""
    sent_ts: datetime
    """By the host's own clock: shown, and compared with no other host's."""


class KillSwitch(Document):
    """The features that are off everywhere. Only a higher epoch changes anything.

    Its absence, or a lower epoch (an engine restored from a backup), re-enables nothing.
    """

    epoch: int = Field(ge=1)
    every_feature: bool = False
    features: tuple[str, ...] = ()
    set_ts: datetime
    set_by: str


class ArmCount(Document):
    """Calls of one arm since the host's counts began."""

    calls: int = Field(ge=0, description="How many.")
    errors: int = Field(ge=0, description="How many of them failed.")


class FeatureCount(Document):
    """Both arms of a feature."""

    canary: ArmCount
    stable: ArmCount


class Evidence(Document):
    """A host's cumulative counts: they never fall, and so neither does the fleet's sum.

    They are kept in the host's database. If that is lost, they begin again at zero, with a new
    `boot_epoch`, and what the host had published before is `earlier`, which `features` include.
    """

    boot_epoch: str
    features: dict[str, FeatureCount] = {}
    earlier: dict[str, FeatureCount] = {}
    counted_ts: datetime
