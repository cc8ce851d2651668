"""What was done and what was violated, as it is counted and as it is printed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.invariants import INVARIANTS
from tests.loadclient import Report

LOST = "no request is lost"
WORKERS_STAY = "no worker is replaced by a kill or a reload"
LIVES = "the daemon ends only if it is killed"
ANSWERS = "the API answers as documented"
NOTHING_LEFT = "a stop leaves nothing"
ALL = (*INVARIANTS, WORKERS_STAY, LIVES, ANSWERS, NOTHING_LEFT)


@dataclass
class Findings:
    """Counts by action and by invariant; every violation is printed as it is found."""

    verbose: bool = False
    actions: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    violated: Counter[str] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)
    """Seconds from each start of a daemon until it was ready."""
    began: float = field(default_factory=time.monotonic)

    def acted(self, action: str) -> None:
        """Count an action."""
        self.actions[action] += 1
        if self.verbose:
            self.print(action)

    def check(
        self,
        names: Sequence[str],
        problems: Mapping[str, Sequence[str]],
        after: str,
        story: Callable[[], str] = str,
    ) -> None:
        """Count a check of these invariants; print what violates them, and at first the logs."""
        self.checks.update(names)
        if problems and not self.violated:
            print(story(), file=sys.stderr)
        for name, found in problems.items():
            self.violated[name] += 1
            for problem in found:
                self.print(f"VIOLATED after {after}: {name}: {problem}")

    def note(self, name: str, problems: Sequence[str], after: str) -> None:
        """Count a check of one invariant."""
        self.check((name,), {name: problems} if problems else {}, after)

    def print(self, line: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"{time.monotonic() - self.began:8.1f} s  {line}", flush=True)

    def show(self, load: Report, allowed: int) -> int:
        """Print the tables; return the exit status."""
        console = Console()
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.actions.items()))
        console.print(f"\n{done or 'nothing was done'}", highlight=False)
        lost = len(load.losses) - allowed
        console.print(
            f"{load.sent:,} requests, {lost} lost"
            + (f", besides {allowed} in flight at a process that was killed" if allowed else ""),
            highlight=False,
        )
        if self.starts:
            ordered = sorted(self.starts)
            median, longest = ordered[len(ordered) // 2], ordered[-1]
            console.print(
                f"{len(ordered)} starts of the daemon, ready after {median:.1f} s in the median, "
                f"{longest:.1f} s at most",
                highlight=False,
            )
        table = Table("invariant", "checks", "violated")
        for name in ALL:
            table.add_row(name, str(self.checks[name]), str(self.violated[name]))
        console.print(table)
        sys.stdout.flush()
        return 1 if self.violated else 0
