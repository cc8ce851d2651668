"""Probes the new version's worker while it has traffic; too many failures in a row are a reason."""

from __future__ import annotations

from atlas_supervisor.config import Settings
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.workers.slot import Slot

_SMALLEST_INTERVAL_SECONDS = 0.5


class ProbeStreak:
    """The probes of one slot, and how many have failed in a row."""

    def __init__(self, settings: Settings, prober: HttpProber, slot: Slot) -> None:
        self._settings = settings
        self._prober = prober
        self._slot = slot
        self._failures = 0
        self.probes = 0
        """How many were made."""

    @property
    def interval_seconds(self) -> float:
        """The time from one probe to the next."""
        return max(self._settings.health_interval_seconds, _SMALLEST_INTERVAL_SECONDS)

    async def probe(self) -> tuple[str, ProbeResult] | None:
        """Probe once; return the reason and the last result if too many in a row have failed."""
        settings, instance = self._settings, self._slot.instance
        result = await self._prober.probe(
            self._slot.port,
            settings.health_path,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=instance.name if instance else None,
        )
        self.probes += 1
        self._failures = self._failures + 1 if result.verdict is Verdict.FAIL else 0
        if self._failures < settings.liveness_failures:
            return None
        return f"the new version failed {self._failures} probes in a row: {result.message}", result
