"""Reports are about the active instance, and never wait for one that hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.health import monitor as monitor_module
from atlas_supervisor.health.worker_checks import ActiveWorker
from atlas_supervisor.model.health import CheckStatus, HealthStatus
from atlas_supervisor.store.state_keeper import UnreadableStateError
from atlas_supervisor.traffic.steering import Split, SteeringPolicy
from tests.harness import eventually
from tests.unit.supervisor.health.support import BLUE, GREEN, telling, watched
from tests.unit.supervisor.probes.fakes import answer, raw, serve, unused_port

PASS, WARN, FAIL, SKIPPED = (
    CheckStatus.PASS,
    CheckStatus.WARN,
    CheckStatus.FAIL,
    CheckStatus.SKIPPED,
)
SILENT = raw(b"", hold=True)
ALL_WELL = dict.fromkeys(("llm_latency", "scheduler", "memory", "db_integrity"), "pass")


async def test_the_score_is_100_when_every_check_of_the_contract_passes(tmp_path: Path) -> None:
    async with serve(telling(**ALL_WELL)) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert (health.score, health.status) == (100, HealthStatus.HEALTHY)
    assert list(health.checks)[:6] == [*ALL_WELL, "port_active", "uptime"]
    assert set(health.checks) == {
        *ALL_WELL, "port_active", "uptime", "database", "disk_free", "steering", "canaries"
    }  # fmt: skip
    assert {check.status for check in health.checks.values()} == {PASS}
    assert (health.slot, health.version) == (BLUE, "v1")
    assert health.age_seconds is not None


async def test_a_server_without_reported_checks_is_scored_from_outside(tmp_path: Path) -> None:
    async with serve(answer(b"<html>")) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert {health.checks[name].status for name in ALL_WELL} == {SKIPPED}
    assert health.score == 100


async def test_a_failed_check_of_the_worker_lowers_the_score(tmp_path: Path) -> None:
    handler = telling(**{**ALL_WELL, "memory": "fail", "scheduler": "skipped"})
    async with serve(handler) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert (health.score, health.status) == (60, HealthStatus.DEGRADED)
    assert health.checks["memory"].status is FAIL


async def test_the_worker_is_probed_on_its_own_port_and_through_the_public_one(
    tmp_path: Path,
) -> None:
    async with (
        serve(answer()) as own,
        serve(answer()) as public,
        watched(tmp_path, own.port, public_port=public.port) as it,
    ):
        health = await it.seen()
        assert public.requests == own.requests  # the same one, with the same Host
    assert health.checks["port_active"].status is PASS
    assert f"Host: 127.0.0.1:{own.port}\r\n".encode() in own.requests[0]


async def test_a_hold_is_no_fault_of_the_public_port(tmp_path: Path) -> None:
    nowhere = unused_port()
    async with serve(answer()) as own, watched(tmp_path, own.port, public_port=nowhere) as it:
        it.plane.held = True
        it.monitor.switched()
        health = await it.until("port_active", "pass")
    assert health.checks["port_active"].message.endswith("new connections are held")


async def test_in_a_split_either_instance_may_answer_on_the_public_port(tmp_path: Path) -> None:
    async with (
        serve(telling(instance="blue-1", **ALL_WELL)) as own,
        serve(telling(instance="green-7", **ALL_WELL)) as public,
        watched(tmp_path, own.port, public_port=public.port) as it,
    ):
        it.plane.policy = SteeringPolicy(BLUE, split=Split(0.05))
        it.monitor.switched()
        await it.until("port_active", "pass")
        it.plane.policy = SteeringPolicy(BLUE)
        it.monitor.switched()
        await it.until("port_active", "fail")


async def test_a_public_port_that_leads_nowhere_is_unhealthy(tmp_path: Path) -> None:
    nowhere = unused_port()
    async with serve(answer()) as own, watched(tmp_path, own.port, public_port=nowhere) as it:
        health = await it.seen()
    assert (health.score, health.status) == (0, HealthStatus.UNHEALTHY)
    assert health.checks["port_active"].message.startswith(f"port {nowhere}, /health: ")


async def test_a_public_port_on_which_another_instance_answers_is_unhealthy(
    tmp_path: Path,
) -> None:
    async with (
        serve(telling(instance="blue-1", **ALL_WELL)) as own,
        serve(telling(instance="green-7", **ALL_WELL)) as public,
        watched(tmp_path, own.port, public_port=public.port) as it,
    ):
        health = await it.seen()
    assert health.checks["port_active"].status is FAIL
    assert "⟦'green-7'⟧, expected 'blue-1'" in health.checks["port_active"].message
    assert health.checks["memory"].status is PASS


async def test_checks_of_an_unexpected_instance_are_ignored(tmp_path: Path) -> None:
    handler = telling(instance="other-1", **ALL_WELL)
    async with serve(handler) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert health.checks["port_active"].status is FAIL
    assert health.checks["memory"].status is SKIPPED


async def test_a_worker_that_answers_503_with_a_failed_check_warns_on_port_active(
    tmp_path: Path,
) -> None:
    handler = telling("503 Service Unavailable", **{**ALL_WELL, "scheduler": "fail"})
    async with serve(handler) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert health.checks["scheduler"].status is FAIL
    assert health.checks["port_active"].status is WARN
    assert "answered 503" in health.checks["port_active"].message
    assert health.status is HealthStatus.DEGRADED


async def test_a_foreign_server_that_answers_503_fails(tmp_path: Path) -> None:
    broken = answer(b"no", status="503 Service Unavailable")
    async with serve(broken) as server, watched(tmp_path, server.port) as it:
        health = await it.seen()
    assert health.status is HealthStatus.UNHEALTHY


async def test_reports_do_not_wait_for_a_hanging_worker_and_probes_do_not_pile_up(
    tmp_path: Path,
) -> None:
    async with (
        serve(SILENT) as own,
        serve(SILENT) as public,
        watched(tmp_path, own.port, public_port=public.port, health_timeout_seconds=60) as it,
    ):
        with anyio.fail_after(10):
            reports = await asyncio.gather(*(it.monitor.report() for _ in range(200)))
            for _ in range(200):
                await it.monitor.report()
        assert (own.connections, public.connections) == (1, 1)
    assert {health.checks["port_active"].status for health in reports} == {WARN}
    assert "has not answered yet" in reports[0].checks["port_active"].message
    assert reports[0].age_seconds is None


async def test_a_hanging_worker_fails_after_the_time_out(tmp_path: Path) -> None:
    async with (
        serve(SILENT) as server,
        watched(tmp_path, server.port, health_timeout_seconds=0.2) as it,
    ):
        health = await it.until("port_active", "fail")
    assert "no answer within 0.2 s" in health.checks["port_active"].message
    assert health.status is HealthStatus.UNHEALTHY


async def test_the_last_result_is_reported_while_the_next_check_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "INTERVAL_SECONDS", 0.01)
    handlers = iter([telling(**ALL_WELL)])

    async def then_silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        await next(handlers, SILENT)(request, writer)

    async with (
        serve(then_silent) as server,
        watched(tmp_path, server.port, health_timeout_seconds=60) as it,
    ):
        first = await it.seen()
        await eventually(lambda: server.connections == 2)
        second = await it.seen()
        while (second.age_seconds or 0) <= (first.age_seconds or 0):  # in milliseconds
            second = await it.seen()
    assert second.checks["memory"].status is PASS


async def test_after_a_switch_the_next_answer_is_about_the_new_instance(tmp_path: Path) -> None:
    async with (
        serve(telling(memory="fail")) as old,
        serve(telling(memory="pass")) as new,
        watched(tmp_path, old.port) as it,
    ):
        assert (await it.seen()).checks["memory"].status is FAIL
        it.subject = ActiveWorker(GREEN, new.port, "green-1", "v2")
        assert it.monitor.health().checks["memory"].status is SKIPPED  # not the old one's
        health = await it.seen()
    assert (health.slot, health.version) == (GREEN, "v2")
    assert health.checks["memory"].status is PASS


async def test_a_switch_away_from_a_worker_that_hangs_does_not_wait_for_it(tmp_path: Path) -> None:
    async with (
        serve(SILENT) as old,
        serve(telling(memory="pass")) as new,
        watched(tmp_path, old.port, health_timeout_seconds=60) as it,
    ):
        await eventually(lambda: old.connections == 1)
        it.subject = ActiveWorker(GREEN, new.port, "green-1", "v2")
        it.monitor.switched()
        assert (await it.seen()).checks["memory"].status is PASS


async def test_another_instance_in_the_same_slot_is_checked_anew(tmp_path: Path) -> None:
    async with serve(answer()) as server, watched(tmp_path, server.port) as it:
        await it.seen()
        it.subject = ActiveWorker(BLUE, server.port, "blue-2", "v1")
        await it.seen()
        assert server.connections == 2


async def test_without_a_worker_it_is_unhealthy_at_once_with_the_reason(tmp_path: Path) -> None:
    async with serve(answer()) as server, watched(tmp_path, server.port) as it:
        assert (await it.seen()).score == 100
        it.subject = ActiveWorker(BLUE, server.port, None, absence="blue is backoff")
        health = await it.monitor.report()
    assert (health.score, health.status) == (0, HealthStatus.UNHEALTHY)
    assert health.checks["port_active"].message == "blue is backoff"
    assert {health.checks[name].status for name in ALL_WELL} == {SKIPPED}
    assert health.age_seconds is None


async def test_before_the_first_check_nothing_passes(tmp_path: Path) -> None:
    async with serve(SILENT) as server, watched(tmp_path, server.port) as it:
        health = it.monitor.health()  # its task has not had a turn yet
    assert health.checks["database"].status is SKIPPED
    assert health.checks["port_active"].status is WARN
    assert health.status is HealthStatus.DEGRADED


async def test_a_hanging_database_warns_and_then_fails_without_delaying_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "OVERDUE_WARN_SECONDS", 0.05)
    monkeypatch.setattr(monitor_module, "OVERDUE_FAIL_SECONDS", 0.3)
    async with serve(answer()) as server, watched(tmp_path, server.port) as it:
        async with it.database.statements._using:  # as a long write does
            it.monitor._daemon["database"].restart()
            warned = await it.until("database", "warn")
            failed = await it.until("database", "fail")
        await it.until("database", "pass")
    assert "no result for" in warned.checks["database"].message
    assert warned.checks["steering"].status is PASS
    assert failed.status is HealthStatus.DEGRADED


async def test_the_monitor_survives_an_unreadable_state_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "INTERVAL_SECONDS", 0.01)
    async with serve(answer()) as server, watched(tmp_path, server.port) as it:
        await it.until("steering", "pass")
        it.file.path.write_bytes(b"{")
        health = await it.until("steering", "fail")
        with pytest.raises(UnreadableStateError):
            it.file.read()
        await it.state.change()
        await it.until("steering", "pass")
    assert "the state file is no valid state" in health.checks["steering"].message
    assert health.status is HealthStatus.UNHEALTHY
