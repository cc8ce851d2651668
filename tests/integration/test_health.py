"""`GET /health` of a real daemon: whom it is about, whom nobody waits for, what fails a gate."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness import DaemonProcess, Setting
from tests.integration.support import (
    SCRIPTED,
    everything_agrees,
    get,
    public_version,
    release,
    scripted_daemon,
    slot,
    until_phase,
)
from tests.unit.worker.fakes import language_model

OWN = {"database", "disk_free", "steering", "canaries", "port_active", "uptime"}
TOLD = {"llm_latency", "scheduler", "memory", "db_integrity"}
HUNG: dict[str, Setting] = {"HEALTH_TIMEOUT_SECONDS": 60, "LIVENESS_INTERVAL_SECONDS": 3600}


def telling(**checks: str) -> dict[str, Any]:
    """Return a worker's health with these checks, each with a message of its own."""
    return {
        "checks": {name: {"status": word, "message": f"{name}!"} for name, word in checks.items()}
    }


async def health(daemon: DaemonProcess) -> dict[str, Any]:
    answer = await daemon.request("GET", "/health")
    assert answer.status == (503 if answer.json["status"] == "unhealthy" else 200)
    told: dict[str, Any] = answer.json
    return told


async def until(daemon: DaemonProcess, check: str, status: str) -> dict[str, Any]:
    """Wait until a check has this status, and return the whole."""
    async with asyncio.timeout(10):
        while True:
            told = await health(daemon)
            if told["checks"][check]["status"] == status:
                return told
            await asyncio.sleep(0.02)


async def ask(port: int) -> dict[str, Any]:
    """Ask the bundled worker's language model something."""
    url = f"http://127.0.0.1:{port}/ask"
    async with aiohttp.ClientSession() as session, session.post(url, json={"prompt": "?"}) as got:
        answer: dict[str, Any] = await got.json()
        return answer


async def asked(daemon: DaemonProcess) -> int:
    """Return how often the active worker was asked for its health."""
    count: int = (await get(daemon.public_port))[1]["health_asked"]
    return count


def statuses(told: dict[str, Any]) -> dict[str, str]:
    return {name: check["status"] for name, check in told["checks"].items()}


async def test_the_bundled_worker_tells_all_that_it_sees_and_is_healthy(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path) as daemon:
        told = await until(daemon, "memory", "pass")
        assert statuses(told) == {**dict.fromkeys(OWN | TOLD, "pass"), "llm_latency": "skipped"}
        assert (told["score"], told["status"]) == (100, "healthy")
        assert (told["slot"], told["version"]) == ("blue", "v1")
        assert (await daemon.status())["health_score"] == 100
        over_tcp = await daemon.request_tcp("GET", "/health", token="")
        assert over_tcp.json["score"] == 100  # reading is open


async def test_the_language_models_latency_comes_through_and_its_failure_stops_no_deploy(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("sesame")
    async with language_model() as model:
        settings: dict[str, Setting] = {"LLM_URL": model.url, "LLM_API_KEY_FILE": key}
        async with DaemonProcess.running(tmp_path, settings) as daemon:
            assert (await ask(daemon.public_port))["answer"] == "Forty-two."
            assert model.keys == ["Bearer sesame"]
            told = await until(daemon, "llm_latency", "pass")
            assert told["checks"]["llm_latency"]["value"] > 0
            model.behaviour = "500"
            for _ in range(3):
                assert (await ask(daemon.public_port))["error"]["code"] == "llm_failed"
            told = await until(daemon, "llm_latency", "fail")
            assert (told["score"], told["status"]) == (75, "degraded")
            assert (await daemon.deploy()).status == 200


async def test_the_integrity_check_is_skipped_when_the_scheduler_is_off(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, {"SCHEDULER_ENABLED": "false"}) as daemon:
        told = await until(daemon, "memory", "pass")
        assert told["checks"]["scheduler"]["status"] == "skipped"
        assert told["checks"]["db_integrity"]["status"] == "skipped"
        assert told["score"] == 100


async def test_a_worker_that_binds_its_port_is_looked_at_through_the_relay(tmp_path: Path) -> None:
    by_port: dict[str, Setting] = {"WORKER_COMMAND": f"{SCRIPTED} --port {{port}}"}
    async with scripted_daemon(tmp_path, by_port) as daemon:
        told = await until(daemon, "port_active", "pass")
        assert "the public one" in told["checks"]["port_active"]["message"]
        assert (await daemon.status())["traffic"]["plane"] == "relay"


async def test_without_a_public_port_the_own_one_is_enough(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"PUBLIC_PORT": 0}) as daemon:
        told = await until(daemon, "port_active", "pass")
        assert "no other" in told["checks"]["port_active"]["message"]


async def test_a_foreign_server_is_scored_on_what_is_seen_whatever_it_tells_and_when_it_is_dead(
    tmp_path: Path,
) -> None:
    body = (
        '{"checks": {"scheduler": {"status": "pass", "value": NaN, "message": 7, "unit": []},'
        ' "memory": {"status": "fine", "message": "\\u001b[2J\\ud800"},'
        ' "port_active": {"status": "fail"}, "db_integrity": ' + "[" * 20_000
    )
    async with scripted_daemon(tmp_path) as daemon:
        told = await until(daemon, "port_active", "pass")
        assert {statuses(told)[name] for name in TOLD} == {"skipped"}
        assert told["score"] == 100
        for version, text in (("v2", body), ("v3", body[: body.index(', "db')] + "}}")):
            release(daemon, version, health_body=text)
            assert (await daemon.deploy()).status == 200
            told = await until(daemon, "port_active", "pass")
            assert (told["version"], told["score"]) == (version, 100)
        assert statuses(told)["scheduler"] == "pass"
        assert statuses(told)["memory"] == "skipped"

        # Dead, it is unhealthy at once, and says why.
        await until(daemon, "port_active", "pass")
        await until_phase(daemon, "ended")  # until then the version before would take over
        release(daemon, "v3", exit=3)
        os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
        told = await until(daemon, "port_active", "fail")
        assert (told["score"], told["status"]) == (0, "unhealthy")
        assert "blue is " in told["checks"]["port_active"]["message"]
        assert "the last time" in told["checks"]["port_active"]["message"]
        assert (await daemon.status())["health_score"] == 0
        release(daemon, "v3")
        assert (await until(daemon, "port_active", "pass"))["score"] == 100


async def test_a_worker_that_hangs_in_its_health_costs_the_supervisor_nothing(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, HUNG) as daemon:
        await until(daemon, "port_active", "pass")
        before = await asked(daemon)
        (daemon.worker_directory / "hang").touch()
        # It is looked at every two seconds: once the last look is older than that, one hangs.
        while ((await health(daemon))["age_seconds"]) < 3:  # noqa: ASYNC110  # another's doing
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):  # the look itself has a minute
            for _ in range(100):
                assert (await health(daemon))["checks"]["port_active"]["status"] == "pass"
                assert (await daemon.request("GET", "/readyz")).status == 200
                assert (await daemon.status())["health_score"] == 100
        # One look on both ways hangs, and one may have been answered before it.
        assert await asked(daemon) - before <= 4
        (daemon.worker_directory / "hang").unlink()


async def test_a_new_version_that_hangs_at_once_is_said_to_have_answered_nothing(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {**HUNG, "HEALTH_PROBES": 1, "DRAIN_TIMEOUT_SECONDS": 1}
    async with scripted_daemon(tmp_path, settings) as daemon:
        # Two answers: the one that makes it ready, and the gate's.
        release(daemon, "v2", stop_after_health=2)
        assert (await daemon.deploy()).status == 200
        assert statuses(await health(daemon))["port_active"] in {"skipped", "warn"}
        await until(daemon, "port_active", "warn")
        async with asyncio.timeout(10):
            for _ in range(50):
                told = await health(daemon)
                assert (told["version"], told["age_seconds"]) == ("v2", None)
                assert statuses(told)["port_active"] == "warn"
                assert (await daemon.status())["health_score"] == told["score"]


async def test_a_hang_is_found_out_and_its_end_too(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {**HUNG, "HEALTH_TIMEOUT_SECONDS": 0.3}
    async with scripted_daemon(tmp_path, settings) as daemon:
        (daemon.worker_directory / "hang").touch()
        told = await until(daemon, "port_active", "fail")
        assert told["status"] == "unhealthy"
        assert "no answer within 0.3 s" in told["checks"]["port_active"]["message"]
        (daemon.worker_directory / "hang").unlink()
        await until(daemon, "port_active", "pass")


async def test_each_answer_after_a_switch_is_about_the_version_that_has_the_traffic(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {"KEEP_WARM_SECONDS": 60, "KEEP_WARM_FOREIGN": "true"}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", health_body=telling(memory="warn"))
        for version, memory in (("v2", "warn"), ("v3", "pass"), ("v4", "warn")):
            release(daemon, version, health_body=telling(memory=memory))
            assert (await daemon.deploy()).status == 200
            told = await health(daemon)
            assert told["version"] == version
            assert told["checks"]["memory"]["status"] in {memory, "skipped"}  # never the old one's
            await until(daemon, "memory", memory)
        assert (await daemon.request("POST", "/deploy/rollback")).status == 200
        assert (await health(daemon))["version"] == "v3"
        await until(daemon, "memory", "pass")


async def test_a_release_that_says_it_is_broken_fails_the_gate_by_name_but_not_by_a_warning(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        for name, status, words in (
            ("scheduler", 200, "answered 200, and reports: scheduler failed: scheduler!"),
            ("db_integrity", 200, "answered 200, and reports: db_integrity failed: db_integrity!"),
            ("memory", 503, "answered 503, expected 2xx: memory failed: memory!"),
        ):
            release(daemon, f"with {name}", health=status, health_body=telling(**{name: "fail"}))
            answer = await daemon.deploy()
            assert (answer.status, answer.json["result"]) == (422, "failed")
            step = answer.json["steps"][-1]
            assert (step["name"], step["ok"]) == ("health", False)
            assert words in step["detail"]["message"]
            assert (await daemon.status())["mode"] == "single"
            await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)

        # Nor by a language model that is down.
        body = telling(memory="warn", scheduler="skipped", llm_latency="fail")
        release(daemon, "v2", health_body=body)
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (200, "switched")
        told = await until(daemon, "llm_latency", "fail")
        assert told["status"] == "degraded"
        assert told["checks"]["llm_latency"]["message"] == "llm_latency!"


async def test_a_running_version_that_says_it_is_broken_is_told_and_not_restarted(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {"LIVENESS_INTERVAL_SECONDS": 0.05, "LIVENESS_FAILURES": 1}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v1", health_body=telling(memory="fail"))
        pid = slot(await daemon.status(), "active")["pid"]
        os.kill(pid, signal.SIGKILL)  # it comes back as what would not pass a gate
        told = await until(daemon, "memory", "fail")
        assert (told["score"], told["status"]) == (60, "degraded")
        began = await asked(daemon)
        while await asked(daemon) < began + 5:  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.02)
        assert slot(await daemon.status(), "active")["restarts"] == 1
