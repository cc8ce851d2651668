"""Becomes the worker: moves its sockets to descriptors 3 and up, and executes its program.

Socket activation wants the worker's own pid in its environment, which only the process itself
knows. So the daemon starts this file instead, with `python -I -S` (milliseconds), and it becomes
the worker under the same pid.

It runs outside of the package and imports nothing but the standard library.
Arguments: descriptors (`12,13,14`, or `-`), how many of them to announce, the limit of open
files, the instance's tag (see `procfs.tag_for`), the user to become (uid, gid and all groups,
`33,33,33,50`, or `-`), then the command.
"""

import _signal  # type: ignore[import-not-found]  # `signal` itself would double the start
import fcntl
import os
import resource
import sys

FIRST = 3
FEWEST_CLOSED = 64  # descriptors that an unknown parent may have left open
RLIMIT_LOCKS = 10
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # what shells exit with


def main(arguments: list[str]) -> int:
    """Set up and execute; if that fails, print why and return an exit status."""
    descriptors = numbers(arguments[0])
    announced, open_files, tag = (int(number) for number in arguments[1:4])
    user, command = numbers(arguments[4]), arguments[5:]
    place(descriptors)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    try:
        resource.setrlimit(RLIMIT_LOCKS, (tag, tag))
    except (OSError, ValueError) as error:  # it is lower already; there are other ways to find it
        report(f"the process can't be tagged: {error}")
    try:
        if user:
            become(*user)
    except OSError as error:
        report(f"uid {user[0]} can't be taken, or can't enter its folder: {error.strerror}")
        return NOT_EXECUTABLE
    if announced:
        os.environ["LISTEN_FDS"] = str(announced)
        os.environ["LISTEN_PID"] = str(os.getpid())
    # A program keeps ignoring and blocking what its parent ignores and blocks: Python SIGPIPE and
    # SIGXFSZ, the daemon more of them, a shell SIGINT and SIGQUIT in the background.
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    program = find(command[0])
    if program is None:
        report(f"{command[0]}: not found in {os.environ.get('PATH')}")
        return NOT_FOUND
    try:
        os.execv(program, command)  # noqa: S606  # without a shell on purpose
    except FileNotFoundError:
        report(f"{program}: not found, or its interpreter is not")
        return NOT_FOUND
    except OSError as error:
        report(f"{program}: can't be executed: {error.strerror}")
        return NOT_EXECUTABLE


def numbers(text: str) -> list[int]:
    """Return the numbers of a list with commas; `-` is an empty one."""
    return [int(number) for number in text.split(",")] if text != "-" else []


def become(uid: int, gid: int, *groups: int) -> None:
    """Become this user for good, and enter the current folder as such. Raises OSError."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.chdir(".")


def find(program: str) -> str | None:
    """Return the first program of this name in PATH; a name with a slash is a path already.

    `execvp` would go on to the next one where a script's interpreter is missing, and run the
    supervisor's own program in place of a release's broken one.
    """
    if "/" in program:
        return program
    for folder in os.get_exec_path():
        path = os.path.join(folder, program)  # noqa: PTH118  # pathlib costs a third of the start
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113  # the same
            return path
    return None


def report(message: str) -> None:
    """Write a line into the worker's log."""
    print(message, file=sys.stderr)  # noqa: T201  # the only way to report it


def place(descriptors: list[int]) -> None:
    """Move the descriptors to 3, 4, …, in this order, and close all others."""
    above = FIRST + len(descriptors)
    away = [fcntl.fcntl(number, fcntl.F_DUPFD, above) for number in descriptors]
    for offset, number in enumerate(away):
        os.dup2(number, FIRST + offset, inheritable=True)
    os.closerange(above, max([FEWEST_CLOSED, *away, *descriptors]) + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
