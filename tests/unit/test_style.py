"""Log events and metric helps keep to a short style, in the whole daemon."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.supervisor.telemetry.support import everything, exposed_name
from tests.unit.support import log_calls

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}

EVENT = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+|st(opping|opped)")
"""Snake_case of two words or more; the daemon's own end needs no subject."""
NOT_IN_EVENTS = {
    *("a", "and", "anew", "begun", "did", "do", "does", "fell", "gone", "had", "has", "is", "it"),
    *("let", "look", "looked", "mended", "nobody", "noted", "one", "owed", "said", "somebody"),
    *("taken", "the", "told", "unwise", "was", "what", "whoever"),
}
"""Private words, and those that make an event a sentence."""

NOT_IN_HELPS = {
    *(
        "anybody",
        "begun",
        "did",
        "goes",
        "gone",
        "had",
        "nobody",
        "owed",
        "said",
        "says",
        "somebody",
    ),
    *("tells", "themselves", "told", "was", "were", "whatever", "whoever"),
}
"""Private words, and the past tense: a help describes what a value means at a scrape."""


def events() -> Iterator[tuple[str, str]]:
    """Yield each call of a module's `log`, as its place and its event."""
    for place, level, event in log_calls():
        if place.startswith("supervisor/") and level in LEVELS:
            yield place, str(event.value) if isinstance(event, ast.Constant) else ""


def problem_of_event(event: str) -> str | None:
    if not event:
        return "the event is not a literal"
    if not EVENT.fullmatch(event):
        return "not snake_case of two words or more"
    if words := NOT_IN_EVENTS & set(event.split("_")):
        return f"has {', '.join(sorted(words))}"
    return None


def problem_of_help(text: str) -> str | None:
    if not re.fullmatch(r"[A-Z0-9].*\.", text):
        return "does not start with a capital or a number, or does not end with a period"
    if words := NOT_IN_HELPS & set(re.findall(r"[a-z]+", text.lower())):
        return f"has {', '.join(sorted(words))}"
    return None


def test_log_events_are_snake_case_in_standard_terms() -> None:
    found = list(events())
    offenders = [
        f"{place}: {event!r} {problem}"
        for place, event in found
        if (problem := problem_of_event(event))
    ]

    assert len(found) > 60
    assert not offenders, "\n".join(["", *offenders])


def test_metric_helps_are_sentences_in_the_present_tense(tmp_path: Path) -> None:
    families = everything(tmp_path, os.getpid())
    # The texts of prometheus_client's own collectors are not ours to word.
    ours = [each for each in families if not re.match("atlas_(process|python)_", each.name)]
    offenders = [
        f"{exposed_name(each)}: {each.documentation!r} {problem}"
        for each in ours
        if (problem := problem_of_help(each.documentation))
    ]

    assert len(ours) > 40
    assert not offenders, "\n".join(["", *offenders])
