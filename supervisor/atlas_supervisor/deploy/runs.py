"""The deploys of this daemon that have not ended, and the latest one. In memory."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.model.deploy import DeployRecord


class Runs:
    """Deploys that have not ended; at most one of them is in progress."""

    def __init__(self) -> None:
        self._runs: dict[str, DeployRun] = {}
        self._latest: DeployRecord | None = None
        self.stopping = False
        """Whether the daemon stops, so that nothing new may begin."""

    def __iter__(self) -> Iterator[DeployRun]:
        """Yield the runs that there are now, oldest first."""
        yield from list(self._runs.values())

    def get(self, deploy_id: str) -> DeployRun | None:
        """Return the run of a deploy; None if it has ended."""
        return self._runs.get(deploy_id)

    @property
    def current(self) -> DeployRun | None:
        """The deploy in progress, if any."""
        return next((run for run in self if run.in_progress), None)

    @property
    def latest(self) -> DeployRecord | None:
        """The latest deploy as it is now, whether it has ended or not."""
        return self.fresh(self._latest) if self._latest else None

    def show(self, record: DeployRecord | None) -> None:
        """Let this be the latest deploy until there is another."""
        self._latest = record

    def fresh(self, record: DeployRecord) -> DeployRecord:
        """Return the record as it is now, even if that could not be written yet."""
        run = self._runs.get(record.deploy_id)
        return run.record if run else record

    def add(self, run: DeployRun) -> None:
        """Note a deploy that begins."""
        self._runs[run.record.deploy_id] = run
        self._latest = run.record

    def remove(self, run: DeployRun) -> None:
        """Forget a deploy that has ended and is written."""
        self._latest = self.latest
        del self._runs[run.record.deploy_id]
