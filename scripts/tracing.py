"""`./scripts/trace`: how many files and functions a reader must follow, measured on a real daemon.

The daemon runs with `sys.setprofile`, set by this file as its wrapper program: the product has no
hook. Two spans are recorded: single looks of the canary service while a process reports calls, and
one deploy from the request until its answer. Functions are labelled with the task that entered
them; a task that also runs without a deploy is background. The tree is measured from its source.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextvars
import json
import os
import re
import runpy
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CALL_SECONDS = 5.5
"""Longer than any interval of the daemon's background tasks that could run in a deploy."""
CALLS_PER_SECOND = 50
SETTINGS: dict[str, str | int | float | Path] = {
    "CANARY_ENABLED": "true",
    "CANARY_PERCENTAGE": 0.5,
    "KEEP_WARM_SECONDS": 300,  # as shipped; with 0 the drain begins while the answer is on its way
}

LOOK_GAP_SECONDS = 0.15
"""A task that enters nothing for so long has ended one round and begins another."""

UNNAMED = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
"""Code that a reader sees as part of what surrounds it."""

LABEL = contextvars.ContextVar("label", default="no task")

Entry = tuple[str, str]
"""File below the repository, and qualified name of a function."""


# In the daemon.


@dataclass
class Recorder:
    """Records which own functions are entered, by task and in rounds of activity."""

    roots: tuple[str, ...]
    recording: bool = False
    rounds: dict[str, list[set[Entry]]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    entries: dict[CodeType, Entry | None] = field(default_factory=dict)

    def profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note a call; the interpreter calls this for every event of every thread."""
        if event != "call" or not self.recording:
            return
        code = frame.f_code
        if code not in self.entries:
            self.entries[code] = self.entry(code)
        entry = self.entries[code]
        if entry is None:
            return
        label, now = self.current(), time.monotonic()
        rounds = self.rounds.setdefault(label, [])
        if not rounds or now - self.last[label] > LOOK_GAP_SECONDS:
            rounds.append(set())
        self.last[label] = now
        rounds[-1].add(entry)

    def entry(self, code: CodeType) -> Entry | None:
        """Return where the code stands; None if it is not ours or has no name of its own."""
        path = os.path.realpath(code.co_filename)
        if code.co_name in UNNAMED or not path.startswith(self.roots):
            return None
        return os.path.relpath(path, ROOT), code.co_qualname

    def current(self) -> str:
        """Return the running task's name; threads and callbacks inherit it with their context."""
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a thread, or before the loop runs
            task = None
        if task is None:
            return LABEL.get()
        label = task.get_name()  # anyio names a task by what it runs
        if label.startswith("Task-"):
            label = getattr(task.get_coro(), "__qualname__", label)
        LABEL.set(label)
        return label

    def serve(self, listener: socket.socket) -> None:
        """Answer `start` by recording anew, and `stop` with what was entered since."""
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                self.recording = False
                answer = {
                    label: [sorted(entries) for entries in rounds]
                    for label, rounds in self.rounds.items()
                }
                if line.strip() == "start":
                    self.rounds, self.last, self.recording = {}, {}, True
                stream.write(json.dumps(answer) + "\n")
                stream.flush()


def run_daemon(address: str, roots: str, module: str, arguments: list[str]) -> None:
    """Become the daemon, recorded from outside over a Unix socket."""
    recorder = Recorder(tuple(str(ROOT / root) + os.sep for root in roots.split(",")))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=recorder.serve, args=(listener,), daemon=True).start()
    threading.setprofile(recorder.profile)
    sys.setprofile(recorder.profile)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# Outside of it.


Recorded = dict[str, list[set[Entry]]]


class Remote:
    """Starts and stops the recording in the daemon."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        self._stream = self._socket.makefile("rw")

    def start(self) -> None:
        self._say("start")

    def stop(self) -> Recorded:
        """Return the functions that each task entered, round by round."""
        return {
            label: [{(file, name) for file, name in entries} for entries in rounds]
            for label, rounds in self._say("stop").items()
        }

    def _say(self, word: str) -> dict[str, Any]:
        self._stream.write(f"{word}\n")
        self._stream.flush()
        answer: dict[str, Any] = json.loads(self._stream.readline())
        return answer

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@dataclass(frozen=True)
class Span:
    """What one span entered; `background` is what only tasks entered that run without it, too."""

    name: str
    entered: set[Entry]
    background: set[Entry] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        return sorted({file for file, _ in self.entered})

    @property
    def background_files(self) -> list[str]:
        return sorted({file for file, _ in self.background} - set(self.files))


def merged(rounds: list[set[Entry]]) -> set[Entry]:
    return set().union(*rounds)


def foreground(name: str, recorded: Recorded, idle: Recorded) -> Span:
    """Separate a span from the tasks that run all the time."""
    own = [merged(rounds) for label, rounds in recorded.items() if label not in idle]
    everything = merged([merged(rounds) for rounds in recorded.values()])
    entered = merged(own)
    return Span(name, entered, everything - entered)


CALLER = """
import sys, time
from {kit} import canary
for number in range(int(sys.argv[1])):
    with canary.call("vision"):
        pass
    time.sleep(1 / float(sys.argv[2]))
"""


async def measure(options: argparse.Namespace) -> list[Span]:
    """Run a daemon under the recorder, and record both spans."""
    sys.path.insert(0, str(ROOT))
    from tests.harness import DaemonProcess  # noqa: PLC0415 - the daemon's process needs none of it

    with tempfile.TemporaryDirectory(prefix="atlas-trace-") as name:
        address = Path(name) / "trace.sock"
        program = [__file__, "--daemon", str(address), ",".join(options.roots), options.module]
        async with DaemonProcess.running(Path(name), SETTINGS, program=program) as daemon:
            remote = Remote(address)
            try:
                remote.start()
                await report_calls(daemon.state_dir, options.kit)
                idle = remote.stop()
                remote.start()
                answer = await daemon.deploy()
                deploy = remote.stop()
            finally:
                remote.close()
    if answer.status != 200:
        raise RuntimeError(f"the deploy failed: {answer}")
    rounds = rounds_of(idle, options.canary)
    largest = max(rounds, key=lambda entries: (len({file for file, _ in entries}), len(entries)))
    return [
        foreground("one deploy, from the request until its answer", deploy, idle),
        Span(f"one canary look, the largest of {len(rounds)}", largest),
    ]


def rounds_of(recorded: Recorded, pattern: str) -> list[set[Entry]]:
    """Return the rounds of the canary service's task."""
    for label, rounds in recorded.items():
        if re.search(pattern, label):
            return rounds
    raise RuntimeError(f"no task's name matches {pattern}: {sorted(recorded)}")


async def report_calls(state_dir: Path, kit: str) -> None:
    """Let a process of its own make canary calls, as a worker does."""
    environment = {**os.environ, "ATLAS_STATE_DIR": str(state_dir)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CALLER.format(kit=kit),
        str(int(CALL_SECONDS * CALLS_PER_SECOND)),
        str(CALLS_PER_SECOND),
        cwd=ROOT,
        env=environment,
    )
    if await process.wait() != 0:
        raise RuntimeError("the process that makes canary calls failed")


# The tree.


@dataclass(frozen=True)
class Tree:
    """Size of the Python source below one folder."""

    name: str
    files: int
    lines: int
    functions: int
    median: float
    p95: float


def tree(folder: Path) -> Tree:
    """Measure a folder; a function's length is its lines from `def` to its last."""
    sources = [path.read_text() for path in sorted(folder.rglob("*.py"))]
    lengths = [length for source in sources for length in function_lengths(source)]
    return Tree(
        name=folder.name,
        files=len(sources),
        lines=sum(len(source.splitlines()) for source in sources),
        functions=len(lengths),
        median=statistics.median(lengths),
        p95=statistics.quantiles(lengths, n=20)[-1],
    )


def function_lengths(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


# What is printed.


def show(spans: list[Span], *, names: bool) -> None:
    for span in spans:
        print(f"{span.name}: {len(span.files)} files, {len(span.entered)} functions")
        rooms = Counter(Path(file).parent.as_posix() for file in span.files)
        print("  " + ", ".join(f"{Path(room).name} {count}" for room, count in rooms.items()))
        if span.background:
            background = span.background_files
            print(f"  besides, in the background: {len(background)} files")
        for file in span.files:
            print(f"  {file}")
            if names:
                for name in sorted(name for where, name in span.entered if where == file):
                    print(f"    {name}")
        for file in span.background_files:
            print(f"  {file} (background)")
        print()


def show_trees(trees: list[Tree]) -> None:
    print(f"{'tree':<12}{'files':>7}{'lines':>9}{'functions':>11}{'median':>8}{'p95':>6}")
    for each in trees:
        numbers = f"{each.files:>7}{each.lines:>9,}{each.functions:>11,}"
        print(f"{each.name:<12}{numbers}{each.median:>8.0f}{each.p95:>6.0f}")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/trace", description=__doc__.split("\n\n")[1])
    parser.add_argument("--module", default="atlas_supervisor", help="the daemon's module")
    parser.add_argument("--kit", default="atlas_worker", help="where `canary` is imported from")
    parser.add_argument(
        "--roots",
        nargs="+",
        default=["supervisor", "worker/atlas_worker/contract"],
        help="folders whose files are own files",
    )
    parser.add_argument("--canary", default="Canar", help="pattern of the canary task's name")
    parser.add_argument("--functions", action="store_true", help="list the functions, too")
    parser.add_argument("--tree", action="store_true", help="measure the tree only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the entries there, too")
    return parser.parse_args(given)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
    if not options.tree:
        spans = asyncio.run(measure(options))
        show(spans, names=options.functions)
        if options.json is not None:
            document = {span.name: sorted(span.entered) for span in spans}
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    show_trees([tree(ROOT / name) for name in ("supervisor", "worker", "scripts", "tests")])
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--daemon"]:
        run_daemon(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    else:
        sys.exit(main())
