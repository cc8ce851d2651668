"""A fleet as its operators steer it: by `atlasctl fleet` and the API of any of its machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import etcd
from tests.harness import DaemonProcess, write_release
from tests.integration.support import fleet_of_three, public_version, until_fleet
from tests.unit.supervisor.cli.support import Outcome, call_client

pytestmark = [
    pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING),
    pytest.mark.timeout(120),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[etcd.Cluster]:
    with etcd.cluster(tmp_path / "etcd") as running:
        yield running


async def fleet(daemon: DaemonProcess, *arguments: str) -> Outcome:
    """Call `atlasctl fleet` on a daemon's machine."""
    return await call_client("fleet", *arguments, "--env-file", daemon.env_file)


async def refused(daemon: DaemonProcess, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    """Return status, code and field of a refused change."""
    answer = await daemon.request("POST", f"/fleet/{path}", json=body)
    error = answer.json["error"]
    return answer.status, error["code"], error.get("field", "")


async def test_a_fleet_is_rolled_out_halted_taken_back_killed_and_goes_on_without_etcd(
    tmp_path: Path, cluster: etcd.Cluster
) -> None:
    async with fleet_of_three(tmp_path, cluster.endpoints) as (web1, web2, web3):
        outcome = await fleet(web1, "rollout", "r2", "--waves", "1,100%", "--follow")
        assert (outcome.code, outcome.err) == (0, ""), outcome
        for host in ("web1", "web2", "web3"):
            assert f"✓ {host}  passed" in outcome.out
        assert [await public_version(each) for each in (web1, web2, web3)] == ["r2"] * 3
        await until_fleet(
            web3, lambda fleet: all(each["version"] == "r2" for each in fleet["hosts"])
        )
        shown = await fleet(web3, "status")
        assert "✓ All 3 hosts serve r2" in shown.out
        assert "rollout  r2: passed, 3 of 3 hosts passed" in shown.out

        write_release(tmp_path / "releases/r3", "r3", {"behaviour.json": '{"health": 500}'})
        outcome = await fleet(web2, "rollout", "r3", "--waves", "1,100%", "--follow")
        assert outcome.code == 1
        assert "✗ web1  failed" in outcome.out
        assert "r3: halted, 0 of 3 hosts passed, 1 failed" in outcome.out
        assert "`atlasctl fleet resume` tries that host again" in outcome.out
        shown_by_web3 = await until_fleet(web3, lambda fleet: fleet["hosts"][0]["mode"] == "single")
        assert shown_by_web3["hosts"][0]["part"]["state"] == "failed"
        await nothing_is_changed_by_bad_input(web2)
        outcome = await fleet(web2, "abort")
        assert (outcome.code, "r3: aborted" in outcome.out) == (0, True)
        await no_bad_rollout_begins(web2)
        await web1.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        audit = (await web2.request("GET", "/deploy/audit")).json["entries"]
        done = [(each["action"], each["outcome"]) for each in audit if "fleet" in each["action"]]
        assert done == [("fleet_rollout", "abort"), ("fleet_rollout", "begun")]

        outcome = await fleet(web3, "kill", "vision")
        assert (outcome.code, "vision off" in outcome.out) == (0, True), outcome
        await until_fleet(web1, lambda fleet: fleet["kills"]["acknowledged"] == 3)
        assert (
            "no calls" in (await call_client("canary", "--env-file", web2.env_file, "status")).out
        )
        assert (await fleet(web1, "reset")).code == 0

        cluster.stop()
        await without_etcd(web1)


async def nothing_is_changed_by_bad_input(daemon: DaemonProcess) -> None:
    """Send what can't be done while a rollout is halted."""
    before = (await daemon.request("GET", "/fleet")).json
    release = {"release": "r1"}
    assert await refused(daemon, "rollout", release) == (409, "rollout_in_progress", "")
    assert await refused(daemon, "rollout", {**release, "waves": ["a"]}) == (
        *(400, "invalid_body", "waves.0"),
    )
    host = {"host": "web9", "generation": 1}
    assert await refused(daemon, "break", host) == (404, "unknown_host", "")
    assert await refused(daemon, "break", {**host, "host": "web2"}) == (409, "slot_not_held", "")
    assert await refused(daemon, "forget", {"host": "web9"}) == (404, "unknown_host", "")
    assert await refused(daemon, "forget", {"host": "web2"}) == (409, "host_is_present", "")
    after = (await daemon.request("GET", "/fleet")).json
    assert after["rollout"] == before["rollout"]


async def no_bad_rollout_begins(daemon: DaemonProcess) -> None:
    """Send rollouts that do not fit a fleet of three, and steer one that has ended."""
    shrinking, too_many = {"waves": [3, 2, 1]}, {"max_unavailable": 4}
    release = {"release": "r1"}
    assert await refused(daemon, "rollout", {**release, **shrinking}) == (
        *(400, "invalid_waves", "waves"),
    )
    assert await refused(daemon, "rollout", {**release, **too_many}) == (
        *(400, "invalid_max_unavailable", "max_unavailable"),
    )
    assert (await daemon.request("POST", "/fleet/rollout/pause")).status == 409


async def without_etcd(daemon: DaemonProcess) -> None:
    """Use a machine whose fleet's etcd is away."""
    found = await until_fleet(daemon, lambda fleet: not fleet["engine"]["connected"])
    assert found["engine"]["since_ts"]
    assert [host["fresh"] for host in found["hosts"]] == [None] * 3
    shown = await fleet(daemon, "status")
    assert (shown.code, "etcd does not answer" in shown.out) == (0, True)

    killed = await fleet(daemon, "kill", "vision")
    assert killed.code == 1
    assert "atlasctl canary set vision 0" in killed.err
    assert (await fleet(daemon, "rollout", "r1")).code == 1
    gauge = f'atlas_fleet_engine_connected{{fleet="{found["fleet"]}"}} 0.0'
    assert gauge in (await daemon.request("GET", "/metrics")).json
    switched_off = await call_client("canary", "set", "vision", "0", "--env-file", daemon.env_file)
    assert switched_off.code == 0, switched_off
    assert (await daemon.deploy("r1")).status == 200
    assert await public_version(daemon) == "r1"
