from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.model.slot import InstanceUsage
from atlas_supervisor.system import procfs
from atlas_supervisor.system.descriptors import SPARES
from atlas_supervisor.traffic import InheritedSockets
from atlas_supervisor.traffic.listeners import listen
from atlas_supervisor.workers.launch import launch, new_instance_id
from atlas_supervisor.workers.process import WorkerProcess
from tests.harness import eventually, free_ports
from tests.unit.supervisor.traffic.support import open_files
from tests.unit.supervisor.workers.support import (
    BLUE,
    DEAF,
    READY,
    READY_AND_SLEEP,
    SLEEP,
    launched,
    release,
)

GRANDCHILDREN = """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os.wait()
"""
FORGETFUL_CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})
"""
HOLD_ONE = """
import os, select, signal, socket
listener = socket.socket(fileno=3)
terms = []
signal.signal(signal.SIGTERM, lambda *_: terms.append(1))
select.select([listener], [], [])
client, _ = listener.accept()
client.setblocking(True)
notify("READY=1")
while not client.recv(1):
    pass
client.sendall(b"done " + str(len(terms)).encode())
client.close()
"""


async def test_it_exits_when_it_is_asked_to(tmp_path: Path) -> None:
    async with launched(tmp_path, READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
        assert instance.alive
        assert instance.exit_text == "is still running"
        assert await instance.stop(stop_seconds=10)
        assert not instance.alive
        assert instance.exit_text == "was ended by SIGTERM"
        assert procfs.start_ticks(instance.pid) is None  # not even a zombie


BUSY_CHILD = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "x = bytearray(64 * 2**20)\\nwhile True: pass"])
"""


async def test_its_memory_and_cpu_are_measured_with_its_children(tmp_path: Path) -> None:
    def is_busy() -> bool:
        instance.measure()
        usage = instance.usage
        return (usage.memory_mb or 0) > 64 and (usage.cpu_percent or 0) > 10

    async with launched(tmp_path, BUSY_CHILD + READY_AND_SLEEP) as instance:
        assert instance.usage.memory_mb is not None  # measured by the first reader
        await eventually(is_busy, what="the child shows in no measurement")
        await instance.stop(stop_seconds=10)
        instance.measure()
        assert instance.usage == InstanceUsage()


async def test_a_worker_that_dies_while_it_is_signalled_keeps_its_exit_status(
    tmp_path: Path,
) -> None:
    for _ in range(10):
        async with launched(tmp_path, SLEEP) as instance:
            os.kill(instance.pid, signal.SIGKILL)
            dead = time.perf_counter() + 0.001
            while time.perf_counter() < dead:
                pass  # busy, so that the thread that waits for the process does not come first
            instance.terminate()
            await instance.wait()
            assert instance.exit_text == "was ended by SIGKILL"


REPORT_SIGNALS = f"""{READY}
import signal, sys
for name in ("TERM", "QUIT", "INT", "WINCH", "USR1", "USR2"):
    signal.signal(getattr(signal, "SIG" + name), lambda number, _: sys.exit(int(number)))
notify("READY=1KIT")
{SLEEP}"""


@pytest.mark.parametrize("name", ["TERM", "QUIT", "INT", "WINCH", "USR1", "USR2"])
async def test_a_worker_is_asked_to_end_by_its_stop_signal(tmp_path: Path, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    code = REPORT_SIGNALS.replace("KIT", "")
    async with launched(tmp_path, code, stop_signal=number) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            assert await instance.stop(stop_seconds=5)
        assert instance.exit_status == number


async def test_a_worker_with_the_kit_is_asked_by_sigterm_whatever_the_stop_signal(
    tmp_path: Path,
) -> None:
    code = REPORT_SIGNALS.replace("KIT", "\\nX_ATLAS_KIT=1")
    async with launched(tmp_path, code, stop_signal=signal.SIGQUIT) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            assert await instance.stop(stop_seconds=5)
        assert instance.exit_status == signal.SIGTERM


async def test_a_worker_that_ignores_its_stop_signal_is_killed_in_time(tmp_path: Path) -> None:
    code = f"import signal\nsignal.signal(signal.SIGQUIT, signal.SIG_IGN)\n{READY_AND_SLEEP}"
    async with launched(tmp_path, code, stop_signal=signal.SIGQUIT) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            assert not await instance.stop(stop_seconds=0.1)
        assert instance.exit_status == -signal.SIGKILL


async def test_a_worker_that_ignores_sigterm_is_killed_in_time(tmp_path: Path) -> None:
    async with launched(tmp_path, DEAF + READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
        with anyio.fail_after(5):
            assert not await instance.stop(stop_seconds=0.1)
        assert instance.exit_text == "was ended by SIGKILL"
        assert procfs.start_ticks(instance.pid) is None


async def test_a_stopped_worker_is_continued_so_that_it_receives_sigterm(tmp_path: Path) -> None:
    code = (
        READY
        + "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(5))\n"
        + ("notify('READY=1')\n" + SLEEP)
    )
    async with launched(tmp_path, code) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
        os.kill(instance.pid, signal.SIGSTOP)
        with anyio.fail_after(10):
            assert await instance.stop(stop_seconds=10)
        assert instance.exit_text == "exited with status 5"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise SystemExit(3)", "exited with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "was ended by signal 40"),
    ],
)
async def test_the_exit_text_names_status_or_signal(tmp_path: Path, code: str, text: str) -> None:
    async with launched(tmp_path, code) as instance:
        with anyio.fail_after(10):
            await instance.wait()
        assert instance.exited.is_set()
        assert instance.exit_text == text


async def test_grandchildren_in_another_session_are_ended_too(tmp_path: Path) -> None:
    code = GRANDCHILDREN + READY_AND_SLEEP
    async with launched(tmp_path, code) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
        family = instance.family()
        assert len(family) == 4
        await instance.stop(stop_seconds=5)
        assert instance.family() == []
        # One that is killed already may take a moment to end.
        await eventually(lambda: all(_is_zombie(pid) for pid in family))


def _is_zombie(pid: int) -> bool:
    stat = procfs._stat(pid)
    return stat is None or stat[0] == "Z"  # orphans are their new parent's to reap


async def test_children_without_their_environment_are_ended_too(tmp_path: Path) -> None:
    async with launched(tmp_path, FORGETFUL_CHILD + READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
        assert len(instance.family()) == 2
        await instance.kill()
        assert instance.family() == []


async def test_descendants_of_a_crashed_worker_are_killed(tmp_path: Path) -> None:
    async with launched(tmp_path, GRANDCHILDREN) as instance:
        with anyio.fail_after(10):
            await instance.wait()
        assert len(instance.family()) == 3
        await instance.kill()
        assert instance.family() == []


async def test_a_worker_can_be_killed_without_another_waiting_task(tmp_path: Path) -> None:
    async with launched(tmp_path, DEAF + READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            with anyio.CancelScope() as scope:  # a watcher that was cancelled
                scope.cancel()
                await instance.wait()
            await instance.kill()
        assert not instance.alive


async def test_several_tasks_may_stop_a_worker_at_once(tmp_path: Path) -> None:
    async with launched(tmp_path, READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(partial(instance.stop, stop_seconds=5))
                group.start_soon(instance.kill)
        assert not instance.alive


async def test_draining_waits_for_its_connections_and_no_longer(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with listen("127.0.0.1", port) as sock:
        async with launched(
            tmp_path, READY + HOLD_ONE, inherited=InheritedSockets({"public": sock}), announce=True
        ) as instance:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with anyio.fail_after(10):
                await instance.reported.ready.wait()
            assert len(instance.connections({port})) == 1
            stopping = asyncio.create_task(
                instance.stop(stop_seconds=0.3, drain_seconds=20, ports={port})
            )
            await asyncio.sleep(0.8)  # longer than it would have had without a connection
            assert instance.alive
            writer.write(b"x")
            assert await reader.read() == b"done 1"
            assert await asyncio.wait_for(stopping, 10)
            writer.close()


async def test_a_drain_is_ended_at_its_deadline(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with listen("127.0.0.1", port) as sock:
        async with launched(
            tmp_path, READY + HOLD_ONE, inherited=InheritedSockets({"public": sock}), announce=True
        ) as instance:
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with anyio.fail_after(10):
                await instance.reported.ready.wait()
                by_itself = await instance.stop(stop_seconds=0.1, drain_seconds=0.2, ports={port})
            assert not by_itself
            writer.close()


async def test_sockets_are_inherited_and_announced_under_the_workers_pid(tmp_path: Path) -> None:
    code = """
import json, os, socket
names = [socket.socket(fileno=n).getsockname()[1] for n in (3, 4, 5)]
fds = sorted(int(n) for n in os.listdir("/proc/self/fd"))
environ = {k: v for k, v in os.environ.items() if k.startswith(("LISTEN", "NOTIFY"))}
print(json.dumps([os.getpid(), os.getsid(0), names, fds, environ]))
"""
    ports = free_ports(3)
    with contextlib.ExitStack() as stack:
        public, own, spare = (stack.enter_context(listen("127.0.0.1", port)) for port in ports)
        inherited = InheritedSockets({"public": public, "private": own}, spare=(spare,))
        async with launched(tmp_path, code, inherited=inherited, announce=True) as instance:
            with anyio.fail_after(10):
                await instance.wait()
        pid, session, seen, fds, environ = json.loads((tmp_path / "output").read_text())
    assert pid == session == instance.pid
    assert seen == ports
    assert [fd for fd in fds if fd > 5] in ([], [6])  # the folder that it lists
    assert environ.pop("NOTIFY_SOCKET").startswith("@atlas-notify-blue-")
    assert environ == {
        "LISTEN_FDS": "2",
        "LISTEN_PID": str(pid),
        "LISTEN_FDNAMES": "public:private",
    }


async def test_a_missing_folder_leaves_nothing_open(tmp_path: Path) -> None:
    gone = release(tmp_path / "release", SLEEP).model_copy(update={"path": tmp_path / "gone"})
    before = open_files()
    with pytest.raises(FileNotFoundError):
        async with launched(tmp_path, SLEEP, release=gone):
            pass
    assert open_files() <= before


async def test_a_launch_that_is_cancelled_is_known_and_can_be_ended(tmp_path: Path) -> None:
    name = new_instance_id(BLUE)
    made: list[WorkerProcess] = []
    with (tmp_path / "output").open("wb") as output, anyio.CancelScope() as scope:
        scope.cancel()
        made.append(
            await launch(
                slot=BLUE,
                release=release(tmp_path / "release", SLEEP),
                name=name,
                command=["sleep", "600"],
                environment={"PATH": os.environ["PATH"], "ATLAS_INSTANCE": name},
                inherited=InheritedSockets({}),
                announce=False,
                output=output.fileno(),
            )
        )
    (instance,) = made
    await instance.kill()
    assert procfs.start_ticks(instance.pid) is None


async def test_nothing_stays_open_after_many_lives(tmp_path: Path) -> None:
    async with launched(tmp_path, ""):
        pass  # what is opened once is opened now
    before = open_files()
    for _ in range(5):
        async with launched(tmp_path, "") as instance:
            with anyio.fail_after(10):
                await instance.wait()
    await eventually(lambda: open_files() <= before)


async def test_the_daemons_sockets_do_not_leak_into_a_worker(tmp_path: Path) -> None:
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    with socket.socket() as secret:
        secret.set_inheritable(True)
        async with launched(tmp_path, code) as instance:
            with anyio.fail_after(10):
                await instance.wait()
    assert (tmp_path / "output").read_text() == "['0', '1', '2', '3']\n"  # 3 is the folder


@contextlib.contextmanager
def no_descriptors() -> Iterator[list[int]]:
    """Take all descriptors of this process; closing those of the list gives them back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.dup(0))
        yield hoard
    finally:
        for number in hoard:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_descendants_are_killed_with_the_spare_descriptors_if_there_are_no_others(
    tmp_path: Path,
) -> None:
    async with launched(tmp_path, GRANDCHILDREN + READY_AND_SLEEP) as instance:
        with anyio.fail_after(10):
            await instance.reported.ready.wait()
            family = instance.family()
            SPARES.hold()
            with no_descriptors():
                await instance.kill()
        assert all(_is_zombie(pid) for pid in family)


async def test_a_family_is_unknown_and_not_empty_where_there_is_no_descriptor(
    tmp_path: Path,
) -> None:
    async with launched(tmp_path, READY_AND_SLEEP) as instance:
        with SPARES.released(), no_descriptors():
            for look in (instance.family, lambda: procfs._stat(instance.pid, strict=True)):
                with pytest.raises(OSError, match="Too many open files"):
                    look()
        assert instance.family() == [instance.pid]
