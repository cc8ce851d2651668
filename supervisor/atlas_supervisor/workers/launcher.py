"""Becomes the worker: puts its sockets where it expects them and executes its program.

Socket activation wants the descriptors at 3 and onwards and the worker's own pid in its
environment, which only the process itself knows. So the daemon starts this file instead, with
`python -I -S` (milliseconds), and it turns into the worker, keeping its pid.

It runs outside of the package and imports nothing but the standard library.
Arguments: descriptors (`12,13,14`, or `-`), how many of them to announce, the limit of open
files, then the command.
"""

import _signal  # type: ignore[import-not-found]  # `signal` itself would double the start
import fcntl
import os
import resource
import sys

FIRST = 3
OUT_OF_THE_WAY = 64  # above any place that a descriptor is moved to
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # what shells exit with


def main(arguments: list[str]) -> int:
    """Set up and execute; return an exit status, having said why, if that can't be done."""
    descriptors = [int(number) for number in arguments[0].split(",")] if arguments[0] != "-" else []
    announced, open_files, command = int(arguments[1]), int(arguments[2]), arguments[3:]
    place(descriptors)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    if announced:
        os.environ["LISTEN_FDS"] = str(announced)
        os.environ["LISTEN_PID"] = str(os.getpid())
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them; a worker must not
        _signal.signal(number, _signal.SIG_DFL)
    program = find(command[0])
    if program is None:
        say(f"{command[0]}: not found in {os.environ.get('PATH')}")
        return NOT_FOUND
    try:
        os.execv(program, command)  # noqa: S606  # no shell is what is wanted
    except FileNotFoundError:
        say(f"{program}: not found, or what its first line names is not")
        return NOT_FOUND
    except OSError as error:
        say(f"{program}: can't be executed: {error.strerror}")
        return NOT_EXECUTABLE


def find(program: str) -> str | None:
    """Return the first program of this name in the path; one with a slash is a place by itself.

    `execvp` would go on to the next one where a script's interpreter is missing, and run the
    supervisor's own program in place of a release's broken one.
    """
    if "/" in program:
        return program
    for folder in os.get_exec_path():
        place = os.path.join(folder, program)  # noqa: PTH118  # pathlib costs a third of the start
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113  # the same
            return place
    return None


def say(message: str) -> None:
    """Write a line into the worker's log."""
    print(message, file=sys.stderr)  # noqa: T201  # there is nobody else to tell


def place(descriptors: list[int]) -> None:
    """Move the descriptors to 3, 4, …, in this order, and close whatever else is open."""
    away = [fcntl.fcntl(number, fcntl.F_DUPFD, OUT_OF_THE_WAY) for number in descriptors]
    for offset, number in enumerate(away):
        os.dup2(number, FIRST + offset, inheritable=True)
    os.closerange(FIRST + len(away), max([OUT_OF_THE_WAY, *away, *descriptors]) + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
