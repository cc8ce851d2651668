"""Feature canaries end to end: real processes with the kit, a real daemon, its API and client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import caller, scripted_daemon

ON: dict[str, Setting] = {"CANARY_ENABLED": "true", "CANARY_PERCENTAGE": 0.5}


def state_of(daemon: DaemonProcess) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((daemon.state_dir / "deploy_state.json").read_text())
    return state


async def arms(daemon: DaemonProcess) -> dict[str, Any]:
    stats: dict[str, Any] = (await daemon.status())["canary_stats"]
    return stats


async def until_counted(daemon: DaemonProcess, calls: int) -> dict[str, Any]:
    """Wait for this many calls of both arms, and return the statistics."""
    async with asyncio.timeout(20):
        while True:
            stats = await arms(daemon)
            if stats["canary"]["calls"] + stats["stable"]["calls"] >= calls:
                return stats
            await asyncio.sleep(0.05)


async def test_calls_of_a_process_show_in_status_report_and_metrics(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, ON) as daemon, caller(daemon) as process:
        assert await process.send("calls", 400, "good") == "done"
        stats = await until_counted(daemon, 400)
        canary, stable = stats["canary"], stats["stable"]
        assert canary["calls"] + stable["calls"] == 400
        assert canary["errors"] == stable["errors"] == 0
        assert stats["features"]["vision"] == {"canary": canary, "stable": stable}
        assert 0 < canary["latency_ms"]["p50"] <= canary["latency_ms"]["p99"]
        report = (await daemon.request("GET", "/deploy/canary/report", params={"hours": 1})).json
        vision = next(each for each in report["features"] if each["feature"] == "vision")
        assert vision["canary"]["calls"] == canary["calls"]
        assert vision["strata"][0]["share"] == 0.5
        metrics = (await daemon.request("GET", "/metrics")).json
        assert f"canary_requests {canary['calls']}.0" in metrics
        assert f'canary_vision_count{{arm="stable"}} {stable["calls"]}.0' in metrics


@pytest.mark.fault(
    "The daemon", "killed while a canary is latched", "it stays latched until a reset"
)
async def test_the_fallback_reaches_processes_survives_a_killed_daemon_and_can_be_reset(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, ON) as daemon, caller(daemon) as process:
        assert await process.send("enabled") == "True"
        assert await process.send("calls", 200, "bad") == "done"
        await eventually(lambda: state_of(daemon)["canary_disabled_fallback"])
        await daemon.kill()
        await process.until("enabled", "False")

        await daemon.start()
        view = (await daemon.request("GET", "/deploy/canary")).json
        assert view["canary_disabled_fallback"]
        assert view["fallback"]["canary"]["error_rate"] == 1.0
        assert view["fallback"]["stable"]["errors"] == 0
        codes = [each["code"] for each in (await daemon.status())["fallback_suggestions"]]
        assert codes == ["canary_fallback"]
        assert await process.send("calls", 50, "bad") == "done"
        assert (await daemon.request("POST", "/deploy/canary/reset")).json["enabled"]
        await process.until("enabled", "True")
        audit = (await daemon.request("GET", "/deploy/audit")).json["entries"]
        done = [(each["action"], each["outcome"]) for each in audit]
        assert ("canary_fallback", "latched") in done
        assert ("canary_reset", "done") in done


async def test_a_call_fails_with_its_process(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, ON) as daemon, caller(daemon) as process:
        opened = [await process.send("open") for _ in range(6)]
        process.process.kill()
        stats = await until_counted(daemon, 6)
        assert stats["canary"]["errors"] == opened.count("canary")
        assert stats["stable"]["errors"] == opened.count("stable")


async def test_nothing_is_lost_while_the_daemon_is_away(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, ON) as daemon, caller(daemon) as process:
        assert await process.send("calls", 100, "good") == "done"
        await until_counted(daemon, 100)
        await daemon.kill()
        assert await process.send("calls", 1000, "good") == "done"

        await daemon.start()
        stats = await until_counted(daemon, 1100)
        assert stats["canary"]["calls"] + stats["stable"]["calls"] == 1100
        assert (await daemon.request("GET", "/deploy/canary")).json["dropped_events"] == 0


async def test_a_raised_share_takes_no_key_out(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, ON) as daemon, caller(daemon) as process:
        before = int(await process.send("keys", 500))
        answer = await daemon.request("PUT", "/deploy/canary/web", json={"percentage": 0.8})
        assert answer.json["share"] == 0.8
        after = before
        async with asyncio.timeout(10):
            while after == before:
                after = int(await process.send("keys", 500))
        assert 180 < before < 320
        assert 350 < after < 450


async def test_a_canary_is_controlled_over_http_and_bad_input_is_refused(tmp_path: Path) -> None:
    ramp: dict[str, Setting] = {**ON, "CANARY_RAMP": "0.1,0.5,1"}
    async with scripted_daemon(tmp_path, ramp) as daemon:
        path = "/deploy/canary/vision/ramp"
        started = await daemon.request("POST", path, json={"action": "start"})
        assert (started.json["share"], started.json["stage"]) == (0.1, "ramping")
        assert state_of(daemon)["canary"]["features"]["vision"]["share"] == 0.1
        promoted = await daemon.request("POST", path, json={"action": "promote"})
        assert promoted.json["share"] == 1.0
        for answer, status in (
            (await daemon.request("POST", path, json={"action": "pause"}), 409),
            (await daemon.request("POST", path, json={"action": "explode"}), 400),
            (await daemon.request("PUT", "/deploy/canary/nope", json={"percentage": 0.1}), 404),
            (await daemon.request("PUT", "/deploy/canary/vision", json={"percentage": 1.5}), 400),
            (await daemon.request("PUT", "/deploy/canary/vision", json={}), 400),
            (await daemon.request("GET", "/deploy/canary/report", params={"hours": 721}), 400),
        ):
            assert answer.status == status, answer
            assert answer.json["error"]["hint"]
