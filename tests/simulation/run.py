"""Plays seeds, and tells their stories."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

from tests.simulation.clock import virtual
from tests.simulation.scenario import Scenario
from tests.simulation.seams import Seams
from tests.simulation.support import clear, prepare
from tests.simulation.world import World

_LEFT_OUT = {"worker_launched", "worker_exited", "api_listening", "worker_ready"}
_DEFECTS = {"write_dropped", "deploy_activity_failed", "canary_poll_failed", "audit_trail_broken"}
"""Log events that only a bug can cause."""


_SWEPT = 20
"""After so many seeds memory is swept: that takes as long as half a seed."""


@dataclass(frozen=True)
class Played:
    """How a seed went."""

    seed: int
    broken: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join((f"seed {self.seed}", *self.lines, *self.verdict))

    @property
    def verdict(self) -> list[str]:
        return [f"BROKEN: {each}" for each in self.broken]


class Player:
    """Plays seeds one after another on a folder in memory; to be used as a context manager."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        parent = memory if memory.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="atlas-", dir=parent))
        self._played = 0

    def __enter__(self) -> Player:
        prepare(self._folder)
        gc.freeze()  # what was imported need not be looked through again and again
        gc.disable()  # what is collected when must not depend on what was played before
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()
        gc.enable()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Collect what killed daemons have left, which complains that it was not closed."""
        with patch.object(sys, "unraisablehook", lambda _: None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()

    def play(self, seed: int) -> Played:
        """Play a seed, and return its story."""
        clear(self._folder)
        self._played += 1
        if self._played % _SWEPT == 0:
            self._sweep()
        with patch.object(sys, "unraisablehook", lambda _: None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._play(seed)

    def _play(self, seed: int) -> Played:
        scenario = Scenario(seed, self._folder)
        world = scenario.world
        with virtual(world.timeline), _logs_heard(world), Seams(scenario.life).installed():
            scenario.play()
        lines = [f"{moment:9.3f}  {text}" for moment, text in world.story]
        if world.failure is not None:
            lines += traceback.format_exception(world.failure)
        text = "\n".join(lines).replace(str(self._folder), "")
        return Played(seed, tuple(world.broken), tuple(text.splitlines()))


@contextmanager
def _logs_heard(world: World) -> Iterator[None]:
    """Let the daemon's log be a part of the story."""
    before = structlog.get_config()

    def heard(_logger: Any, level: str, event: MutableMapping[str, Any]) -> Any:
        if world.daemon is None or world.daemon.is_killed:
            raise structlog.DropEvent  # it was killed
        name = event.pop("event")
        error = sys.exc_info()[1] if event.pop("exc_info", None) else None
        if name in _DEFECTS and (error or name == "audit_trail_broken"):
            world.breach(f"{name}: {error!r}")
            world.failure = world.failure or error
        if name not in _LEFT_OUT:
            facts = " ".join(f"{key}={value}" for key, value in sorted(event.items()))
            world.tell(f"log: {level} {name} {facts}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, heard],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
