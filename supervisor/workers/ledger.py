"""Which worker processes there are, written down for a daemon that comes after a crash."""

from __future__ import annotations

import structlog

from supervisor import procfs
from supervisor.store.database import Database
from supervisor.store.instances import InstanceRow
from supervisor.store.statements import StoreError
from supervisor.workers.instance import Instance

log = structlog.get_logger(__name__)


class Ledger:
    """Writes instances into the database; a disk that fails stops no worker."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._boot_id = procfs.boot_id()

    async def launched(self, instance: Instance) -> None:
        """Note that the process is there."""
        ticks = procfs.start_ticks(instance.pid)
        if ticks is None:  # it is gone already
            return
        row = InstanceRow(instance.name, instance.slot, instance.pid, ticks, self._boot_id)
        try:
            await self._database.add_instance(row)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))

    async def gone(self, instance: Instance) -> None:
        """Note that nothing of it is left."""
        try:
            await self._database.remove_instance(instance.name)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))
