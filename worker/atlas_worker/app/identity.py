"""The identity of this worker in its answers."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from aiohttp import web

from atlas_worker.instance import Instance


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts in answers. `started` is on `time.monotonic`."""

    version: str
    slot: str | None
    instance: str
    channel: str
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, instance: Instance) -> Identity:
        """Return the identity of an instance that starts now."""
        return cls(instance.version, instance.slot, instance.id, instance.channel)


IDENTITY: web.AppKey[Identity] = web.AppKey("identity", Identity)
