"""The evidence of users' requests about a new version that runs beside the old one."""

from __future__ import annotations

from typing import Any

from atlas_supervisor.model.judgement import Judgement
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests.collector import RequestCollector


class Comparison:
    """Compares two instances while new connections are drawn between them with a known share."""

    def __init__(
        self, requests: RequestCollector, *, new: str, old: str, saved: dict[str, Any] | None = None
    ) -> None:
        """Compare the instances named `new` and `old`; `saved` is what `saved` has returned."""
        self._requests, self._new, self._old = requests, new, old

    def set_weight(self, weight: float) -> None:
        """Note the share of new connections that the new version gets from now on."""

    def look(self) -> Judgement:
        """Return what the requests say by now; to be called about once a second."""
        return Judgement(verdict=Verdict.INCONCLUSIVE, why="requests are not compared yet")

    def saved(self) -> dict[str, Any]:
        """Return what the next daemon goes on with, as JSON's types."""
        return {}
