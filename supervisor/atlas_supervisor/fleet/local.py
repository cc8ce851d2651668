"""What a fleet asks of the supervisor on this machine.

An interface, because a simulation of a thousand hosts plays the machines and runs all else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from atlas_supervisor.fleet.documents import Evidence, HostDeploy, KillSwitch


@dataclass(frozen=True)
class LocalState:
    """What runs on this machine."""

    version: str | None
    health_score: int | None
    mode: str
    last_deploy: HostDeploy | None
    """The last one that has a result: while another one is in progress, the one before it."""
    deploying: bool


@dataclass(frozen=True)
class LocalOutcome:
    """How a deploy or a way back ended, its guard included."""

    passed: bool
    deploy_id: str | None
    version: str | None
    reason: str


class LocalSupervisor(Protocol):
    """The supervisor on this machine, with its own gates."""

    def state(self) -> LocalState:
        """Return the version that runs, its health and its last deploy."""
        ...

    async def find_release(self, release: str) -> None:
        """Raise RefusedError unless this machine has a release."""
        ...

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        """Deploy a release with all gates, and wait until its guard has ended.

        The same key again, after a restart too, begins no second deploy: it returns the outcome of
        the first one, and waits for it if need be. Raises RefusedError if it could not begin.
        """
        ...

    async def go_back(self, release: str, *, key: str) -> LocalOutcome:
        """Go back to the version before a release, and wait until that has ended.

        Where the release is not what runs, that is passed at once and nothing is done. `key` and
        RefusedError as in `deploy`.
        """
        ...

    async def outcome(self, *, key: str) -> LocalOutcome | None:
        """Return the outcome of what was begun with a key, and wait for it if need be.

        None if nothing was begun with it.
        """
        ...

    async def abort(self, *, key: str) -> None:
        """Give up what was begun with a key, if it is in progress and has not switched yet."""
        ...

    async def kill(self, switch: KillSwitch) -> None:
        """Switch the canaries of its features off, and on again all others that a kill had off.

        Returns once workers read it. Raises OSError, and nothing has changed.
        """
        ...

    def evidence(self) -> Evidence:
        """Return the canary's counts since this machine's counts began."""
        ...
