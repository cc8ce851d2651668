from __future__ import annotations

import errno
import itertools
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.canary import persistence
from atlas_supervisor.canary.evidence import Moment
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.canary import CanaryStats
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store.statements import StoreError
from atlas_worker.contract.ring import EventKind
from tests.unit.supervisor.canary.support import OPERATOR, Canaries, Clock, Process, running

RAMP: dict[str, Any] = {"canary_ramp": (0.1, 0.5, 1.0), "canary_step_seconds": 60.0}


def totals(stats: CanaryStats) -> tuple[int, int, int, int]:
    return (stats.canary.calls, stats.canary.errors, stats.stable.calls, stats.stable.errors)


# The policy.


async def test_the_policy_has_a_share_and_an_epoch_for_each_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        policy = canaries.written.canary
        assert policy is not None
        assert policy.enabled
        assert {name: each.share for name, each in policy.features.items()} == {
            "vision": 0.2,
            "web": 0.2,
            "optimizer": 0.2,
        }
        assert len({each.epoch for each in policy.features.values()}) == 3


async def test_with_canaries_disabled_every_share_is_zero_and_stable_calls_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, canary_enabled=False) as canaries:
        assert {each.share for each in canaries.policy.features.values()} == {0.0}
        canaries.process().calls(3, canary=False)
        await canaries.look()
        assert totals(canaries.service.stats()) == (0, 0, 3, 0)


async def test_a_share_set_by_an_operator_starts_an_epoch_and_survives_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        before = canaries.policy.features["vision"].epoch
        view = await canaries.service.set_percentage("vision", 0.05, OPERATOR)
        assert (view.share, view.stage) == (0.05, "steady")
        after = canaries.written.canary
        assert after is not None
        assert after.features["vision"].epoch > before
    async with running(tmp_path, monkeypatch, canary_percentage=0.4) as canaries:
        shares = {name: each.share for name, each in canaries.policy.features.items()}
        assert shares == {"vision": 0.05, "web": 0.4, "optimizer": 0.4}
        view_of_all = await canaries.service.reset("vision", OPERATOR)
        assert view_of_all.features[0].share == 0.4
        assert ("canary", "set", "vision") in await canaries.audited()
        assert ("canary_reset", "done", "vision") in await canaries.audited()


async def test_setting_the_present_share_starts_no_epoch_and_is_not_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.service.set_percentage("vision", 0.05, OPERATOR)
        before, audited = canaries.policy, await canaries.audited()
        await canaries.service.set_percentage("vision", 0.05, OPERATOR)
        assert (canaries.policy, await canaries.audited()) == (before, audited)


async def test_a_restart_with_the_same_settings_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        before = canaries.written
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.written == before


async def test_an_unknown_feature_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        for ask in (
            canaries.service.set_percentage("speech", 0.1, OPERATOR),
            canaries.service.ramp("speech", "start", OPERATOR),
            canaries.service.reset("speech", OPERATOR),
        ):
            with pytest.raises(RefusedError) as caught:
                await ask
            assert (caught.value.status, caught.value.code) == (404, "unknown_feature")
            assert "vision, web, optimizer" in caught.value.hint


# Events.


async def test_calls_of_all_processes_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        for _ in range(3):
            process = canaries.process()
            process.calls(4, failed=1)
            process.calls(10, canary=False, feature="web", ms=100.0)
        await canaries.look()
        stats = canaries.service.stats()
        assert totals(stats) == (12, 3, 30, 0)
        assert stats.features["vision"].canary.error_rate == 0.25
        assert stats.features["web"].stable.latency_ms.p50 == pytest.approx(100, rel=0.011)
        assert stats.features["optimizer"].canary.calls == 0


async def test_calls_survive_a_restart_of_the_daemon_and_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(5)
        await canaries.look()
        process.calls(2, failed=2)
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert totals(canaries.service.stats()) == (7, 2, 0, 0)


async def test_events_read_but_not_written_before_a_crash_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(5)
        await canaries.look()
        process.calls(3)

        async def fails(*_: Any) -> None:
            raise StoreError("the database could not be written")

        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            await canaries.look()
        assert totals(canaries.service.stats()) == (8, 0, 0, 0)
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert totals(canaries.service.stats()) == (8, 0, 0, 0)
        await canaries.look()
        assert totals(canaries.service.stats()) == (8, 0, 0, 0)


async def test_a_failed_commit_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(3)

        async def fails(*_: Any) -> None:
            raise StoreError("the database could not be written")

        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            await canaries.look()
        process.calls(4)
        await canaries.look()
        report = await canaries.service.report(1)
        assert report.features[0].canary.calls == 7
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert totals(canaries.service.stats()) == (7, 0, 0, 0)


async def test_open_calls_of_a_dead_process_have_failed_and_its_ring_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(2)
        process.write(EventKind.STARTED)
        process.write(EventKind.ASKED)
        process.die()
        await canaries.look()
        await canaries.look()
        arm = canaries.service.stats().canary
        assert (arm.calls, arm.errors, arm.unreported, arm.assigned) == (3, 1, 1, 4)
        assert not process.path.exists()
        assert await canaries.database.canary.rings() == []


async def test_the_ring_of_a_process_that_died_while_the_daemon_was_away_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.write(EventKind.STARTED)
        await canaries.look()
    process.write(EventKind.ENDED)
    process.write(EventKind.STARTED)
    process.die()
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        assert totals(canaries.service.stats()) == (2, 1, 0, 0)


async def test_open_calls_of_a_ring_removed_while_the_daemon_was_away_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.write(EventKind.STARTED)
        await canaries.look()
    process.path.unlink()
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look()
        await canaries.look()
        assert totals(canaries.service.stats()) == (1, 1, 0, 0)
        assert await canaries.database.canary.rings() == []


async def test_other_files_in_the_folder_are_refused_without_effect_on_rings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        folder = tmp_path / "canary"
        (folder / "empty.ring").touch()
        (folder / "a.ring").mkdir()
        (folder / "link.ring").symlink_to("/etc/passwd")
        canaries.process().calls(1)
        await canaries.look()
        assert totals(canaries.service.stats()) == (1, 0, 0, 0)


# The fallback.


async def test_too_many_failures_turn_all_canaries_off_until_an_operator_resets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(19, failed=19)
        await canaries.look()
        assert not canaries.written.canary_disabled_fallback
        process.calls(1, feature="web")
        process.calls(50, canary=False, failed=1)
        await canaries.look()
        written = canaries.written
        assert written.canary_disabled_fallback
        assert written.canary is not None
        assert {each.share for each in written.canary.features.values()} == {0.0}
        view = canaries.service.view()
        assert not view.enabled
        assert view.fallback is not None
        assert (view.fallback.canary.calls, view.fallback.canary.errors) == (20, 19)
        assert (view.fallback.stable.calls, view.fallback.stable.error_rate) == (50, 0.02)
        assert [each.code for each in canaries.service.suggestions()] == ["canary_fallback"]
        assert await canaries.database.state.load() == written  # should the file be lost
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.look(after=7200)
        assert canaries.written.canary_disabled_fallback
        await canaries.service.reset(None, OPERATOR)
        assert not canaries.written.canary_disabled_fallback
        assert canaries.policy.features["vision"].share == 0.2
        assert [each[:2] for each in await canaries.audited()] == [
            ("canary_fallback", "latched"),
            ("canary_reset", "done"),
        ]


async def test_after_a_reset_the_fallback_does_not_count_earlier_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(20, failed=20)
        await canaries.look()
        await canaries.service.reset(None, OPERATOR)
        process.calls(19, failed=19)
        await canaries.look()
        assert not canaries.written.canary_disabled_fallback
        process.calls(1)
        await canaries.look()
        assert canaries.written.canary_disabled_fallback


async def test_a_fallback_recorded_only_in_the_state_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        await canaries.state.change(canary_disabled_fallback=True)
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.written.canary_disabled_fallback
        assert canaries.service.view().canary_disabled_fallback


async def test_a_fallback_right_before_a_kill_is_audited_once_by_the_next_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> None:
        raise StoreError("the database could not be written")

    async with running(tmp_path, monkeypatch) as canaries:
        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            canaries.process().calls(20, failed=20)
            await canaries.look()
        assert canaries.written.canary_disabled_fallback
        assert await canaries.audited() == []
    for _ in range(3):
        async with running(tmp_path, monkeypatch) as canaries:
            await canaries.look(after=2)
            canaries.process().calls(1, canary=False)
            await canaries.look(after=2)
            assert await canaries.audited() == [("canary_fallback", "latched", None)]


@pytest.mark.fault(
    "Disk and files",
    "a full disk when a canary falls back",
    "the fallback is delayed and not prevented",
)
async def test_a_full_disk_delays_the_fallback_and_does_not_prevent_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        canaries.process().calls(20, failed=20)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        epochs = {each.epoch for each in canaries.policy.features.values()}
        with monkeypatch.context() as patch:
            patch.setattr(canaries.state._file, "write", full)
            for _ in range(3):
                with pytest.raises(OSError, match="No space"):
                    await canaries.look()
        await canaries.look()
        assert canaries.written.canary_disabled_fallback
        after = {each.epoch for each in canaries.policy.features.values()}
        assert max(after) == max(epochs) + 3


# Evidence, and ramps.


async def one_second(canaries: Canaries, process: Process, *, bad: int, calls: int = 100) -> None:
    """Advance a second with this many calls, split by the policy's share."""
    share = canaries.policy.features["vision"].share
    process.calls(round(share * calls), failed=bad)
    process.calls(round((1 - share) * calls), canary=False)
    await canaries.look(after=1)


async def test_a_canary_that_fails_more_often_is_rolled_back_and_the_others_stay_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, canary_error_threshold=1.0) as canaries:
        process = canaries.process()
        for _ in range(20):
            await one_second(canaries, process, bad=4)
        view = canaries.feature()
        assert (view.stage, view.share) == ("rolled_back", 0.0)
        assert "vision" in view.reason
        assert view.judgement.reason == view.reason  # the reason is kept
        assert canaries.feature("web").share == 0.2
        assert ("canary", "rolled_back", "vision") in await canaries.audited()
        assert not canaries.written.canary_disabled_fallback
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.feature().stage == "rolled_back"
        view = await canaries.service.set_percentage("vision", 0.1, OPERATOR)
        await canaries.look(after=60)
        assert canaries.feature().stage == "steady"


async def test_evidence_continues_after_a_restart_without_losing_or_repeating_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(folder: Path, *, restarts: bool) -> dict[str, Any]:
        clock = Clock()
        more: dict[str, Any] = {"canary_error_threshold": 1.0}
        seconds = iter(range(12))
        for _ in range(3 if restarts else 1):
            async with running(folder, monkeypatch, clock, **more) as canaries:
                process = canaries.process()
                for second in itertools.islice(seconds, 4 if restarts else 12):
                    await one_second(canaries, process, bad=second % 2, calls=25)
        async with running(folder, monkeypatch, clock, **more) as canaries:
            await canaries.look(after=10)
            return dict(canaries.feature().judgement.numbers)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alone = await play(tmp_path / "a", restarts=False)
    assert alone == await play(tmp_path / "b", restarts=True)


async def test_a_ramp_advances_by_its_steps_and_is_promoted_by_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        view = await canaries.service.ramp("vision", "start", OPERATOR)
        assert (view.stage, view.share, view.step) == ("ramping", 0.1, 0)
        assert view.waits_for is not None
        shares = [view.share]
        process = canaries.process()
        for _ in range(200):
            await one_second(canaries, process, bad=0)
            if canaries.feature().share != shares[-1]:
                shares.append(canaries.feature().share)
        assert shares == [0.1, 0.5, 1.0]
        assert canaries.feature().stage == "promoted"
        outcomes = [each[1] for each in await canaries.audited() if each[0] == "canary"]
        assert outcomes == ["start", "ramping", "promoted"]


async def test_a_ramp_without_traffic_does_not_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        await canaries.look(after=86400)
        assert canaries.feature().share == 0.1


@pytest.mark.parametrize("set_by", [0.0, -86_400.0, 86_400.0, 400 * 86_400.0])
async def test_a_clock_that_is_set_while_no_daemon_runs_keeps_the_time_on_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_by: float
) -> None:
    clock, settings = Clock(), {**RAMP, "canary_step_seconds": 300}
    async with running(tmp_path, monkeypatch, clock, **settings) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        await one_second(canaries, canaries.process(), bad=0)
        clock.pass_seconds(99)
        await one_second(canaries, canaries.process(), bad=0)
        waits_for = canaries.feature().waits_for
        assert waits_for
        left = int(waits_for.split()[0])
        assert 150 <= left <= 201
    clock.unix += set_by
    async with running(tmp_path, monkeypatch, clock, **settings) as canaries:
        waits_for = canaries.feature().waits_for
        assert waits_for
        assert left - 62 <= int(waits_for.split()[0]) <= left
        await canaries.look(after=300)
        await one_second(canaries, canaries.process(), bad=0)
        assert canaries.feature().share == 0.5


def test_no_decision_follows_a_wall_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Moment.now()
    monkeypatch.setattr(time, "time", lambda: before.unix - 86_400)
    after = Moment.now()
    assert 0 <= after.unix - before.unix < 60
    assert after.slice >= before.slice


async def test_a_paused_ramp_resumes_at_its_step_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        await canaries.service.ramp("vision", "advance", OPERATOR)
        await canaries.service.ramp("vision", "pause", OPERATOR)
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        assert (canaries.feature().stage, canaries.feature().share) == ("paused", 0.5)
        view = await canaries.service.ramp("vision", "resume", OPERATOR)
        assert (view.stage, view.step) == ("ramping", 1)


async def test_an_action_with_an_idempotency_key_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {**RAMP, "canary_ramp": (0.1, 0.2, 0.5, 1.0)}
    async with running(tmp_path, monkeypatch, **more) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        for _ in range(2):
            key = IdempotencyKey("k1", "the request")
            view = await canaries.service.ramp("vision", "advance", OPERATOR, key)
        assert view.step == 1
        assert key.repeated


async def test_an_impossible_action_is_refused_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        with pytest.raises(RefusedError) as caught:
            await canaries.service.ramp("vision", "start", OPERATOR)
        assert (caught.value.status, caught.value.code) == (409, "ramp_not_possible")
        assert "CANARY_RAMP" in caught.value.hint


async def test_a_change_that_can_not_be_written_is_refused_and_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        before = canaries.policy
        with monkeypatch.context() as patch:
            patch.setattr(canaries.state._file, "write", full)
            with pytest.raises(RefusedError) as caught:
                await canaries.service.set_percentage("vision", 0.9, OPERATOR)
        assert (caught.value.status, caught.value.code) == (503, "not_durable")
        assert canaries.policy == before
        assert canaries.feature().share == 0.2


async def test_the_state_file_wins_over_a_database_that_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:

        async def fails(*_: Any) -> None:
            raise StoreError("the database could not be written")

        with monkeypatch.context() as patch:
            patch.setattr(canaries.database.canary, "commit", fails)
            await canaries.service.ramp("vision", "rollback", OPERATOR)
        epoch = canaries.policy.features["vision"].epoch
        assert await canaries.audited() == []
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        assert (canaries.feature().stage, canaries.feature().share) == ("rolled_back", 0.0)
        await canaries.look()
        assert await canaries.audited() == [("canary", "rolled_back", "vision")]
        view = await canaries.service.ramp("vision", "start", OPERATOR)
        assert view.epoch > epoch


# Evidence that continues and evidence that starts anew.


def first_calls_of_keys(process: Process) -> None:
    for key in range(1, 31):
        process.write(EventKind.STARTED, canary=key <= 6, key=key)
        process.write(EventKind.ENDED, canary=key <= 6, key=key)


@pytest.mark.parametrize("between", [0.0, 1.0])
async def test_evidence_starts_anew_after_a_share_that_drew_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: float
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        first_calls_of_keys(canaries.process())
        await canaries.look(after=5)
        before = canaries.feature()
        assert before.judgement.numbers["canary"]["calls"] == 6
        await canaries.service.set_percentage("vision", between, OPERATOR)
        await canaries.service.set_percentage("vision", 0.2, OPERATOR)
        assert canaries.feature().ramp == canaries.feature().epoch > before.epoch
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 0
        first_calls_of_keys(canaries.process())
        await canaries.look(after=5)
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 6


async def test_evidence_starts_anew_after_canaries_were_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        first_calls_of_keys(canaries.process())
        await canaries.look(after=5)
        ramp = canaries.feature().ramp
    async with running(tmp_path, monkeypatch, canary_enabled=False) as canaries:
        assert canaries.feature().ramp == ramp
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.feature().ramp > ramp
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 0


async def test_a_share_set_during_a_ramp_keeps_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP, canary_percentage=0.0) as canaries:
        await canaries.service.ramp("vision", "start", OPERATOR)
        ramp = canaries.feature().ramp
        await canaries.service.set_percentage("vision", 0.3, OPERATOR)
        assert (canaries.feature().share, canaries.feature().ramp) == (0.3, ramp)


async def test_unreadable_evidence_starts_anew_and_the_rest_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        canaries.process().calls(40)
        await canaries.look(after=5)
    unreadable = "UPDATE canary_progress SET value = '{\"vision\": {}}' WHERE name = 'judges'"
    with closing(sqlite3.connect(tmp_path / "atlas.db")) as connection, connection:
        connection.execute(unreadable)
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 0
        assert canaries.service.stats().canary.calls == 40
        canaries.process().calls(10)
        await canaries.look(after=5)
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 10
        assert (await canaries.service.report(1)).features[0].canary.calls == 50


# Too few keys.


async def test_a_ramp_of_too_few_keys_says_so_when_it_starts_and_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        process = canaries.process()
        for _ in range(5):
            first_calls_of_keys(process)
        await canaries.look(after=5)
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        started = await canaries.service.ramp("vision", "start", OPERATOR)
        last = f"{RAMP['canary_ramp'][-2]:.1%}".replace("%", " %")
        assert str(started.shortage).startswith(f"30 keys are too few for a verdict at {last}")
        (suggestion,) = canaries.service.suggestions()
        assert suggestion.code == "canary_too_few_keys"
        assert str(started.shortage) in suggestion.message
        assert canaries.feature().judgement.needs is None
        await canaries.service.set_percentage("vision", 0.3, OPERATOR)
        assert canaries.feature().shortage is None


async def test_a_simulation_is_of_the_ramp_in_the_settings_and_of_longer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, **RAMP) as canaries:
        found = await canaries.service.simulate(300, 0.0, None)
        assert [each.shares for each in found.ramps] == [
            [0.1, 0.5],
            [0.1, 0.5, 0.75],
            [0.1, 0.5, 0.75, 0.9],
        ]
        assert [each.canary_keys for each in found.ramps] == [150, 225, 270]
        assert found.ramps[0].promoted < found.ramps[1].promoted == 1
        with pytest.raises(RefusedError, match="no share below 1"):
            await canaries.service.simulate(300, 0.0, (1.0,))


# Warnings, and the report.


async def test_a_sample_ratio_mismatch_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(100)
        process.calls(100, canary=False)
        await canaries.look(after=5)
        (warning,) = canaries.feature().warnings
        assert "50.0 %" in warning
        assert "20.0 %" in warning
        assert [each.code for each in canaries.service.suggestions()] == ["canary_not_trusted"]
        report = await canaries.service.report(1)
        assert report.features[0].warnings == [warning]


async def test_a_few_keys_that_call_often_are_not_a_sample_ratio_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        for key in range(1, 11):
            process.write(EventKind.STARTED, canary=key < 3, key=key, times=100)
            process.write(EventKind.ENDED, canary=key < 3, key=key, times=100)
        await canaries.look(after=5)
        assert canaries.service.stats().canary.calls == 200
        assert canaries.feature().judgement.numbers["canary"]["calls"] == 2
        assert canaries.feature().warnings == []


async def test_unreported_decisions_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.write(EventKind.ASKED, times=80)
        process.write(EventKind.REPORTED, times=60)
        process.write(EventKind.ASKED, canary=False, times=240)
        process.write(EventKind.REPORTED, canary=False, times=240)
        await canaries.look(after=70)
        unequal, many = canaries.feature().warnings
        assert "the canary arm reports fewer of its decisions" in unequal
        assert "25.0 % of the canary arm's decisions were never reported" in many


async def test_the_sample_ratio_is_that_of_assignments_not_of_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        for key in range(1, 301):
            process.write(EventKind.ASKED, canary=key <= 60, key=key)
        process.write(EventKind.ASKED, times=40)
        process.write(EventKind.ASKED, canary=False, times=160)
        process.write(EventKind.REPORTED, times=40)
        await canaries.look(after=5)
        ratio = canaries.feature().judgement.numbers["sample_ratio"]
        assert (ratio["observed"], ratio["fits"]) == (0.2, True)


async def test_assignment_counts_last_for_a_ramp_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as canaries:
        process = canaries.process()
        process.calls(200)
        process.write(EventKind.ASKED, times=50)
        await canaries.look(after=5)
    async with running(tmp_path, monkeypatch) as canaries:
        assert canaries.feature().judgement.kind == "ratio"
        await canaries.look(after=70)  # decisions before the restart were never reported
        assert canaries.feature().judgement.numbers["unreported_ratio"]["observed"] == 1.0
        await canaries.service.set_percentage("vision", 0, OPERATOR)
        await canaries.service.set_percentage("vision", 0.2, OPERATOR)
        assert canaries.feature().judgement.numbers["sample_ratio"]["observed"] is None


async def test_the_report_compares_within_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, canary_error_threshold=1.0) as canaries:
        process = canaries.process()
        process.calls(20, failed=2)
        process.calls(80, failed=8, canary=False)
        await canaries.look()
        await canaries.service.set_percentage("vision", 0.8, OPERATOR)
        process.calls(80, failed=40)
        process.calls(20, failed=10, canary=False)
        await canaries.look()
        feature = (await canaries.service.report(24)).features[0]
        assert [each.share for each in feature.strata] == [0.2, 0.8]
        assert feature.difference is not None
        assert feature.difference.estimate == pytest.approx(0)
        assert feature.difference.low < 0 < feature.difference.high
        assert feature.canary.error_rate == pytest.approx(0.42)
        assert feature.canary.error_rate_interval is not None


async def test_the_report_covers_the_requested_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, canary_min_calls=10**6) as canaries:
        process = canaries.process()
        for _ in range(72):
            process.calls(1)
            await canaries.look()
            canaries.clock.pass_seconds(3600)
        calls = {}
        for hours in (1, 2, 24, 48, 60, 720):
            report = await canaries.service.report(hours)
            calls[hours] = report.features[0].canary.calls
        assert calls == {1: 1, 2: 2, 24: 24, 48: 48, 60: 60, 720: 72}


# Deleting old counts.

DAY = 86400


@pytest.mark.parametrize(
    ("then", "is_kept"), [(10 * 365 * DAY, True), (40 * DAY, True), (0, False)]
)
async def test_old_counts_are_deleted_but_not_by_a_clock_that_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: int, is_kept: bool
) -> None:
    monkeypatch.setattr(persistence, "_TRIM_SECONDS", 0)
    recorded = time.time() if is_kept else time.time() - 40 * DAY
    clock = Clock(unix=recorded)
    async with running(tmp_path, monkeypatch, clock) as canaries:
        canaries.process().calls(3)
        await canaries.look()
    clock.unix = time.time() + then  # at the next start
    async with running(tmp_path, monkeypatch, clock) as canaries:
        canaries.process().calls(3)
        await canaries.look()
        found = await canaries.database.canary.counts(60, 0, int(recorded) + DAY)
        assert bool(found) is is_kept


async def test_a_start_deletes_no_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(unix=time.time() - 40 * DAY)
    for _ in range(2):
        async with running(tmp_path, monkeypatch, clock) as canaries:
            canaries.process().calls(3)
            await canaries.look()
            assert await canaries.database.canary.counts(60, 0, int(time.time()) - 39 * DAY)
        clock.unix = time.time()
