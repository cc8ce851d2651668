"""The process that daemons or workers are forked from (see `fork_server.py`); run by its path.

It imports the daemon's program as `python -m atlas_supervisor` does, or what workers import of
others, and starts neither a thread nor an event loop. Its arguments are the descriptor of a socket
and the kind. Each message there asks for a process, with descriptors: one to answer on (pid, later
exit status), two for its output, and the sockets that it is to have.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
from pathlib import Path
from typing import Any

PACKAGE = "atlas_supervisor"
# What the daemon imports only after its start, in each of its runs.
LATER = (
    "anyio._backends._asyncio",
    "anyio.to_thread",
    "concurrent.futures.thread",
    "encodings.idna",
    f"{PACKAGE}.api.openapi",
)
# What workers import with the kit, which each imports itself. Not gunicorn: it keeps the folder
# that it is imported in.
SERVERS = (
    *("aiohttp.web", "concurrent.futures.thread", "encodings.idna", "h11", "httptools", "sqlite3"),
    *("uvicorn.main", "uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl"),
    *("uvloop", "websockets.server"),
)
ENV_FILE = Path(__file__).parents[1] / "atlas.env"
FAILPOINT = "ATLAS_FAILPOINT"
LARGEST = 1 << 17
MOST_FILES = 16
FIRST_OWN = 3


def main(control: socket.socket, kind: str) -> None:
    """Fork processes until the other side closes the socket; a fork becomes what was asked for."""
    {"daemon": preload_daemon, "worker": preload_worker}[kind]()
    request = serve(control)
    if request is not None:
        become(request)


def preload_worker() -> None:
    """Import what workers import, but for the kit."""
    for name in SERVERS:
        importlib.import_module(name)


def preload_daemon() -> None:
    """Import what a daemon imports, as it does."""
    start = importlib.import_module(f"{PACKAGE}.__main__")
    with start.without_collector(), start.without_certificates(), start.without_rich():
        importlib.import_module(f"{PACKAGE}.main")
        for name in LATER:
            importlib.import_module(name)
        importlib.import_module(f"{PACKAGE}.system.program").own_version()  # which it keeps
    # Regular expressions and the like, which it compiles when it uses them first.
    importlib.import_module(f"{PACKAGE}.main").main(["--check", "--env-file", str(ENV_FILE)])
    del sys.modules[start.__name__]  # each fork runs it as its own


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Answer requests. Returns None at the end, and in a fork what is asked of it."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the pid, and whom to tell
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                report(*running.pop(descriptor))
                os.close(descriptor)
                continue
            message, files, _, _ = socket.recv_fds(control, LARGEST, MOST_FILES)
            if not message:
                return None
            answers = socket.socket(fileno=files[0])
            pid = os.fork()
            if not pid:
                for sock in (control, answers, *(each for _, each in running.values())):
                    sock.detach()  # its number may be another file's soon
                stand_alone(files[1:])
                return dict(json.loads(message))
            for file in files[1:]:
                os.close(file)
            handle = os.pidfd_open(pid)
            running[handle] = (pid, answers)
            poll.register(handle, select.POLLIN)
            send(answers, pid)


def report(pid: int, answers: socket.socket) -> None:
    """Reap a process and send how it ended."""
    _, status = os.waitpid(pid, 0)
    with answers:
        send(answers, os.waitstatus_to_exitcode(status))


def send(answers: socket.socket, number: int) -> None:
    try:
        answers.send(number.to_bytes(4, signed=True), socket.MSG_NOSIGNAL)
    except OSError:  # the test has not waited for its end
        return


def stand_alone(files: list[int]) -> None:
    """Keep nothing of the server's: neither its session nor a file of its."""
    os.setsid()
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, FIRST_OWN + len(files)) for file in files]
    for number, file in enumerate(above, 1):
        os.dup2(file, number)
    os.closerange(FIRST_OWN - 2 + len(files), os.sysconf("SC_OPEN_MAX"))


def become(request: dict[str, Any]) -> None:
    """Run a program as `python` would; it ends this process."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "LISTEN_FDS" in os.environ:
        os.environ.setdefault("LISTEN_PID", str(os.getpid()))
    if FAILPOINT in os.environ:  # which a module's import reads
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
    more = os.environ.get("PYTHONPATH", "")
    sys.path[:1] = [request["folder"], *(more.split(os.pathsep) if more else ())]
    option, program, *arguments = request["program"]
    sys.argv[1:] = arguments
    sys.orig_argv = [sys.executable, *request["program"]]  # what a reload executes
    try:
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})  # noqa: S102  # a test's own
    except SystemExit as end:
        if isinstance(end.code, int):
            end_quickly(end.code)
        raise


def end_quickly(status: int) -> None:
    """End as the interpreter does, but leave it to the kernel to take all modules apart.

    They are shared with the server, so that each would be copied for it: a quarter of what a
    daemon costs that starts and stops.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # no other name
    atexit._run_exitfuncs()  # no other name
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
