"""The process that daemons are forked from (see `fork_server.py`); run by its path.

It imports the daemon's program as `python -m atlas_supervisor` does, and starts neither a thread
nor an event loop. Its argument is the descriptor of a socket. Each message there asks for a
daemon, with two descriptors: one to answer on (pid, later exit status), one for its output.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
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
FAILPOINT = "ATLAS_FAILPOINT"
LARGEST = 1 << 17
FIRST_OWN = 3


def main(control: socket.socket) -> None:
    """Fork daemons until the other side closes the socket; a fork becomes its daemon."""
    preload()
    request = serve(control)
    if request is not None:
        become(request)


def preload() -> None:
    """Import what a daemon imports, as it does."""
    start = importlib.import_module(f"{PACKAGE}.__main__")
    with start._without_collector(), start._without_certificates(), start._without_rich():
        importlib.import_module(f"{PACKAGE}.main")
        for name in LATER:
            importlib.import_module(name)
        importlib.import_module(f"{PACKAGE}.system.program").own_version()  # which it keeps
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
            message, files, _, _ = socket.recv_fds(control, LARGEST, 2)
            if not message:
                return None
            answers = socket.socket(fileno=files[0])
            pid = os.fork()
            if not pid:
                for sock in (control, answers, *(each for _, each in running.values())):
                    sock.detach()  # its number may be another file's soon
                stand_alone(files[1])
                return dict(json.loads(message))
            os.close(files[1])
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


def stand_alone(output: int) -> None:
    """Keep nothing of the server's: neither its session nor a file of its."""
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.closerange(FIRST_OWN, os.sysconf("SC_OPEN_MAX"))


def become(request: dict[str, Any]) -> None:
    """Run the daemon's program as `python -m` would; it ends this process."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if FAILPOINT in os.environ:  # which a module's import reads
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
    sys.path[0] = request["folder"]
    sys.argv[1:] = request["arguments"]
    code = request["code"]
    program = ("-m", PACKAGE) if code is None else ("-c", code)
    sys.orig_argv = [sys.executable, *program, *request["arguments"]]  # what a reload executes
    try:
        if code is None:
            runpy.run_module(PACKAGE, run_name="__main__", alter_sys=True)
        else:
            exec(code, {"__name__": "__main__"})  # noqa: S102  # a test's own
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
    main(socket.socket(fileno=int(sys.argv[1])))
