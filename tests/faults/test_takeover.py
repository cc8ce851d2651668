"""After the daemon's death its workers serve on, and are the next one's: no request is lost.

One that can't be taken over is replaced: it serves until a fresh worker is ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.system import procfs, sockdiag
from tests.acceptance.support import IDLE_GRACE_SECONDS, kill_the_daemon_under_load
from tests.faults.support import WITHOUT_PIDFD_GETFD, start_again
from tests.harness import DaemonProcess, Setting, bundled_worker, eventually, free_ports
from tests.integration.support import (
    SCRIPTED,
    WARM,
    everything_agrees,
    get,
    public_version,
    release,
    rewrite,
    roll_back,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
    write,
)
from tests.loadclient import Kind, WebSocketTraffic, bundled_worker_mix

LIVES = "SELECT life FROM instances"
SWITCHING = (
    "UPDATE deploys SET phase = 'switch', result = NULL,"
    " active_port = staging_port, staging_port = active_port"
)
BACK_TO = "DELETE FROM transitions WHERE id > (SELECT min(id) FROM transitions WHERE target = '{}')"
LASTING = ("slot", "port", "role", "state", "pid", "version", "started_ts", "restarts")


async def worker(daemon: DaemonProcess) -> int:
    return int((await get(daemon.public_port))[1]["pid"])


async def lasting(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """Return both slots of the status, without the fields that change by themselves."""
    return [{key: view[key] for key in LASTING} for view in (await daemon.status())["slots"]]


async def start_again_after_kill(daemon: DaemonProcess) -> Any:
    await daemon.kill()
    return await start_again(daemon)


def not_recorded(daemon: DaemonProcess) -> None:
    """Leave workers as a daemon leaves them that dies before it can write down what they are."""
    write(daemon, "UPDATE instances SET life = NULL")


async def until(daemon: DaemonProcess, role: str, **expected: Any) -> dict[str, Any]:
    """Wait until the slot of this role is shown like this."""
    async with asyncio.timeout(10):
        while True:
            view = slot(await daemon.status(), role)
            if {key: view[key] for key in expected} == expected:
                return view
            await asyncio.sleep(0.02)


@pytest.mark.fault(
    "The daemon", "killed during a recycle", "the worker serves on, and the next daemon recycles it"
)
async def test_a_recycle_that_a_kill_interrupts_is_done_by_the_next_daemon(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {**WARM, "WORKER_MAX_AGE_SECONDS": 3}) as daemon:
        before = await worker(daemon)
        release(daemon, "v1", health_delay=0.7)  # so that the kill finds it in its gates
        await until(daemon, "staging", state="running")
        release(daemon, "v1")
        daemon.settings["WORKER_MAX_AGE_SECONDS"] = (
            6  # it goes on, and the fresh worker has a while
        )
        interrupted = await start_again_after_kill(daemon)
        assert (interrupted["result"], interrupted["cause"]) == ("aborted", "recycled")
        assert await worker(daemon) == before
        status = await daemon.status()
        assert status["mode"] == "bluegreen"
        record = await until_phase(daemon, "drain", within=20)
        assert (record["result"], record["cause"]) == ("switched", "recycled")
        await daemon.ended(record["deploy_id"])
        assert await worker(daemon) != before
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "killed under load", "no request is lost")
async def test_a_killed_daemon_and_its_successor_lose_no_request(tmp_path: Path) -> None:
    """Not with a WebSocket open either: it goes on, because its worker does."""
    mix: list[Kind] = [
        *bundled_worker_mix(pause=0.7 * IDLE_GRACE_SECONDS),
        WebSocketTraffic("WebSocket", loops=1),
    ]
    settings: dict[str, Setting] = {
        **bundled_worker(idle_grace=IDLE_GRACE_SECONDS),
        "DRAIN_TIMEOUT_SECONDS": 4,
    }
    restarts = await kill_the_daemon_under_load(tmp_path, settings, mix, times=3)
    print(restarts.report.describe())  # noqa: T201 - what was measured stands in the output
    assert (restarts.lost, len(restarts.workers)) == ([0, 0, 0], 1)
    assert restarts.report.kinds["one connection per request"].latency_ms(1) < 2000


@pytest.mark.fault(
    "The daemon", "killed again and again", "the same worker goes on, on the same port"
)
async def test_the_active_worker_goes_on_as_it_was_through_kill_after_kill(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        os.kill(daemon.leftovers()[0], signal.SIGKILL)
        await until(daemon, "active", state="running", restarts=1)
        before, file = await lasting(daemon), state_file(daemon)
        for _ in range(2):
            await daemon.kill()
            for _ in range(5):
                assert await public_version(daemon) == "v2"
            await daemon.start()
            assert await lasting(daemon) == before
            after = state_file(daemon)
            assert (after["active_port"], after["mode"]) == (file["active_port"], file["mode"])
            await everything_agrees(daemon)

        os.kill(daemon.leftovers()[0], signal.SIGKILL)
        view = await until(daemon, "active", state="running", restarts=2)
        assert view["last_exit"] in {"it was ended by SIGKILL", "it ended, exit status unknown"}
        release(daemon, "v3")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert await public_version(daemon) == "v3"
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon", "killed while a version is warm", "it stays warm, and a rollback to it is instant"
)
async def test_a_warm_version_stays_warm_and_a_rollback_to_it_is_instant(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {**WARM, "GUARD_SECONDS": 3}) as daemon:
        old = await worker(daemon)
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await until_phase(daemon, "guard")
        before = await lasting(daemon)
        record = await start_again_after_kill(daemon)
        assert (record["result"], record["phase"]) == ("switched", "guard")
        assert await lasting(daemon) == before
        await everything_agrees(daemon)
        record = await until_phase(daemon, "warm")  # with what was left of the guard time
        assert "no reason to revert" in record["steps"][-1]["detail"]["message"]
        record = await start_again_after_kill(daemon)
        assert (record["phase"], await lasting(daemon)) == ("warm", before)

        rolled = await roll_back(daemon)
        assert (rolled.status, rolled.json["result"]) == (200, "rolled_back")
        assert await worker(daemon) == old
        await eventually(lambda: daemon.leftovers() == [old])
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "killed, and only the warm version lives", "that one takes over")
async def test_with_only_a_warm_version_left_that_one_takes_over(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        old = await worker(daemon)
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await until_phase(daemon, "warm")
        active = slot(await daemon.status(), "active")["pid"]
        await daemon.kill()
        os.kill(active, signal.SIGKILL)
        await daemon.start()
        record = await daemon.ended((await daemon.status())["last_deploy"]["deploy_id"])
        assert (record["result"], await worker(daemon)) == ("rolled_back", old)
        assert "ended while no supervisor ran" in record["reason"]
        await everything_agrees(daemon)


@pytest.mark.parametrize("kit", [True, False])
@pytest.mark.fault(
    "The daemon", "killed during a drain", "the drain goes on, and its request is answered"
)
async def test_a_drain_goes_on_and_its_request_is_answered(tmp_path: Path, kit: bool) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v1", kit=kit)
        assert (await daemon.deploy()).status == 200  # the same version, which is one of that kind
        await eventually(lambda: len(daemon.leftovers()) == 1)
        old = await worker(daemon)
        held = asyncio.create_task(get(daemon.public_port, "/held"))
        await eventually((daemon.worker_directory / "held").exists)
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        fresh = await worker(daemon)
        if kit:
            await eventually(lambda: '"not_accepting":true' in str(rows(daemon, LIVES)))
        await daemon.kill()
        await daemon.start()
        assert sorted(daemon.leftovers()) == sorted([old, fresh])
        assert await worker(daemon) == fresh
        (daemon.worker_directory / "let_go").touch()
        assert (await held)[1]["version"] == "v1"
        record = await daemon.ended(deploy_id)
        assert record["result"] == "switched"
        assert record["steps"][-1]["name"] == "drain"
        await eventually(lambda: daemon.leftovers() == [fresh])
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon",
    "killed before its worker was recorded",
    "a fresh worker replaces it once it is ready",
)
async def test_a_worker_that_is_not_recorded_is_replaced_by_a_fresh_one_and_drained(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old, before = await worker(daemon), state_file(daemon)
        held = asyncio.create_task(get(daemon.public_port, "/held"))
        await eventually((daemon.worker_directory / "held").exists)
        await daemon.kill()
        not_recorded(daemon)
        await daemon.start()
        fresh = await worker(daemon)
        assert fresh != old
        assert old in daemon.leftovers()
        after = state_file(daemon)
        assert (after["active_port"], after["mode"]) == (before["active_port"], before["mode"])
        await everything_agrees(daemon)
        (daemon.worker_directory / "let_go").touch()
        assert (await held)[1]["version"] == "v1"
        await eventually(lambda: daemon.leftovers() == [fresh])
        await until(daemon, "staging", state="empty")
        shown = await lasting(daemon)
        await start_again_after_kill(daemon)
        assert await lasting(daemon) == shown  # though the slots' sockets have changed places
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "killed, and its worker hangs", "a fresh worker replaces it")
async def test_a_hung_worker_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"HEALTH_TIMEOUT_SECONDS": 0.2, "LIVENESS_FAILURES": 2}
    async with scripted_daemon(tmp_path, settings) as daemon:
        old, slots = await worker(daemon), (await daemon.status())["slots"]
        ports = [daemon.public_port, *(slot["port"] for slot in slots)]
        await daemon.kill()
        # Stopped with the last client's connection, it would have the drain's time to end it.
        await eventually(lambda: not procfs.connections_of([old], ports))
        os.kill(old, signal.SIGSTOP)
        await daemon.start()
        assert await worker(daemon) != old
        await eventually(lambda: old not in daemon.leftovers())
        await everything_agrees(daemon)


async def test_a_daemon_killed_before_its_fresh_worker_is_ready_leaves_the_old_one_serving(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = await worker(daemon)
        release(daemon, "v1", health_delay=30)  # ready by its first answer, which does not come
        await daemon.kill()
        not_recorded(daemon)
        task = asyncio.create_task(daemon.start())
        await eventually(lambda: len(daemon.leftovers()) == 2)
        assert await worker(daemon) == old
        assert (await daemon.request("GET", "/readyz")).status == 200
        health = (await daemon.request("GET", "/health")).json["checks"]["port_active"]
        assert "the worker of an earlier daemon serves until then" in health["message"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await daemon.kill()
        assert await worker(daemon) == old
        release(daemon, "v1")
        await daemon.start()
        await eventually(lambda: len(daemon.leftovers()) == 1)
        assert await worker(daemon) != old
        await everything_agrees(daemon)


async def test_the_old_worker_serves_on_while_the_fresh_one_fails_and_until_a_good_deploy(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = await worker(daemon)
        release(daemon, "v1", exit=3)
        await daemon.kill()
        not_recorded(daemon)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await daemon.start()
        assert await worker(daemon) == old
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        await eventually(lambda: old not in daemon.leftovers())


async def test_a_warm_version_and_the_active_one_are_both_replaced(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await until_phase(daemon, "warm")
        old = daemon.leftovers()
        await daemon.kill()
        not_recorded(daemon)
        record = await start_again(daemon)
        assert (record["result"], record["phase"]) == ("switched", "ended")
        assert await public_version(daemon) == "v2"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        assert not set(old) & set(daemon.leftovers())
        await everything_agrees(daemon)


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_worker_that_binds_its_own_port_goes_on_or_ends_while_clients_wait(
    tmp_path: Path, recorded: bool
) -> None:
    deaf = "trap '' TERM; exec python -m http.server --bind 127.0.0.1 $1\n"
    files = {"deaf.sh": deaf, "ok.json": "{}"}
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "sh deaf.sh {port}",
        "HEALTH_PATH": "/",
        "STOP_TIMEOUT_SECONDS": 1,
    }
    async with DaemonProcess.running(tmp_path, settings, files=files) as daemon:
        old, before = daemon.leftovers(), await lasting(daemon)
        await daemon.kill()
        if not recorded:
            not_recorded(daemon)
        task = asyncio.create_task(daemon.start())
        await eventually(lambda: sockdiag.listeners(daemon.public_port))
        assert set(old) & set(daemon.leftovers())
        status, _ = await get(daemon.public_port, "/ok.json")
        assert status == 200
        await task
        if not recorded:
            assert not set(old) & set(daemon.leftovers())
            return
        assert await lasting(daemon) == before
        os.kill(old[0], signal.SIGKILL)  # its port, which could not be reserved, is its successor's
        await until(daemon, "active", state="running", restarts=1)
        (daemon.worker_directory / "VERSION").write_text("v2")
        assert (await daemon.deploy()).json["result"] == "switched"


@pytest.mark.parametrize("plane", ["kernel", "relay"])
async def test_a_worker_that_takes_one_descriptor_goes_on(tmp_path: Path, plane: str) -> None:
    command = f"env LISTEN_FDS=1 {SCRIPTED} {{fd}}"
    host = "127.0.0.1" if plane == "kernel" else "::1"  # there the kernel can't address a slot
    settings = {**WARM, "WORKER_COMMAND": command, "PUBLIC_HOST": host}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await until_phase(daemon, "warm")
        before = await lasting(daemon)
        await start_again_after_kill(daemon)
        status = await daemon.status()
        assert (await lasting(daemon), status["traffic"]["plane"]) == (before, plane)
        for view in status["slots"]:
            assert (await get(view["port"]))[1]["pid"] == view["pid"]
        assert (await get(daemon.public_port, host=host))[1]["version"] == "v2"
        assert (await roll_back(daemon)).json["result"] == "rolled_back"
        assert (await get(daemon.public_port, host=host))[1]["version"] == "v1"


@pytest.mark.fault(
    "The daemon",
    "killed with a server that has moved its sockets to other descriptors, as gunicorn does",
    "the traffic stays with it",
)
@pytest.mark.parametrize("bind", ["", "-b fd://{fd}"])
async def test_a_server_that_moved_its_sockets_keeps_the_traffic(tmp_path: Path, bind: str) -> None:
    application = "def app(environ, start):\n    start('200 OK', [])\n    return [b'{}']\n"
    command = f"gunicorn --workers 2 {bind} wsgi:app"
    settings: dict[str, Setting] = {"WORKER_COMMAND": command, "HEALTH_PATH": "/"}
    files = {"wsgi.py": application}
    async with DaemonProcess.running(tmp_path, settings, files=files) as daemon:
        for slot_name in ("blue", "green"):
            before = await lasting(daemon)
            await daemon.kill()
            await daemon.start()
            assert await lasting(daemon) == before
            assert (await get(daemon.public_port))[0] == 200, slot_name
            assert (await daemon.deploy()).json["result"] == "switched"
            assert (await get(daemon.public_port))[0] == 200, slot_name
            await until_phase(daemon, "ended")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # each is in the way of the other
async def test_a_changed_public_host_ends_the_old_worker_first(tmp_path: Path, host: str) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        for changed in (host, "127.0.0.1"):
            old = daemon.leftovers()
            await daemon.kill()
            daemon.settings["PUBLIC_HOST"] = changed
            await daemon.start()
            assert await public_version(daemon) == "v1"
            assert not set(old) & set(daemon.leftovers())


@pytest.mark.fault(
    "Ports and connections",
    "a changed port in the settings",
    "the old worker serves until the new one is ready",
)
async def test_a_worker_on_another_port_than_the_settings_have_now_is_replaced(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = await worker(daemon)
        await daemon.kill()
        (daemon.settings["ACTIVE_PORT"],) = free_ports(1)
        await daemon.start()
        assert await worker(daemon) != old
        await everything_agrees(daemon)
        await eventually(lambda: old not in daemon.leftovers())


@pytest.mark.fault(
    "Ports and connections",
    "another way to pass sockets in the settings, after a kill",
    "the next daemon serves in that way",
)
@pytest.mark.parametrize("public", [True, False])
async def test_each_way_to_pass_sockets_may_follow_each_other_after_a_kill(
    tmp_path: Path, public: bool
) -> None:
    by_port, one = f"{SCRIPTED} --port {{port}}", f"env LISTEN_FDS=1 {SCRIPTED} {{fd}}"
    ways = (by_port, SCRIPTED, one, by_port, one) if public else (by_port, SCRIPTED, by_port)
    settings: dict[str, Setting] = {} if public else {"PUBLIC_PORT": 0}
    async with scripted_daemon(tmp_path, settings) as daemon:
        for command in ways:
            old = daemon.leftovers()
            await daemon.kill()
            daemon.settings["WORKER_COMMAND"] = command
            await daemon.start()
            port = daemon.public_port if public else (await daemon.status())["active_port"]
            assert (await get(port))[0] == 200
            await eventually(lambda: len(daemon.leftovers()) == 1)
            assert daemon.leftovers() != old


async def test_in_single_mode_the_worker_goes_on_and_no_version_waits(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        old = await worker(daemon)
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        await daemon.kill()
        daemon.settings["DEPLOY_MODE"] = "single"
        record = await start_again(daemon)
        assert record["result"] == "aborted"
        assert record["reason"].endswith("and can't wait any longer")
        await until(daemon, "staging", state="empty")
        before = await lasting(daemon)
        await start_again_after_kill(daemon)
        assert (await lasting(daemon), daemon.leftovers()) == (before, [old])
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Ports and connections",
    "a daemon that may not copy its workers' sockets (container, ptrace_scope)",
    "it gets them from their keeper, and the workers go on",
)
async def test_where_tracing_is_refused_the_keeper_has_the_sockets(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await until_phase(daemon, "warm")
        before = await lasting(daemon)
        await daemon.kill()
        daemon.code = WITHOUT_PIDFD_GETFD
        await daemon.start()
        assert await lasting(daemon) == before
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Ports and connections",
    "sockets that can't be had back",
    "the old worker is ended before the new one starts",
)
async def test_sockets_that_cannot_be_taken_back_end_the_old_worker_first(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = daemon.leftovers()
        await daemon.kill()
        daemon.end_keeper()
        daemon.code = WITHOUT_PIDFD_GETFD
        await daemon.start()
        assert await public_version(daemon) == "v1"
        assert not set(old) & set(daemon.leftovers())
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon",
    "the state file names the slot without a worker",
    "the other one serves until it has one",
)
async def test_where_the_state_file_names_the_other_slot_the_one_with_the_traffic_serves_until_then(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old, file = await worker(daemon), state_file(daemon)
        await daemon.kill()
        rewrite(daemon, active_port=file["staging_port"], staging_port=file["active_port"])
        release(daemon, "v1", health_delay=0.5)
        starting = asyncio.create_task(daemon.start())
        while not starting.done():
            assert await worker(daemon) in {old, *daemon.leftovers()}
        await starting
        assert await worker(daemon) != old
        assert state_file(daemon)["active_port"] == file["staging_port"]
        await eventually(lambda: len(daemon.leftovers()) == 1)
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon", "killed in the middle of a flip", "both workers go on, where the state file says"
)
async def test_killed_in_the_middle_of_a_flip_both_workers_go_on_where_the_state_file_says(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await until_phase(daemon, "warm")
        before, file = await lasting(daemon), state_file(daemon)
        for turned in (True, False):  # the switch was durable; it was not
            await daemon.kill()
            write(daemon, SWITCHING)
            write(daemon, BACK_TO.format("switch"))
            if not turned:
                was = {"active_port": file["staging_port"], "staging_port": file["active_port"]}
                rewrite(daemon, **was, active_release=None)
            record = await start_again(daemon)
            assert record["deploy_id"] == deploy_id
            if turned:
                assert await until_phase(daemon, "warm")
                assert await lasting(daemon) == before
                await everything_agrees(daemon)
        assert (record["result"], record["phase"]) == ("aborted", "ended")
        active = slot(await daemon.status(), "active")
        assert active["pid"] in {view["pid"] for view in before}
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)
        await eventually(lambda: daemon.leftovers() == [active["pid"]])


@pytest.mark.fault(
    "The daemon", "killed before a revert that was decided", "the next daemon reverts"
)
async def test_a_revert_that_was_decided_is_done_by_the_next_daemon(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, WARM) as daemon:
        old = await worker(daemon)
        release(daemon, "v2")
        deploy_id = (await daemon.deploy()).json["deploy_id"]
        await eventually(lambda: rows(daemon, "SELECT phase FROM deploys") == [("warm",)])
        await daemon.kill()
        write(daemon, "UPDATE deploys SET phase = 'revert'")
        failed = "UPDATE transitions SET event = 'failed', target = 'revert' WHERE target = 'warm'"
        write(daemon, failed)
        await daemon.start()
        record = await daemon.ended(deploy_id)
        assert (record["result"], (await daemon.status())["mode"]) == ("rolled_back", "single")
        assert await worker(daemon) == old
        await everything_agrees(daemon)
