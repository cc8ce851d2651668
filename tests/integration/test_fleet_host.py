"""One host of a fleet: a real daemon and a real etcd, which goes away and comes back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.etcd import MISSING, PROGRAM, Cluster, cluster
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import (
    WARM,
    caller,
    fresh,
    public_version,
    releases,
    scripted_daemon,
    until_fleet,
    until_phase,
)

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
def settings(etcd: Cluster, tmp_path: Path) -> dict[str, Setting]:
    """Of a host in a fleet of its own, whose features' calls all go to their canaries."""
    return {
        "FLEET_ETCD_ENDPOINTS": ",".join(etcd.endpoints),
        "FLEET_NAME": tmp_path.name,
        "FLEET_HOST": "web1",
        "RELEASES_DIR": releases(tmp_path, "v2", "v3"),
        "CANARY_ENABLED": "true",
        "CANARY_PERCENTAGE": 1,
        "GUARD_SECONDS": 0.5,
        **WARM,
    }


def is_present(view: dict[str, Any]) -> bool:
    return bool(fresh(view))


def has_ended(view: dict[str, Any]) -> bool:
    rollout = view["rollout"]
    return rollout is not None and rollout["state"] in ("passed", "halted")


async def roll_out(daemon: DaemonProcess, release: str) -> None:
    answer = await daemon.request("POST", "/fleet/rollout", json={"release": release})
    assert answer.status == 200, answer


async def set_share(daemon: DaemonProcess, share: float) -> tuple[int, str]:
    """Set the share of `vision` on this machine; return status and code of the answer."""
    body = {"percentage": share}
    answer = await daemon.request("PUT", "/deploy/canary/vision", json=body)
    return answer.status, answer.json.get("error", {}).get("code", "")


def events(daemon: DaemonProcess, *names: str) -> list[str]:
    lines = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text().splitlines()
    found = [json.loads(line)["event"] for line in lines]
    return [name for name in found if name in names]


@pytest.mark.fault(
    "Fleet", "daemon killed and started again while etcd is away", "what was killed stays off"
)
async def test_a_kill_reaches_processes_and_holds_without_etcd_over_a_killed_daemon(
    etcd: Cluster, settings: dict[str, Setting], tmp_path: Path
) -> None:
    async with scripted_daemon(tmp_path, settings) as daemon, caller(daemon) as process:
        await until_fleet(daemon, is_present)
        await process.until("keys 1", "1")
        answer = await daemon.request("POST", "/fleet/kill", json={"feature": "web"})
        assert answer.status == 200, answer
        assert answer.json["kills"]["features"] == ["web"]
        await process.until("keys 1", "0")
        await until_fleet(daemon, lambda view: view["kills"]["acknowledged"] == 1)
        etcd.members[0].suspend()
        try:
            await daemon.kill()
            assert await process.send("keys", 1) == "0"
            await daemon.start()
            assert await process.send("keys", 1) == "0"
            answer = await daemon.request("GET", "/deploy/canary")
            assert {each["feature"]: each["killed"] for each in answer.json["features"]} == {
                "vision": False,
                "web": True,
                "optimizer": False,
            }
            answer = await daemon.request("POST", "/fleet/reset")
            assert answer.status == 503, answer
            assert await process.send("keys", 1) == "0"
        finally:
            etcd.members[0].resume()
        await until_fleet(daemon, is_present)
        assert (await daemon.request("POST", "/fleet/reset")).status == 200
        await process.until("keys 1", "1")


@pytest.mark.fault(
    "Fleet", "etcd killed", "deploys, rollbacks and local kills work; it is logged once"
)
async def test_without_etcd_deploys_rollbacks_and_local_kills_work_and_the_outage_is_logged_once(
    etcd: Cluster, settings: dict[str, Setting], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with scripted_daemon(tmp_path, settings) as daemon:
        await until_fleet(daemon, is_present)
        etcd.members[0].stop(signal.SIGKILL)
        request.addfinalizer(etcd.start)
        view = await until_fleet(daemon, lambda view: not view["engine"]["connected"])
        assert view["engine"]["since_ts"]
        assert view["hosts"][0]["fresh"] is None
        assert (await daemon.deploy("v2")).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        await until_fleet(daemon, lambda view: view["hosts"][0]["version"] == "v2")
        assert (await daemon.request("POST", "/deploy/rollback")).json["result"] == "rolled_back"
        assert await set_share(daemon, 0) == (200, "")
        answer = await daemon.request("POST", "/fleet/kill", json={"feature": "vision"})
        assert (answer.status, answer.json["error"]["code"]) == (503, "fleet_unavailable")
        assert "atlasctl canary set vision 0" in answer.json["error"]["hint"]
        etcd.start()
        logged = ("fleet_engine_away", "fleet_engine_back")
        await eventually(lambda: "fleet_engine_back" in events(daemon, *logged), within=20)
        await until_fleet(daemon, is_present)
        assert events(daemon, *logged) == [*logged]


async def test_a_rollout_deploys_by_the_hosts_own_gates_and_goes_back(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    async with scripted_daemon(tmp_path, settings) as daemon:
        await until_fleet(daemon, is_present)
        await roll_out(daemon, "v2")
        view = await until_fleet(daemon, has_ended)
        assert view["rollout"]["state"] == "passed"
        assert await public_version(daemon) == "v2"
        (host,) = view["hosts"]
        assert host["version"] == "v2"  # at once, though it announces itself every five seconds
        assert host["last_deploy"]["deploy_id"] == host["part"]["deploy_id"]
        record = (await daemon.request("GET", f"/deploy/{host['part']['deploy_id']}")).json
        assert record["requested"] == "deploy requested by fleet"
        assert [each["ok"] for each in record["steps"] if each["name"] == "guard"] == [True]
        assert view["semaphore"]["holders"] == []

        assert (await daemon.request("POST", "/fleet/rollout/rollback")).status == 200
        view = await until_fleet(daemon, lambda view: view["rollout"]["undoes"] and has_ended(view))
        assert view["rollout"]["state"] == "passed"
        assert await public_version(daemon) == "v1"


async def test_a_release_that_fails_its_gates_halts_the_rollout_with_its_reason(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    behaviour = tmp_path / "releases" / "v3" / "behaviour.json"
    behaviour.write_text(json.dumps({"health": 500}))
    async with scripted_daemon(tmp_path, settings) as daemon:
        await until_fleet(daemon, is_present)
        answer = await daemon.request("POST", "/fleet/rollout", json={"release": "v4"})
        assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_release")
        assert (await until_fleet(daemon, is_present))["rollout"] is None
        await roll_out(daemon, "v3")
        view = await until_fleet(daemon, has_ended)
        assert view["rollout"]["state"] == "halted"
        assert view["hosts"][0]["mode"] == "single"
        assert view["rollout"]["halt"]["host"] == "web1"
        assert view["rollout"]["halt"]["reason"].startswith("health: ")
        assert view["semaphore"]["holders"] == []
        assert await public_version(daemon) == "v1"


async def test_an_aborted_rollout_aborts_the_deploy_that_has_not_switched_yet(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    waiting: dict[str, Setting] = {**settings, "AUTO_SWITCH_ON_HEALTH": "false"}
    async with scripted_daemon(tmp_path, waiting) as daemon:
        await until_fleet(daemon, is_present)
        await roll_out(daemon, "v2")
        before = await until_phase(daemon, "awaiting_switch", within=20)
        await daemon.stop()
        await daemon.start()  # it waits on, and the host goes on with its slot
        assert (await daemon.request("POST", "/fleet/rollout/abort")).status == 200
        view = await until_fleet(daemon, lambda view: not view["semaphore"]["holders"])
        assert view["rollout"]["state"] == "aborted"
        record = await daemon.ended(before["deploy_id"])
        assert record["result"] == "aborted"
        assert record["reason"].endswith("abort requested by fleet")
        assert await public_version(daemon) == "v1"


@pytest.mark.fault(
    "Fleet", "daemon reloaded, then killed in a rollout's guard", "its deploy goes on and counts"
)
async def test_a_reload_and_a_killed_daemon_go_on_with_the_rollouts_deploy(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    guarded: dict[str, Setting] = {**settings, "GUARD_SECONDS": 5}
    async with scripted_daemon(tmp_path, guarded) as daemon:
        await until_fleet(daemon, is_present)
        assert (await daemon.request("POST", "/fleet/kill", json={"feature": None})).status == 200
        await roll_out(daemon, "v2")
        await until_phase(daemon, "guard", within=20)
        assert (await daemon.request("POST", "/supervisor/reload")).status == 202
        await daemon.stop_clients()
        await until_fleet(daemon, is_present)
        await daemon.kill()
        await daemon.start()
        view = await until_fleet(daemon, has_ended)
        assert view["rollout"]["state"] == "passed"
        history = (await daemon.request("GET", "/deploy/history")).json["deploys"]
        assert [each["deploy_id"] for each in history] == [view["hosts"][0]["part"]["deploy_id"]]
        shown = (await daemon.request("GET", "/deploy/canary")).json
        assert {each["share"] for each in shown["features"]} == {0.0}
        assert shown["kills"]["every_feature"] is True


async def test_a_second_host_with_a_name_takes_no_part_and_says_so(
    settings: dict[str, Setting], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with scripted_daemon(tmp_path / "first", settings) as first:
        await until_fleet(first, is_present)
        async with scripted_daemon(tmp_path / "second", settings) as second:
            view = await until_fleet(second, lambda view: view["has_double"])
            assert [each["code"] for each in view["suggestions"]] == ["host_not_unique"]
            await roll_out(second, "v2")
            view = await until_fleet(first, has_ended)
            assert not view["has_double"]
            assert [await public_version(each) for each in (first, second)] == ["v2", "v1"]
