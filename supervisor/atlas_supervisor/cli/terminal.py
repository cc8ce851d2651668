"""The one place that writes to a terminal, so that everything is escaped.

Much of the text comes from workers: their output, answers and versions. It passes through
`printable`, and rich parses no markup in it. A terminal gets colours and a spinner; a pipe gets
plain lines of any length and no control codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from atlas_supervisor.output import is_lost, outcome_is_lost

PIPE_WIDTH = 100_000  # in a pipe lines are not wrapped: the reader is a program
TAB_WIDTH = 4
STEP_WIDTH = 9  # of "preflight", the longest; the running step lines up with the others
DURATION_WIDTH = 9

OK = "ok"
BAD = "bad"
NOTE = "note"
EVENT = "event"

_SIGNS = {
    OK: ("✓", "+", "green"),
    BAD: ("✗", "x", "red"),
    NOTE: ("!", "!", "yellow"),
    EVENT: ("·", "-", "dim"),
}


def printable(text: object) -> str:
    """Return `text` on one line, with everything escaped that could control a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(text).expandtabs(TAB_WIDTH)
    )


def safe(text: object, style: str = "") -> Text:
    """Return `text` as a renderable: escaped, and in `style`."""
    return Text(printable(text), style=style, overflow="fold")


def spaced(*parts: Text) -> Text:
    """Return the parts on one line, each in its own style."""
    return Text("  ", overflow="fold").join(parts)


class Screen:
    """An output stream: a terminal or a pipe."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_terminal = self._stream.isatty()
        self.console = Console(
            file=self._stream,
            # No control codes in a pipe, not even with FORCE_COLOR and the like.
            force_terminal=self.is_terminal,
            width=None if self.is_terminal else PIPE_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._unicode = self.console.encoding.lower().startswith("utf")

    def room(self, frame: int = 0) -> int | None:
        """Return how many columns a line has besides `frame`; None in a pipe."""
        return self.console.width - frame if self.is_terminal else None

    def sign(self, kind: str) -> Text:
        """Return the sign of this kind, in its colour, plain if the encoding lacks it."""
        symbol, plain, style = _SIGNS[kind]
        return Text(symbol if self._unicode else plain, style=style)

    def print(self, *what: RenderableType) -> None:
        """Print each of `what`; a string is taken as text from the daemon."""
        for item in what:
            renderable = safe(item) if isinstance(item, str) else item
            if self.is_terminal:
                self.console.print(renderable)
            else:
                self._print_plainly(renderable)

    def conclude(self, renderable: RenderableType) -> None:
        """Print the outcome of what was asked; that of a change goes elsewhere if this is lost."""
        self.print(renderable)
        if outcome_is_lost(self._stream):
            Screen(sys.stderr).print(renderable)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be shown here any more: its reader has left, or it is full."""
        return is_lost(self._stream)

    def failure(self, message: str, hint: str | None) -> None:
        """Print what went wrong and, below it, what to do."""
        text = safe(message)
        if hint:
            text = Text("\n").join((text, safe(hint, "dim")))
        self.print(self._beside(BAD, text))

    def line(self, kind: str, text: object) -> RenderableType:
        """Return a line that begins with a sign; what does not fit wraps beside it."""
        return self._beside(kind, safe(text))

    def _beside(self, kind: str, text: Text) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self.sign(kind), text)
        return grid

    @contextmanager
    def waiting(
        self, what: Callable[[], str], already: Callable[[], float] = lambda: 0.0
    ) -> Iterator[None]:
        """Show a spinner with `what` is waited for and how long; nothing in a pipe.

        `what` is called for every frame; the time counts from its last change. `already` returns
        how many seconds it had lasted by then.
        """
        if not self.console.is_interactive:
            yield
            return
        spinner = Spinner("dots" if self._unicode else "line", style="cyan")
        seen, since = "", time.monotonic()

        def frame() -> RenderableType:
            nonlocal seen, since
            if (now := what()) != seen:
                seen, since = now, time.monotonic() - already()
            line = Table.grid(padding=(0, 1))
            line.add_column()
            line.add_column(min_width=STEP_WIDTH)
            line.add_column(min_width=DURATION_WIDTH, justify="right")
            passed = Text(f"{time.monotonic() - since:.1f} s", style="dim")
            line.add_row(spinner, safe(now, "cyan"), passed)
            return line

        with Live(
            get_renderable=frame,
            console=self.console,
            transient=True,
            refresh_per_second=12,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def _print_plainly(self, renderable: RenderableType) -> None:
        with self.console.capture() as capture:
            self.console.print(renderable)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()  # a pipe shows a step when it happens, too


def write_json(body: bytes) -> None:
    """Write the daemon's JSON to standard output, byte for byte.

    On a terminal, control characters are written as their JSON escapes.
    """
    stream: Any = sys.stdout
    if not stream.isatty():
        stream.flush()
        stream.buffer.write(body)
        stream.buffer.flush()
        return
    text = body.decode("utf-8", "replace")
    stream.write("".join(c if c.isprintable() or c in "\r\n" else _json_escape(c) for c in text))
    stream.write("\n")


def _json_escape(character: str) -> str:
    utf16 = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{utf16[i : i + 4]}" for i in range(0, len(utf16), 4))
