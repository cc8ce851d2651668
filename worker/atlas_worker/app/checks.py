"""The health checks of the worker's modules."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass

from atlas_worker.app.integrity import Integrity
from atlas_worker.app.llm import LanguageModel
from atlas_worker.app.memory import Memory
from atlas_worker.app.scheduler import Scheduler

_MEMORY_SECONDS = 1.0
# The scheduler polls twice a second; its database may delay it for some seconds.
_SILENT_WARN, _SILENT_FAIL = 5.0, 30.0
# A person waits about so long for the first word.
_SLOW_SECONDS = 10.0
_FAILED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class ModuleCheck:
    """One check's finding; `status` is pass, warn, fail or skipped."""

    status: str
    value: float | None = None
    unit: str | None = None
    message: str = ""


def llm_latency(model: LanguageModel | None) -> ModuleCheck:
    """Return the check of the model, from the calls of the last 15 minutes."""
    if model is None:
        return ModuleCheck("skipped", message="LLM_URL is empty")
    calls = model.latencies.recent()
    if not calls:
        return ModuleCheck("skipped", None, "ms", "no calls in the last 15 minutes")
    times = [seconds for seconds in calls if seconds is not None]
    average = sum(times) / len(times) if times else None
    value = None if average is None else round(average * 1000, 1)
    lost = len(calls) - len(times)
    summary = f"{len(calls)} calls, {lost} failed"
    if len(calls) >= _FAILED_IN_A_ROW and not any(calls[-_FAILED_IN_A_ROW:]):
        return ModuleCheck(
            "fail", value, "ms", f"the last {_FAILED_IN_A_ROW} calls failed; {summary}"
        )
    if average is not None and average > _SLOW_SECONDS:
        return ModuleCheck("warn", value, "ms", f"slow to its first word; {summary}")
    return ModuleCheck("warn" if lost * 2 > len(calls) else "pass", value, "ms", summary)


def scheduler(running: Scheduler | None, *, leading: bool) -> ModuleCheck:
    """Return the check of the scheduler: whether it polls its database."""
    if running is None:
        return ModuleCheck("skipped", message="SCHEDULER_ENABLED is false")
    silence = running.silence()
    if silence == float("inf"):
        return ModuleCheck("fail", None, "s", "the scheduler has ended")
    value = round(silence, 3)
    if silence > _SILENT_FAIL:
        return ModuleCheck("fail", value, "s", f"no poll for {silence:.0f} s")
    if silence > _SILENT_WARN:
        return ModuleCheck("warn", value, "s", f"no poll for {silence:.0f} s")
    role = "claims jobs" if leading else "leaves jobs to the active instance"
    return ModuleCheck("pass", value, "s", f"{role}, {running.running()} running")


async def memory(notes: Memory | None) -> ModuleCheck:
    """Return the check of the memory: whether a write succeeds."""
    if notes is None:
        return ModuleCheck("skipped", message="MEMORY_ENABLED is false")
    try:
        async with asyncio.timeout(_MEMORY_SECONDS):
            seconds = await notes.try_write()
    except TimeoutError:
        return ModuleCheck("warn", None, "ms", f"no write within {_MEMORY_SECONDS:g} s")
    except sqlite3.Error as error:
        return ModuleCheck("fail", None, "ms", f"the database failed: {error}")
    return ModuleCheck("pass", round(seconds * 1000, 1), "ms", "write OK")


async def db_integrity(integrity: Integrity | None) -> ModuleCheck:
    """Return the last result of SQLite's quick check of the scheduler's database."""
    if integrity is None:
        return ModuleCheck("skipped", message="SCHEDULER_ENABLED is false")
    finding = await integrity.finding()
    if finding is None:
        return ModuleCheck("skipped", None, "s", "the first check of a large file is running")
    age = round(integrity.age(finding), 1)
    if finding.problem is not None:
        return ModuleCheck("fail", age, "s", f"the scheduler's database: {finding.problem}")
    ago = "just now" if age < 1 else f"{age:.0f} s ago"
    return ModuleCheck("pass", age, "s", f"intact, checked {ago}")
