"""The fleet's kill switch on the canaries of one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.canary.evidence import Evidence
from atlas_supervisor.canary.stats.decision import Conclusion, EvidenceKind
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.canary import Kills
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.store.statements import StoreError
from tests.unit.supervisor.canary.support import OPERATOR, Canaries, running

RAMP: dict[str, Any] = {"canary_ramp": (0.1, 0.5, 1.0), "canary_step_seconds": 60.0}
FLEET: dict[str, Any] = {"fleet_etcd_endpoints": ("http://127.0.0.1:1",), "fleet_host": "web1"}
SINCE = "2026-01-05T09:30:00Z"


def kills(epoch: int, *features: str, every: bool = False) -> Kills:
    fields = {"epoch": epoch, "every_feature": every, "features": features}
    return Kills.model_validate({**fields, "since_ts": SINCE, "by": "uid:0 on web2"})


def shares(canaries: Canaries) -> dict[str, float]:
    """Return the shares that workers read."""
    policy = canaries.written.canary
    assert policy is not None
    return {name: each.share for name, each in policy.features.items()}


def lose_database(folder: Path) -> None:
    for path in folder.glob("atlas.db*"):
        path.unlink()


async def test_a_killed_feature_gets_no_calls_and_is_shown_and_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        epoch = canaries.policy.features["vision"].epoch
        await canaries.service.kill(kills(3, "vision", "elsewhere"))
        assert shares(canaries) == {"vision": 0.0, "web": 0.2, "optimizer": 0.2}
        assert canaries.policy.features["vision"].epoch > epoch
        view = canaries.feature()
        assert (view.killed, view.share, view.percentage) == (True, 0.0, 0.2)
        assert view.waits_for == "a reset of the fleet's kill switch"
        shown = canaries.service.view().kills
        assert shown is not None
        assert shown.features == ("vision", "elsewhere")
        (suggestion,) = canaries.service.suggestions()
        assert suggestion.code == "canary_killed"
        assert "vision, elsewhere off" in suggestion.message
        assert ("fleet_kill", "applied", None) in await canaries.audited()


async def test_the_end_of_a_kill_brings_back_share_and_ramp_with_evidence_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP, **FLEET) as canaries:
        await canaries.service.set_percentage("web", 0.3, OPERATOR)
        await canaries.service.ramp("vision", "start", OPERATOR)
        await canaries.service.ramp("vision", "advance", OPERATOR)
        before = canaries.policy.features["vision"]
        await canaries.service.kill(kills(1, every=True))
        assert set(shares(canaries).values()) == {0.0}
        await canaries.look(after=3600)  # its step's time would have been over
        await canaries.service.kill(kills(2))
        assert shares(canaries) == {"vision": 0.5, "web": 0.3, "optimizer": 0.2}
        after = canaries.policy.features["vision"]
        assert (after.stage, canaries.feature().step) == ("ramping", 1)
        assert after.ramp > before.ramp, "a call drawn before the kill would count again"
        waits_for = canaries.feature().waits_for
        assert waits_for is not None
        assert waits_for.startswith("60 s more on this step")
        assert ("fleet_kill", "lifted", None) in await canaries.audited()


async def test_neither_earlier_evidence_nor_calls_that_end_during_a_kill_decide_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP, **FLEET) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        process = canaries.process()
        process.calls(500, failed=60)
        process.calls(500, canary=False)
        await canaries.service.kill(kills(1, "vision"))
        await canaries.look(after=30)
        assert canaries.feature().judgement.verdict == "inconclusive"
        reached = Conclusion(
            Verdict.FAIL, EvidenceKind.ERRORS, "its errors were more before the kill"
        )
        monkeypatch.setattr(Evidence, "conclusion", lambda *_args, **_kwargs: reached)
        await canaries.look(after=30)
        assert canaries.policy.features["vision"].stage == "ramping"
        assert canaries.policy.features["web"].stage == "rolled_back"


async def test_a_killed_feature_can_only_be_set_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP, **FLEET) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        await canaries.service.kill(kills(1, "vision"))
        with pytest.raises(RefusedError) as refused:
            await canaries.service.set_percentage("vision", 0.5, OPERATOR)
        assert refused.value.code == "feature_killed"
        assert "set at 2026-01-05 09:30:00Z by uid:0 on web2" in refused.value.message
        for action in ("start", "resume", "advance", "promote"):
            with pytest.raises(RefusedError, match="kill switch"):
                await canaries.service.ramp("vision", action, OPERATOR)
        key = IdempotencyKey("k", "f")
        assert (await canaries.service.ramp("vision", "pause", OPERATOR, key)).stage == "paused"
        assert (await canaries.service.set_percentage("vision", 0, OPERATOR)).stage == "steady"
        await canaries.service.kill(kills(2))
        assert shares(canaries)["vision"] == 0.0
        assert (await canaries.service.set_percentage("vision", 0.5, OPERATOR)).share == 0.5


async def test_kills_survive_a_restart_and_a_reset_of_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        await canaries.service.kill(kills(1, "vision"))
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        assert shares(canaries)["vision"] == 0.0
        await canaries.service.reset(None, OPERATOR)
        await canaries.service.reset("vision", OPERATOR)
        assert shares(canaries)["vision"] == 0.0


async def test_a_machine_that_has_left_its_fleet_ends_kills_by_its_own_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        await canaries.service.kill(kills(1, "vision"))
    async with running(tmp_path, monkeypatch) as canaries:
        assert shares(canaries)["vision"] == 0.0
        await canaries.service.reset(None, OPERATOR)
        assert shares(canaries)["vision"] == 0.2
    async with running(tmp_path, monkeypatch) as canaries:
        assert shares(canaries)["vision"] == 0.2


async def test_a_kill_does_not_wait_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:

        async def full(_commit: object) -> None:
            raise StoreError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(canaries.database.canary, "commit", full)
            await canaries.service.kill(kills(1, "vision"))
            assert shares(canaries)["vision"] == 0.0
        await canaries.look(after=2)
        assert ("fleet_kill", "applied", None) in await canaries.audited()


async def test_totals_grow_over_restarts_and_begin_anew_with_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lives in (1, 2):
        async with running(tmp_path, monkeypatch, **FLEET) as canaries:
            process = canaries.process()
            process.calls(10, failed=2)
            process.calls(30, canary=False)
            await canaries.look(after=2)
            found = canaries.service.totals()
            assert (found.canary["vision"].calls, found.canary["vision"].errors) == (
                10 * lives,
                2 * lives,
            )
            assert found.stable["vision"].calls == 30 * lives
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        assert canaries.service.totals().origin == found.origin
    lose_database(tmp_path)
    async with running(tmp_path, monkeypatch, **FLEET) as canaries:
        assert canaries.service.totals().canary == {}
        assert canaries.service.totals().origin != found.origin
