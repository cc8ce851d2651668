"""A worker that is killed takes only those requests with it that it was working on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.support import IDLE_GRACE_SECONDS, kill_under_load
from tests.harness import bundled_worker
from tests.loadclient import Reason, Traffic, bundled_worker_mix

KILLS = 3


@pytest.mark.fault(
    "Workers",
    "the active one killed under load, a warm one there",
    "only requests in flight at it are lost; its queue is answered by the warm one",
)
async def test_a_killed_worker_s_queue_is_answered_by_the_warm_one(tmp_path: Path) -> None:
    mix: list[Traffic] = list(bundled_worker_mix(think=0.1, pause=0.7 * IDLE_GRACE_SECONDS))
    settings = bundled_worker(idle_grace=IDLE_GRACE_SECONDS)
    rescue = await kill_under_load(tmp_path, settings, mix, times=KILLS)
    report = rescue.report
    print(report.describe(), rescue.rescued)  # noqa: T201 - what was measured stands in the output
    in_flight_at_most = sum(kind.loops for kind in mix) * KILLS
    assert len(report.losses) <= in_flight_at_most
    assert not [loss for loss in report.losses if loss.reason is Reason.REFUSED]
    assert report.total().answered > 100 * KILLS
