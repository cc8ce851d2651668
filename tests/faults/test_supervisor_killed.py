"""The supervisor is killed in the middle of a deploy; the next one brings everything to an end.

Afterwards file, database and steering agree, no process is left over, and the record explains.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.failpoints import killed_at
from tests.faults.support import start_again
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import (
    WARM,
    everything_agrees,
    public_version,
    release,
    rewrite,
    rows,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
    write,
)
from tests.invariants import invariants_hold

SLOW_SMOKE = '[[command]]\nname = "long"\nrun = ["sleep", "30"]\n'


async def begin(daemon: DaemonProcess) -> asyncio.Task[Any]:
    task = asyncio.create_task(daemon.deploy())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def stopped_at_the_switch(daemon: DaemonProcess) -> None:
    """Leave what a daemon leaves that dies after it wrote down its intent to switch to v2."""
    release(daemon, "v2")
    deploy_id = (await daemon.deploy()).json["deploy_id"]
    await daemon.ended(deploy_id)
    await daemon.stop()
    write(
        daemon,
        "UPDATE deploys SET phase = 'switch', result = NULL, ended_ts = NULL,"
        " active_port = staging_port, staging_port = active_port",
    )
    write(
        daemon,
        "DELETE FROM transitions WHERE id > (SELECT id FROM transitions WHERE target = 'switch')",
    )


@pytest.mark.parametrize("phase", ["launch", "smoke", "health"])
@pytest.mark.fault(
    "The daemon", "killed before the switch", "the deploy is aborted, and the old version serves"
)
async def test_killed_before_the_switch_the_deploy_is_aborted_and_the_old_version_serves(
    tmp_path: Path, phase: str
) -> None:
    smoke = tmp_path / "smoke.toml"
    smoke.write_text(SLOW_SMOKE if phase == "smoke" else "")
    settings: dict[str, Setting] = {"SMOKE_FILE": smoke, "HEALTH_TIMEOUT_SECONDS": 30}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", health_delay={"launch": 20, "smoke": 0, "health": 0.5}[phase])
        await begin(daemon)
        # The journal counts, not what the daemon says: it writes a moment later.
        await eventually(lambda: rows(daemon, "SELECT phase FROM deploys") == [(phase,)])
        await daemon.kill()
        release(daemon, "v1")
        record = await start_again(daemon)
        assert record["result"] == "aborted"
        assert record["reason"] == f"the supervisor ended during {phase}"
        assert record["phase"] == "ended"
        assert await public_version(daemon) == "v1"
        assert (await daemon.status())["mode"] == "bluegreen"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        await everything_agrees(daemon)


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.fault("The daemon", "killed while a version waits for its switch", "it waits on")
async def test_killed_while_a_version_waits_it_goes_on_waiting(tmp_path: Path, lives: bool) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        release(daemon, "v2")
        waiting = (await daemon.deploy()).json
        before = slot(await daemon.status(), "staging")
        await daemon.kill()
        if not lives:
            os.kill(before["pid"], signal.SIGKILL)
        await start_again(daemon)
        record = await until_phase(daemon, "awaiting_switch")
        assert record["deploy_id"] == waiting["deploy_id"]
        steps = [step["name"] for step in record["steps"]]
        assert steps.count("health") == (1 if lives else 2)  # its instance has passed the gates
        after = slot(await daemon.status(), "staging")
        assert (after["pid"] == before["pid"], after["state"]) == (lives, "running")
        switched = await daemon.request("POST", "/deploy/switch")
        assert (switched.status, switched.json["result"]) == (200, "switched")
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)


async def test_stopped_while_a_version_waits_it_goes_on_waiting(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        release(daemon, "v2")
        waiting = (await daemon.deploy()).json
        await daemon.stop()
        await daemon.start()
        record = await until_phase(daemon, "awaiting_switch")
        assert record["deploy_id"] == waiting["deploy_id"]
        aborted = await daemon.request("POST", "/deploy/abort")
        assert (aborted.status, aborted.json["result"]) == (200, "aborted")


async def test_the_record_of_a_deploy_that_the_stop_interrupted_says_so(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health_delay=20)
        await begin(daemon)
        await until_phase(daemon, "launch")
        await daemon.stop()
        release(daemon, "v1")
        await daemon.start()
        record = (await daemon.status())["last_deploy"]
        assert record["result"] == "aborted"
        assert "the supervisor was stopped" in record["reason"]


@pytest.mark.parametrize("phase", ["guard", "warm"])
@pytest.mark.fault("The daemon", "killed after the switch", "the new version stays")
async def test_killed_with_the_version_before_the_new_version_stays(
    tmp_path: Path, phase: str
) -> None:
    async with scripted_daemon(
        tmp_path, {**WARM, "GUARD_SECONDS": 30 if phase == "guard" else 0}
    ) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await eventually(lambda: rows(daemon, "SELECT phase FROM deploys") == [(phase,)])
        before = state_file(daemon)
        warm = slot(await daemon.status(), "staging")["pid"]
        await daemon.kill()
        os.kill(warm, signal.SIGKILL)
        record = await start_again(daemon)
        assert (record["result"], record["phase"]) == ("switched", "ended")
        assert record["reason"] == f"the supervisor ended during {phase}"
        assert state_file(daemon)["active_port"] == before["active_port"]
        assert await public_version(daemon) == "v2"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon", "killed between the intent and the state file", "the switch is taken back"
)
async def test_killed_between_the_intent_and_the_state_file_the_switch_is_taken_back(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await stopped_at_the_switch(daemon)
        file = state_file(daemon)
        rewrite(daemon, active_port=file["staging_port"], staging_port=file["active_port"])
        await daemon.start()
        record = (await daemon.status())["last_deploy"]
        assert (record["result"], record["phase"]) == ("aborted", "ended")
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "killed after the state file was durable", "the switch counts")
async def test_killed_after_the_state_file_was_durable_the_switch_counts(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await stopped_at_the_switch(daemon)
        await daemon.start()
        record = (await daemon.status())["last_deploy"]
        assert (record["result"], record["phase"]) == ("switched", "ended")
        assert record["active_port"] == state_file(daemon)["active_port"]
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)


@pytest.mark.fault(
    "The daemon", "killed before a fallback was written", "the next daemon writes it"
)
async def test_a_fallback_that_a_kill_kept_from_the_disk_is_written_by_the_next_daemon(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health=500)

        async def deploy() -> None:
            await daemon.deploy()

        # The first is at the start, and the second has the time of the deploy.
        assert await killed_at(daemon, "before-state-file:3", deploy)
        assert state_file(daemon)["mode"] == "bluegreen"
        release(daemon, "v1")
        await daemon.start()
        assert (await daemon.status())["mode"] == "single"
        assert (await daemon.status())["last_deploy"]["result"] == "failed"


async def test_workers_live_on_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await daemon.kill()
        for _ in range(20):
            assert await public_version(daemon) == "v1"
        await start_again(daemon)
        assert await public_version(daemon) == "v1"
        await eventually(lambda: len(daemon.leftovers()) == 1)


@pytest.mark.fault(
    "The daemon",
    "started twice on one state folder",
    "the second one refuses, names the first and touches nothing",
)
async def test_a_second_daemon_refuses_names_the_first_and_touches_nothing(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        second = DaemonProcess(tmp_path / "second", daemon.settings)
        process = await second.launch()
        assert await process.wait() == 1
        assert f"pid {daemon.pid}" in (second.folder / "daemon.out").read_text()
        assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Ports and connections",
    "a port held by another program",
    "the start is refused and names it; it is never killed",
)
async def test_a_port_held_by_another_program_is_refused_with_its_name(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    stranger = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", daemon.public_port)
    async with stranger:
        with pytest.raises(AssertionError, match="ended with 1"):
            await daemon.start()
        said = (tmp_path / "daemon.out").read_text()
        assert f"PUBLIC_PORT={daemon.public_port} is taken" in said
        assert f"pid {os.getpid()}" in said
    await daemon.clean_up()


@pytest.mark.fault(
    "Ports and connections",
    "a stray listener on the public port",
    "the deploy fails in its preflight and names it",
)
async def test_a_stray_listener_on_the_public_port_stops_a_deploy_and_is_named(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {"PUBLIC_HOST": "0.0.0.0"}) as daemon:
        stray = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import socket,sys; s=socket.socket(); s.setsockopt(1,15,1); s.setsockopt(1,2,1);"
            f"s.bind(('127.0.0.1',{daemon.public_port})); s.listen(); print(flush=True);"
            "sys.stdin.read()",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert stray.stdout is not None
        await stray.stdout.readline()
        try:
            release(daemon, "v2")
            answer = await daemon.deploy()
            assert answer.status == 422
            assert [step["name"] for step in answer.json["steps"]] == ["preflight"]
            assert f"pid {stray.pid}" in answer.json["reason"]
            assert (await daemon.status())["mode"] == "bluegreen"
        finally:
            stray.send_signal(signal.SIGKILL)
            await stray.communicate()


UNUSABLE = (b"", b"{", b"\xff\xfe garbage", b'{"schema_version": 99}', b'{"mode": "purple"}')


@pytest.mark.fault(
    "Disk and files",
    "a state file that is empty, cut short, garbage, from the future or missing",
    "it is rebuilt from its copy, latches included",
)
async def test_an_unusable_or_missing_state_file_is_rebuilt(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        before = state_file(daemon)
        for times, content in enumerate((None, *UNUSABLE), 1):
            await daemon.stop()
            (daemon.state_dir / "deploy_state.json").unlink()
            if content is not None:
                (daemon.state_dir / "deploy_state.json").write_bytes(content)
            await daemon.start()
            after = state_file(daemon)
            assert after["active_port"] == before["active_port"]
            assert after["last_switch_ts"] == before["last_switch_ts"]
            aside = list(daemon.state_dir.glob("deploy_state.json.unreadable-*"))
            assert [path.read_bytes() for path in aside] == ([] if content is None else [content])
            for path in aside:
                path.unlink()
            audited = rows(daemon, "SELECT outcome FROM audit WHERE action = 'state_file'")
            assert audited == [("rebuilt",)] * times
            await everything_agrees(daemon)
            await invariants_hold(daemon)


@pytest.mark.fault("Database", "corrupt", "it is set aside, and the state file counts")
async def test_a_corrupt_database_is_set_aside_and_the_state_file_counts(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        before = state_file(daemon)
        await daemon.stop()
        for name in ("atlas.db-wal", "atlas.db-shm"):
            (daemon.state_dir / name).unlink(missing_ok=True)
        (daemon.state_dir / "atlas.db").write_bytes(b"no database" * 1000)
        await daemon.start()
        assert state_file(daemon)["active_port"] == before["active_port"]
        assert len(list(daemon.state_dir.glob("atlas.db.unreadable-*"))) == 1
        release(daemon, "v3")
        assert (await daemon.deploy()).status == 200
        await everything_agrees(daemon)


@pytest.mark.fault("Disk and files", "a state file with an unknown port", "the first port, audited")
async def test_an_active_port_that_is_none_of_ours_falls_back_to_the_first(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await daemon.stop()
        rewrite(daemon, active_port=1)
        await daemon.start()
        assert state_file(daemon)["active_port"] == daemon.settings["ACTIVE_PORT"]
        assert rows(daemon, "SELECT outcome FROM audit WHERE action = 'active_port'") == [
            ("reset",)
        ]
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "any other signal", "it goes on, and logs the signal")
async def test_no_signal_but_those_two_ends_a_running_daemon_and_each_is_logged(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        stopping = {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP}
        pausing = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
        for number in signal.valid_signals() - stopping - pausing:
            os.kill(daemon.pid, number)
        log = daemon.state_dir / "logs" / "supervisor.jsonl"
        for name in ("QUIT", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "RTMIN", "RTMAX"):
            await eventually(lambda name=name: f'"signal": "SIG{name}"' in log.read_text())  # type: ignore[misc]
        await eventually(lambda: '"actor": "SIGHUP"' in log.read_text())  # the one that reloads
        assert (await daemon.request("GET", "/livez")).status == 200
