"""A deploy from request to end, good and bad, against a real daemon and real workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness import Setting
from tests.integration.support import (
    ask_to_die,
    everything_agrees,
    get,
    public_version,
    release,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
)


async def test_a_good_version_goes_through_every_step_and_gets_all_traffic_in_either_slot(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await daemon.status()
        release(daemon, "v2")
        answer = await daemon.deploy()
        assert answer.status == 200
        record = answer.json
        assert record["result"] == "switched"
        assert record["version"] == "v2"
        assert record["active_port"] == before["staging_port"]
        assert record["staging_port"] == before["active_port"]
        ended = await daemon.ended(record["deploy_id"])
        names = [step["name"] for step in ended["steps"]]
        assert names == ["preflight", "launch", "smoke", "health", "switch", "guard", "drain"]
        assert all(step["ok"] for step in ended["steps"])
        assert ended["result"] == "switched"
        assert ended["reason"] is None
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)
        after = await daemon.status()
        assert slot(after, "staging")["state"] == "empty"
        assert after["mode"] == "bluegreen"
        assert after["deploy_in_progress"] is False
        assert state_file(daemon)["last_switch_ts"] is not None

        ports = {after["active_port"]}
        for number in range(3, 6):
            release(daemon, f"v{number}")
            assert (await daemon.deploy()).status == 200
            assert await public_version(daemon) == f"v{number}"
            ports.add((await daemon.status())["active_port"])
        assert len(ports) == 2
        await everything_agrees(daemon)


async def test_a_version_that_fails_its_health_or_dies_at_its_start_never_sees_a_user(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await daemon.status()
        release(daemon, "v2", health=500)
        answer = await daemon.deploy()
        assert answer.status == 422
        assert answer.json["result"] == "failed"
        assert answer.json["error"]["code"] == "release_did_not_pass"
        step = answer.json["steps"][-1]
        assert (step["name"], step["ok"]) == ("health", False)
        assert "answered 500, expected 2xx" in step["detail"]["message"]
        assert step["detail"]["probes"][-1]["excerpt"] == '{"status": "whatever"}'
        after = await daemon.status()
        assert after["active_port"] == before["active_port"]
        assert after["mode"] == "single"
        (suggestion,) = after["fallback_suggestions"]
        assert suggestion == {
            "code": "mode_is_single",
            "message": f"Deploys are disabled: deploy {answer.json['deploy_id']} failed at health.",
            "action": "Re-enable with `atlasctl mode bluegreen`.",
        }
        assert slot(after, "staging")["state"] == "empty"
        assert await public_version(daemon) == "v1"
        assert rows(daemon, "SELECT subject FROM audit WHERE action = 'rollback'") == [
            (answer.json["deploy_id"],)
        ]
        await everything_agrees(daemon)

        refused = await daemon.deploy()
        assert (refused.status, refused.json["error"]["code"]) == (409, "mode_is_single")
        reset = await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        assert reset.status == 200

        release(daemon, "v2", exit=3, say="no such table: users")
        answer = await daemon.deploy()
        assert answer.status == 422
        step = answer.json["steps"][-1]
        assert step["name"] == "launch"
        assert "exited with status 3" in step["detail"]["message"]
        assert step["detail"]["output"] == ["no such table: users"]
        assert await public_version(daemon) == "v1"

        await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        release(daemon, "v3")
        assert (await daemon.deploy()).status == 200


@pytest.mark.fault(
    "Workers",
    "the staging one dies during its gates",
    "the deploy fails, and clients notice nothing",
)
async def test_a_version_that_dies_during_its_gates_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"HEALTH_PROBES": 20}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", die_after_health=4)
        answer = await daemon.deploy()
        assert answer.status == 422
        assert answer.json["result"] == "failed"
        assert (await daemon.status())["mode"] == "single"
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


async def test_a_failing_smoke_test_says_what_was_expected_and_what_came(tmp_path: Path) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(
        '[[http]]\nname = "home"\npath = "/"\nexpect = { contains = "golden" }\n'
        '[[command]]\nname = "passes"\nrun = ["true"]\n'
    )
    async with scripted_daemon(tmp_path, {"SMOKE_FILE": smoke}) as daemon:
        release(daemon, "v2")
        answer = await daemon.deploy()
        assert answer.status == 422
        home, passes = answer.json["steps"][-1]["detail"]["checks"]
        assert (home["name"], home["ok"], passes["ok"]) == ("home", False, True)
        assert "golden" in home["expected"]
        assert "v2" in home["got"]


async def test_a_smoke_file_that_was_broken_later_stops_the_deploy_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text('[[http]]\nname = "home"\npath = "/"\n')
    async with scripted_daemon(tmp_path, {"SMOKE_FILE": smoke}) as daemon:
        smoke.write_text("[[http]]\nnmae = 'home'\n")
        answer = await daemon.deploy()
        assert answer.status == 422
        assert [step["name"] for step in answer.json["steps"]] == ["preflight"]
        assert (await daemon.status())["mode"] == "bluegreen"


async def test_an_unknown_release_an_empty_slot_s_port_and_a_dry_run_change_nothing(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        answer = await daemon.deploy("v9")
        assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_release")
        assert rows(daemon, "SELECT * FROM deploys") == []

        reader, writer = await asyncio.open_connection(
            "127.0.0.1", (await daemon.status())["staging_port"]
        )
        assert await reader.read() == b""
        writer.close()

        release(daemon, "v2")
        good = await daemon.deploy(dry_run="true")
        assert (good.status, good.json["result"], good.json["dry_run"]) == (
            200,
            "dry_run_passed",
            True,
        )
        assert [step["name"] for step in good.json["steps"]][-1] == "health"
        release(daemon, "v3", health=503)
        bad = await daemon.deploy(dry_run="true")
        assert (bad.status, bad.json["result"]) == (422, "failed")
        status = await daemon.status()
        assert status["mode"] == "bluegreen"
        assert slot(status, "staging")["state"] == "empty"
        assert await public_version(daemon) == "v1"


async def test_a_deploy_waits_for_the_operator_who_lets_it_switch(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        release(daemon, "v2")
        waiting = await daemon.deploy()
        assert (waiting.status, waiting.json["result"]) == (200, "awaiting_switch")
        assert await public_version(daemon) == "v1"
        status = await daemon.status()
        assert status["deploy_in_progress"] is True
        assert (await get(status["staging_port"]))[1]["version"] == "v2"
        second = await daemon.deploy()
        assert (second.status, second.json["error"]["code"]) == (409, "deploy_in_progress")
        switched = await daemon.request("POST", "/deploy/switch")
        assert (switched.status, switched.json["result"]) == (200, "switched")
        assert await public_version(daemon) == "v2"
        again = await daemon.request("POST", "/deploy/switch")
        assert (again.status, again.json["error"]["code"]) == (409, "nothing_to_switch")


async def test_a_waiting_version_that_dies_fails_the_deploy(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        release(daemon, "v2", die_on="/die")
        await daemon.deploy()
        await ask_to_die((await daemon.status())["staging_port"])
        record = await until_phase(daemon, "ended")
        assert record["result"] == "failed"
        assert "exited with status 9" in record["reason"]
        assert (await daemon.status())["mode"] == "single"


@pytest.mark.fault("Requests", "two deploys at once", "one deploy, and one refusal")
async def test_two_deploys_at_once_are_one_and_a_refusal_and_one_not_waited_for_can_be_followed(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        answers = await asyncio.gather(*(daemon.deploy() for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
        ((first,),) = rows(daemon, "SELECT deploy_id FROM deploys")

        release(daemon, "v3")
        begun = await daemon.deploy(wait="false")
        assert begun.status == 202
        assert begun.headers["Location"] == begun.json["deploy_id"]
        assert begun.json["result"] is None
        assert (await daemon.ended(begun.json["deploy_id"]))["result"] == "switched"
        history = (await daemon.request("GET", "/deploy/history")).json["deploys"]
        assert [each["deploy_id"] for each in history] == [begun.json["deploy_id"], first]


@pytest.mark.fault(
    "Disk and files",
    "a state file that can't be written at the switch",
    "there is no switch, and it can be tried again",
)
async def test_a_switch_whose_state_can_not_be_written_is_none_and_can_be_tried_again(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health_delay=0.1)
        before = state_file(daemon)
        deploying = asyncio.create_task(daemon.deploy())
        await until_phase(daemon, "health")
        in_the_way = daemon.state_dir / ".deploy_state.json.new"
        in_the_way.mkdir()
        answer = await deploying
        assert (answer.status, answer.json["error"]["code"]) == (503, "switch_failed")
        assert answer.json["result"] == "awaiting_switch"
        after = state_file(daemon)
        assert after["active_port"] == before["active_port"]
        assert after["mode"] == "bluegreen"
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)
        outcomes = rows(daemon, "SELECT outcome FROM audit WHERE action = 'switch'")
        assert outcomes == [("failed",)]

        still = await daemon.request("POST", "/deploy/switch")
        assert (still.status, still.json["error"]["code"]) == (503, "switch_failed")
        in_the_way.rmdir()
        again = await daemon.request("POST", "/deploy/switch")
        assert (again.status, again.json["result"]) == (200, "switched")
        assert again.json["reason"] is None
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)


@pytest.mark.fault("Workers", "one that ignores SIGTERM", "it is killed when its time is over")
async def test_a_stubborn_old_version_is_killed_in_the_end(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"STOP_TIMEOUT_SECONDS": 0.5}) as daemon:
        release(daemon, "v2", ignore_sigterm=True)
        assert (await daemon.deploy()).status == 200
        release(daemon, "v3")
        answer = await daemon.deploy()
        assert answer.status == 200
        ended = await daemon.ended(answer.json["deploy_id"])
        assert ended["steps"][-1]["detail"]["by_itself"] is False
        assert len(daemon.leftovers()) == 1


async def test_a_worker_that_dies_at_sigterm_gives_its_answers_before_it_gets_one(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        slow = asyncio.create_task(get(daemon.public_port, "/slow"))
        release(daemon, "v2")
        answer = await daemon.deploy()
        assert answer.json["result"] == "switched"
        status, body = await slow
        assert (status, body["version"]) == (200, "v1")
        await daemon.ended(answer.json["deploy_id"])


@pytest.mark.fault(
    "Workers", "a drain that never ends", "it delays no next deploy, and is cut off at its deadline"
)
async def test_a_client_that_never_ends_delays_no_next_deploy(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        _, writer = await asyncio.open_connection("127.0.0.1", daemon.public_port)
        writer.write(b"GET / HTTP/1.1\r\nHost: half a requ")
        await writer.drain()
        release(daemon, "v2")
        first = await daemon.deploy()
        record = await until_phase(daemon, "drain")
        release(daemon, "v3")
        second = await daemon.deploy()
        assert (record["deploy_id"], second.json["result"]) == (first.json["deploy_id"], "switched")
        assert second.json["steps"][0]["detail"]["waited_ms"] < 10_000
        writer.close()


async def test_with_AFTER_FAILURE_stay_a_failed_deploy_does_not_disable_deploys(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {"AFTER_FAILURE": "stay", "HEALTH_PROBES": 1}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", health=500)
        failed = await daemon.deploy()
        assert (failed.status, failed.json["result"]) == (422, "failed")
        status = await daemon.status()
        assert status["mode"] == "bluegreen"
        assert [each["code"] for each in status["fallback_suggestions"]] == ["last_deploy_failed"]
        assert rows(daemon, "SELECT outcome FROM audit WHERE action = 'mode'") == []
        release(daemon, "v3")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert (await daemon.status())["fallback_suggestions"] == []


async def test_in_single_mode_no_deploy_is_taken(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"DEPLOY_MODE": "single"}) as daemon:
        answer = await daemon.deploy()
        assert (answer.status, answer.json["error"]["code"]) == (409, "mode_is_single")
        reset = await daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        assert (reset.status, reset.json["error"]["code"]) == (409, "single_by_settings")
        assert await public_version(daemon) == "v1"
