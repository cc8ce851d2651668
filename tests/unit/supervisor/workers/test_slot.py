from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.slot import Role, SlotState
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber, ProbedResponse
from atlas_supervisor.system import procfs
from atlas_supervisor.workers.launch import LaunchError
from atlas_supervisor.workers.output import keep_bounded
from tests.harness import eventually
from tests.unit.supervisor.traffic.support import foreign_listener, open_files
from tests.unit.supervisor.workers.support import (
    ANSWER,
    BLUE,
    DEAF,
    GREEN,
    READY,
    READY_AND_SLEEP,
    SLEEP,
    Bench,
    bench,
    release,
    serving,
)

QUICK: dict[str, Any] = {
    "liveness_interval_seconds": 0.1,
    "liveness_failures": 2,
    "health_timeout_seconds": 0.3,
}


async def asked(port: int) -> str:
    """Return the name of the instance that answers on the port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.rpartition(b"\r\n")[2].decode()


async def test_a_worker_that_reports_ready_is_running(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        assert made.blue.state is SlotState.EMPTY
        how = await made.blue.start(release(tmp_path / "r", READY_AND_SLEEP))
        instance = made.blue.instance
        assert instance is not None
        assert "worker reported ready" in how["message"]
        assert (how["pid"], how["instance"], how["kit"]) == (instance.pid, instance.name, False)
        assert made.blue.serving
        view = made.blue.view(Role.ACTIVE)
        assert (view.state, view.pid, view.version) == (SlotState.RUNNING, instance.pid, "v1")
        assert made.registry.entries == [("launched", instance.name)]
        assert await made.blue.stop()
        assert made.registry.entries[1:] == [("gone", instance.name)]
        assert made.blue.state is SlotState.EMPTY
        assert made.blue.view(Role.ACTIVE).pid is None
        assert made.down == []


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_a_worker_that_answers_with_any_status_is_running(
    tmp_path: Path, status: int
) -> None:
    async with bench(tmp_path) as made:
        how = await made.blue.start(release(tmp_path / "r", serving(status)))
        assert "worker answered" in how["message"]
        assert made.blue.instance is not None
        for port in (made.settings.active_port, made.settings.public_port):
            assert await asked(port) == made.blue.instance.name


async def test_a_worker_that_binds_its_own_port_is_waited_for(tmp_path: Path) -> None:
    command = ("python", "-m", "http.server", "{port}", "--bind", "127.0.0.1")
    async with bench(tmp_path, worker_command=command) as made:
        how = await made.blue.start(release(tmp_path / "r", ""))
        assert "worker answered" in how["message"]


async def test_a_worker_that_binds_its_own_port_does_not_share_it_with_a_foreign_listener(
    tmp_path: Path,
) -> None:
    command = ("python", "-m", "http.server", "{port}", "--bind", "127.0.0.1")
    async with bench(tmp_path, worker_command=command) as made:
        with foreign_listener(made.blue.port) as other:
            with pytest.raises(LaunchError, match=rf"is taken: pid {other.pid} "):
                await made.blue.start(release(tmp_path / "r", ""))
            assert other.poll() is None
        assert made.blue.state is SlotState.EMPTY


async def test_a_new_descriptor_worker_is_not_taken_for_ready_by_the_other_ones_answer(
    tmp_path: Path,
) -> None:
    command = ("python", "app.py", "{fd}")
    async with bench(tmp_path, worker_command=command, ready_timeout_seconds=0.7) as made:
        await made.blue.start(release(tmp_path / "good", serving()))
        made.plane.vacate(GREEN, BLUE)  # as the daemon does for a slot without a worker
        with pytest.raises(LaunchError, match=r"not ready within 0\.7 s"):
            await made.green.start(release(tmp_path / "slow", SLEEP))


async def test_a_crash_before_ready_fails_the_launch_with_the_last_output(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as made:
        code = "print('reading the settings')\nraise ValueError('no settings')"
        with pytest.raises(LaunchError, match="exited with status 1 before it was ready") as failed:
            await made.blue.start(release(tmp_path / "r", code))
        assert failed.value.detail["output"][-1] == "ValueError: no settings"
        assert "reading the settings" in failed.value.detail["output"]
        assert made.blue.state is SlotState.EMPTY
        assert [what for what, _ in made.registry.entries] == ["launched", "gone"]
        assert made.down == []


@pytest.mark.parametrize(
    ("command", "words"),
    [((), "it must serve on the sockets that it inherits"), (("{port}",), "set SO_REUSEADDR")],
)
async def test_a_port_that_a_worker_could_not_bind_is_explained(
    tmp_path: Path, command: tuple[str, ...], words: str
) -> None:
    async with bench(tmp_path, worker_command=("python", "app.py", *command)) as made:
        code = "import errno\nraise OSError(errno.EADDRINUSE, 'Address already in use')"
        with pytest.raises(LaunchError, match=words) as failed:
            await made.blue.start(release(tmp_path / "r", code))
        assert "any other may be taken by the version that runs" in str(failed.value)


async def test_a_worker_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    async with bench(tmp_path, ready_timeout_seconds=0.5, stop_timeout_seconds=0.1) as made:
        with pytest.raises(LaunchError, match=r"not ready within 0\.5 s"):
            await made.blue.start(release(tmp_path / "r", DEAF + SLEEP))
        assert made.blue.instance is None
        assert made.blue.state is SlotState.EMPTY
        assert made.down == []


async def test_a_launch_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        launching = asyncio.create_task(made.blue.start(release(tmp_path / "r", SLEEP)))
        await eventually(lambda: made.blue.instance is not None)
        instance = made.blue.instance
        assert instance is not None
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert made.blue.instance is None
        assert instance.family() == []
        assert procfs.start_ticks(instance.pid) is None


async def test_a_launch_ends_even_when_everything_is_cancelled_at_once(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with bench(tmp_path) as made:
            made.tasks.start_soon(made.blue.start, release(tmp_path / "r", SLEEP))
            await eventually(lambda: made.blue.instance is not None)
            instance = made.blue.instance
            assert instance is not None
            made.tasks.cancel_scope.cancel()  # its watcher is cancelled with it
    assert instance.family() == []


async def test_a_missing_release_fails_the_launch(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        gone = release(tmp_path / "r", SLEEP).model_copy(update={"path": tmp_path / "gone"})
        before = open_files()
        with pytest.raises(LaunchError, match="release v1 is gone: its folder"):
            await made.blue.start(gone)
        assert made.blue.state is SlotState.EMPTY
        await eventually(lambda: open_files() <= before)


async def test_an_unusable_log_does_not_keep_a_worker_from_starting(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.blue.log.path.mkdir()
        await made.blue.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.serving


async def test_an_unusable_environment_fails_the_launch(tmp_path: Path) -> None:
    extra = tmp_path / "worker.env"
    extra.write_bytes(b"\xff")
    async with bench(tmp_path, worker_env_file=extra) as made:
        with pytest.raises(LaunchError):
            await made.blue.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.state is SlotState.EMPTY


async def test_a_crash_is_reported_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.blue.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.instance is not None
        os.kill(made.blue.instance.pid, signal.SIGKILL)
        with anyio.fail_after(5):
            await made.downs.wait()
        assert made.down == [(BLUE, "it was ended by SIGKILL")]
        assert not made.blue.alive
        await made.blue.stop()
        assert len(made.down) == 1


async def test_a_hanging_worker_is_reported_once_even_if_it_ends_meanwhile(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, **QUICK) as made:
        made.wait_when_down = anyio.Event()
        await made.blue.start(release(tmp_path / "r", serving()))
        instance = made.blue.instance
        assert instance is not None
        os.kill(instance.pid, signal.SIGSTOP)
        with anyio.fail_after(10):
            await made.downs.wait()
        ((slot, cause),) = made.down
        assert slot is BLUE
        assert "failed 2 liveness probes in a row" in cause
        os.kill(instance.pid, signal.SIGKILL)
        with anyio.fail_after(5):
            await instance.exited.wait()
        await asyncio.sleep(0.1)  # time for a second report
        assert len(made.down) == 1
        made.wait_when_down.set()


class Unsure(HttpProber):
    """Is inconclusive once the worker is ready."""

    probes = 0

    async def probe_response(self, port: int, path: str, **more: Any) -> ProbedResponse:
        if more.get("expect_instance") is None:
            return await super().probe_response(port, path, **more)
        Unsure.probes += 1
        result = ProbeResult(
            verdict=Verdict.INCONCLUSIVE, status=None, duration_ms=0, message="no descriptors"
        )
        return ProbedResponse(result, None)


async def test_inconclusive_probes_do_not_count_against_the_worker(tmp_path: Path) -> None:
    Unsure.probes = 0
    async with bench(tmp_path, Unsure, **{**QUICK, "liveness_interval_seconds": 0.02}) as made:
        await made.blue.start(release(tmp_path / "r", serving()))
        await eventually(lambda: Unsure.probes > 10)
        assert made.blue.serving
        assert made.down == []


async def test_an_answer_of_another_instance_counts_as_a_failure(tmp_path: Path) -> None:
    code = "import os\nos.environ['ATLAS_INSTANCE'] = 'another'\n" + serving()
    async with bench(tmp_path, **QUICK) as made:
        await made.blue.start(release(tmp_path / "r", code))
        with anyio.fail_after(10):
            await made.downs.wait()
        assert "wrong instance" in made.down[0][1]


async def test_a_draining_worker_serves_its_queue_first(tmp_path: Path) -> None:
    code = READY + "notify('READY=1')\n" + ANSWER + "import time\ntime.sleep(0.5)\n" + serving()
    async with bench(tmp_path) as made:
        await made.blue.start(release(tmp_path / "r", code))
        assert made.blue.instance is not None
        name = made.blue.instance.name
        queued = [asyncio.create_task(asked(made.settings.public_port)) for _ in range(10)]
        await eventually(lambda: made.plane.queued(BLUE) >= 10)
        made.plane.steer(GREEN)
        how = await made.blue.drain()
        assert how["by_itself"]
        assert set(await asyncio.gather(*queued)) == {name}
        assert made.blue.state is SlotState.EMPTY
        assert made.down == []


async def test_a_drain_is_ended_at_its_deadline(tmp_path: Path) -> None:
    async with bench(tmp_path, drain_timeout_seconds=0.2, stop_timeout_seconds=0.1) as made:
        await made.blue.start(release(tmp_path / "r", DEAF + READY_AND_SLEEP))
        with anyio.fail_after(10):
            how = await made.blue.drain()
        assert not how["by_itself"]
        assert "had to be killed" in how["message"]
        assert made.blue.instance is None


async def test_stopping_an_empty_slot_does_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        assert await made.blue.stop()
        assert made.registry.entries == []


async def test_a_worker_that_is_stopped_twice_at_once_ends_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.blue.start(release(tmp_path / "r", READY_AND_SLEEP))
        async with anyio.create_task_group() as group:
            group.start_soon(partial(made.blue.stop, drain_seconds=1))
            group.start_soon(made.blue.drain)
        assert made.blue.state is SlotState.EMPTY
        assert made.down == []


async def test_a_worker_that_fills_its_log_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_supervisor.workers.output.LIMIT_BYTES", 10_000)
    code = "import threading, time\ndef flood():\n    while True:\n        print('x' * 100)\n"
    code += "        time.sleep(0.0005)\nthreading.Thread(target=flood).start()\n" + serving()
    async with bench(tmp_path, **{**QUICK, "health_timeout_seconds": 2}) as made:
        await made.blue.start(release(tmp_path / "r", code))
        looking = asyncio.create_task(keep_bounded([made.blue.log]))
        await eventually(made.blue.log.aside.exists)
        await eventually(lambda: made.blue.log.aside.stat().st_size >= 10_000)
        looking.cancel()
        assert made.blue.serving


LISTENS_ELSEWHERE = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print("port", server.getsockname()[1], flush=True)
"""


async def refused(made: Bench, code: str, folder: Path) -> str:
    with pytest.raises(LaunchError) as failed:
        await made.blue.start(release(folder / "r", code))
    return str(failed.value).replace(listening_port(failed.value), "ELSEWHERE")


def listening_port(error: LaunchError) -> str:
    (line,) = [line for line in error.detail["output"] if line.startswith("port ")] or ["port -"]
    return str(line).split()[1]


@pytest.mark.parametrize("passing", ["activation", "fd", "port"])
async def test_a_worker_that_reports_ready_and_listens_elsewhere_is_not_ready(
    tmp_path: Path, passing: str
) -> None:
    command = (sys.executable, "app.py", *({"fd": ("{fd}",), "port": ("{port}",)}.get(passing, ())))
    async with bench(tmp_path, worker_command=command, ready_timeout_seconds=0.8) as made:
        code = READY + LISTENS_ELSEWHERE + "notify('READY=1')\n" + SLEEP
        message = await refused(made, code, tmp_path)
        assert message.startswith("it was not ready within 0.8 s; it reported ready and did not")
        assert "it listens on 127.0.0.1:ELSEWHERE; expected " in message
        assert message.endswith(f"127.0.0.1:{made.blue.port}")
        assert ("inherited descriptor" in message) is (passing != "port")
        assert made.blue.state is SlotState.EMPTY


async def test_a_start_script_without_exec_is_recognized(tmp_path: Path) -> None:
    command = ("sh", "-c", f"{shlex.quote(sys.executable)} app.py; true")
    async with bench(tmp_path, worker_command=command, ready_timeout_seconds=0.8) as made:
        message = await refused(made, LISTENS_ELSEWHERE + SLEEP, tmp_path)
        assert "listens on 127.0.0.1:ELSEWHERE (in a child process: a start script must" in message


async def test_a_worker_that_listens_on_a_unix_socket_is_recognized(tmp_path: Path) -> None:
    code = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('app')\ns.listen()\n{SLEEP}"
    async with bench(tmp_path, ready_timeout_seconds=0.8) as made:
        message = await refused(made, code, tmp_path)
        assert "it listens on the Unix socket app; expected its inherited" in message


async def test_a_worker_that_listens_nowhere_is_not_ready(tmp_path: Path) -> None:
    command = (sys.executable, "app.py", "{port}")
    async with bench(tmp_path, worker_command=command, ready_timeout_seconds=0.5) as made:
        message = await refused(made, SLEEP, tmp_path)
        assert "connection refused" in message
        assert f"it listens nowhere; expected 127.0.0.1:{made.blue.port}" in message


async def test_a_worker_that_listens_as_expected_and_does_not_answer_is_not_ready(
    tmp_path: Path,
) -> None:
    command = (sys.executable, "app.py", "{port}")
    code = f"import socket, sys\ns = socket.create_server(('', int(sys.argv[1])))\n{SLEEP}"
    async with bench(tmp_path, worker_command=command, ready_timeout_seconds=0.5) as made:
        message = await refused(made, code, tmp_path)
        assert f"it listens on 127.0.0.1:{made.blue.port} as expected" in message


async def test_a_worker_that_reports_ready_before_it_can_answer_is_waited_for(
    tmp_path: Path,
) -> None:
    code = f"{READY}notify('READY=1')\nimport time\ntime.sleep(0.7)\n{serving()}"
    async with bench(tmp_path) as made:
        how = await made.blue.start(release(tmp_path / "r", code))
        assert "worker reported ready and answered" in how["message"]
        assert made.blue.instance is not None
        assert made.blue.instance.age.seconds > 0.7


@pytest.mark.parametrize("status", [404, 500, 301])
async def test_a_worker_that_answers_with_any_status_does_not_hang(
    tmp_path: Path, status: int
) -> None:
    async with bench(tmp_path, Counting, **{**QUICK, "liveness_interval_seconds": 0.02}) as made:
        Counting.probes = 0
        await made.blue.start(release(tmp_path / "r", serving(status)))
        await eventually(lambda: Counting.probes > 6)
        assert made.down == []
        assert made.blue.answers


class Counting(HttpProber):
    """Counts its probes."""

    probes = 0

    async def probe_response(self, port: int, path: str, **more: Any) -> ProbedResponse:
        probed = await super().probe_response(port, path, **more)
        Counting.probes += 1
        return probed


async def test_with_a_liveness_path_only_2xx_is_alive(tmp_path: Path) -> None:
    async with bench(tmp_path, **QUICK, liveness_path="/livez") as made:
        await made.blue.start(release(tmp_path / "r", serving(500)))
        with anyio.fail_after(10):
            await made.downs.wait()
        assert "failed 2 liveness probes in a row" in made.down[0][1]
        assert "/livez: answered 500, expected 2xx" in made.down[0][1]


async def test_a_worker_that_does_not_answer_is_not_ready_before_it_is_restarted(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, **{**QUICK, "liveness_failures": 1000}) as made:
        await made.blue.start(release(tmp_path / "r", serving()))
        assert made.blue.instance is not None
        assert made.blue.answers
        os.kill(made.blue.instance.pid, signal.SIGSTOP)
        await eventually(lambda: not made.blue.answers)
        assert made.blue.serving
        os.kill(made.blue.instance.pid, signal.SIGCONT)
        await eventually(lambda: made.blue.answers)
