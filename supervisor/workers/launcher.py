"""Becomes the worker: puts its sockets where it expects them and executes its program.

Socket activation wants the descriptors at 3 and onwards and the worker's own pid in its
environment, which only the process itself knows. So the daemon starts this file instead, with
`python -I -S` (milliseconds), and it turns into the worker, keeping its pid.

It runs outside of the package and imports nothing but the standard library.
Arguments: descriptors (`12,13,14`, or `-`), how many of them to announce, the limit of open
files, then the command.
"""

import fcntl
import os
import resource
import sys

FIRST = 3
OUT_OF_THE_WAY = 64  # above any place that a descriptor is moved to
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # what shells exit with


def main(arguments: list[str]) -> None:
    """Set up and execute; returns only by exiting."""
    descriptors = [int(number) for number in arguments[0].split(",")] if arguments[0] != "-" else []
    announced, open_files, command = int(arguments[1]), int(arguments[2]), arguments[3:]
    place(descriptors)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    if announced:
        os.environ["LISTEN_FDS"] = str(announced)
        os.environ["LISTEN_PID"] = str(os.getpid())
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is what is wanted
    except FileNotFoundError:
        print(f"{command[0]}: not found in {os.environ.get('PATH')}", file=sys.stderr)  # noqa: T201  # the worker's log
        sys.exit(NOT_FOUND)
    except OSError as error:
        print(f"{command[0]}: can't be executed: {error.strerror}", file=sys.stderr)  # noqa: T201  # the same
        sys.exit(NOT_EXECUTABLE)


def place(descriptors: list[int]) -> None:
    """Move the descriptors to 3, 4, …, in this order, and close whatever else is open."""
    away = [fcntl.fcntl(number, fcntl.F_DUPFD, OUT_OF_THE_WAY) for number in descriptors]
    for offset, number in enumerate(away):
        os.dup2(number, FIRST + offset, inheritable=True)
    os.closerange(FIRST + len(away), max([OUT_OF_THE_WAY, *away, *descriptors]) + 1)


if __name__ == "__main__":
    main(sys.argv[1:])
