"""A request that is made once more under the same `Idempotency-Key` does nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Answer, DaemonProcess
from tests.integration.support import (
    WARM,
    everything_agrees,
    public_version,
    release,
    releases,
    rows,
    scripted_daemon,
    slot,
    until_phase,
)

ROLLED_BACK = "SELECT count(*) FROM audit WHERE action = 'rollback'"


async def post(daemon: DaemonProcess, path: str, key: str, **more: Any) -> Answer:
    return await daemon.request("POST", f"/deploy/{path}", headers={"Idempotency-Key": key}, **more)


def repeated(answer: Answer) -> bool:
    return answer.headers.get("Idempotency-Replayed") == "true"


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


def deploys(daemon: DaemonProcess) -> int:
    ((count,),) = rows(daemon, "SELECT count(*) FROM deploys")
    return int(count)


async def test_a_key_stands_for_one_request_also_for_the_next_daemon(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        first = await post(daemon, "bluegreen", "k1")
        assert (first.status, first.json["result"], repeated(first)) == (200, "switched", False)
        record = await daemon.ended(first.json["deploy_id"])
        del record["transitions"]  # an answer to a deploy has all but these
        again = await post(daemon, "bluegreen", "k1")
        assert (again.status, again.json, repeated(again)) == (200, record, True)
        # In quotes, and with another way to be answered, it is the same request.
        unwaited = await post(daemon, "bluegreen", '"k1"', params={"wait": "false"})
        assert (unwaited.status, repeated(unwaited)) == (202, True)
        assert unwaited.headers["Location"] == record["deploy_id"]
        others = [
            await post(daemon, "bluegreen", "k1", params={"dry_run": "true"}),
            await post(daemon, "bluegreen", "k1", json={"release": "r1"}),
            await post(daemon, "rollback", "k1"),
            await post(daemon, "mode", "k1", json={"mode": "single"}),
            await daemon.request_tcp(
                "POST", "/deploy/bluegreen", headers={"Idempotency-Key": "k1"}
            ),
        ]
        assert {code(answer) for answer in others} == {(422, "idempotency_key_reused")}
        assert all("k1" in answer.json["error"]["message"] for answer in others)
        for bad in ("", "x" * 256, "two words", "caf\u00e9", "tab\there"):
            assert code(await post(daemon, "bluegreen", bad)) == (400, "invalid_header")
        assert deploys(daemon) == 1
        assert (await daemon.status())["mode"] == "bluegreen"

        await daemon.stop()
        await daemon.start()
        again = await post(daemon, "bluegreen", "k1")
        assert (again.json["deploy_id"], repeated(again)) == (record["deploy_id"], True)
        assert deploys(daemon) == 1
        assert await public_version(daemon) == "v2"


async def test_a_request_that_was_refused_can_be_made_again_under_its_key(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        assert code(await post(daemon, "switch", "go")) == (409, "nothing_to_switch")
        release(daemon, "v2")
        waiting = await post(daemon, "bluegreen", "k1")
        assert code(await post(daemon, "bluegreen", "k2")) == (409, "deploy_in_progress")
        switched = await post(daemon, "switch", "go")
        assert (switched.status, repeated(switched)) == (200, False)
        again = await post(daemon, "switch", "go")
        assert (again.json["result"], repeated(again)) == ("switched", True)
        assert again.json["deploy_id"] == waiting.json["deploy_id"]
        second = await post(daemon, "bluegreen", "k2")
        assert (second.status, repeated(second)) == (200, False)
        aborted = await post(daemon, "abort", "stop")
        assert (aborted.json["result"], repeated(aborted)) == ("aborted", False)
        again = await post(daemon, "abort", "stop")
        assert (again.status, again.json["result"], repeated(again)) == (200, "aborted", True)
        assert code(await post(daemon, "bluegreen", "k2")) == (409, "deploy_aborted")


@pytest.mark.fault(
    "Requests",
    "a client that leaves in mid-deploy",
    "the deploy goes on, and the client can ask for its answer",
)
async def test_two_clients_at_once_and_one_that_left_get_the_answer_of_their_deploy(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health_delay=0.2)
        answers = await asyncio.gather(*(post(daemon, "bluegreen", "k1") for _ in range(5)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json["deploy_id"] for answer in answers}) == 1
        assert sorted(map(repeated, answers)) == [False, True, True, True, True]
        assert deploys(daemon) == 1
        await everything_agrees(daemon)

        release(daemon, "v3", health_delay=0.5)
        leaving = asyncio.create_task(post(daemon, "bluegreen", "k2"))
        begun = await until_phase(daemon, "launch")
        leaving.cancel()
        await asyncio.wait([leaving])
        again = await post(daemon, "bluegreen", "k2")
        assert (again.status, again.json["result"], repeated(again)) == (200, "switched", True)
        assert again.json["deploy_id"] == begun["deploy_id"]


async def test_a_deploy_that_a_killed_daemon_left_is_not_begun_again(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health_delay=20)
        begun = await post(daemon, "bluegreen", "k1", params={"wait": "false"})
        await until_phase(daemon, "launch")
        await daemon.kill()
        release(daemon, "v1")
        await daemon.start()
        again = await post(daemon, "bluegreen", "k1")
        assert (*code(again), repeated(again)) == (409, "deploy_aborted", True)
        assert again.json["deploy_id"] == begun.json["deploy_id"]
        assert deploys(daemon) == 1


async def test_a_release_that_failed_is_said_to_have_failed_again_in_whatever_mode(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health=500)
        failed = await post(daemon, "bluegreen", "k1")
        assert code(failed) == (422, "release_did_not_pass")
        assert (await daemon.status())["mode"] == "single"
        again = await post(daemon, "bluegreen", "k1")
        assert (*code(again), repeated(again)) == (422, "release_did_not_pass", True)
        assert (await post(daemon, "mode", "reset", json={"mode": "bluegreen"})).status == 200
        assert code(await post(daemon, "bluegreen", "k2")) == (422, "release_did_not_pass")
        # The reset was made once: said again, it does not undo the fallback that followed.
        again = await post(daemon, "mode", "reset", json={"mode": "bluegreen"})
        assert (again.status, again.json["mode"], repeated(again)) == (200, "single", True)


@pytest.mark.parametrize("warm", [True, False])
async def test_a_rollback_asked_for_again_goes_back_once(tmp_path: Path, warm: bool) -> None:
    folder = releases(tmp_path, "r1", "r2", "r3")
    settings = {**(WARM if warm else {}), "RELEASES_DIR": folder}
    async with scripted_daemon(tmp_path, settings) as daemon:
        for name in ("r1", "r2", "r3"):
            deploy_id = (await daemon.deploy(name)).json["deploy_id"]
            if not warm:
                await daemon.ended(deploy_id)
        one, other = await asyncio.gather(*(post(daemon, "rollback", "back") for _ in range(2)))
        assert (one.status, other.status) == (200, 200)
        assert one.json["deploy_id"] == other.json["deploy_id"]
        assert one.json["result"] == ("rolled_back" if warm else "switched")
        assert sorted(map(repeated, (one, other))) == [False, True]
        await daemon.ended(one.json["deploy_id"])
        assert repeated(await post(daemon, "rollback", "back"))
        await daemon.stop()
        await daemon.start()
        assert repeated(await post(daemon, "rollback", "back"))
        assert await public_version(daemon) == "r2"
        assert rows(daemon, ROLLED_BACK) == [(1,)]
        await everything_agrees(daemon)


async def test_a_rollback_that_could_not_be_done_is_tried_again_under_its_key(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        await daemon.deploy()
        await until_phase(daemon, "warm")
        in_the_way = daemon.state_dir / ".deploy_state.json.new"
        in_the_way.mkdir()
        assert code(await post(daemon, "rollback", "back")) == (503, "switch_failed")
        in_the_way.rmdir()
        again = await post(daemon, "rollback", "back")
        assert (again.status, again.json["result"], repeated(again)) == (200, "rolled_back", False)
        assert slot(await daemon.status(), "active")["version"] == "v1"
        await everything_agrees(daemon)
