"""`docs/log-events.md`: every event that the daemon logs, read from its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.markdown import row

SOURCE = Path(__file__).resolve().parents[1] / "supervisor/atlas_supervisor"
LEVELS = ("debug", "info", "warning", "error", "critical")

DOCUMENT = """\
# Log events

<!-- Generated from the code of the daemon by ./scripts/generate-docs; do not edit. -->

Every event of `supervisor.jsonl`. An event's name never changes. `deploy_id`, `slot`, `instance`
and `release` are on the lines that concern one ([the fields](logs.md#the-daemons-own-log)); the
fields here come besides, and `why` is always a reason in words. What to do in an emergency is in
the [runbook](runbook.md).

```console
$ ./scripts/atlasctl logs --level warning
$ ./scripts/atlasctl logs --grep worker_exited
```
{sections}
"""


class LogEvent(NamedTuple):
    """One call of a module's log."""

    name: str
    level: str
    fields: tuple[str, ...]
    module: str


def calls() -> Iterator[LogEvent]:
    """Yield every call of a module's log with a literal event, in the order of the files."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "log." in text else ():
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                    args=[ast.Constant(value=str(name)), *_],
                    keywords=keywords,
                ) if level in LEVELS or level == "exception":
                    fields = [each.arg for each in keywords if each.arg and each.arg != "exc_info"]
                    traced = ["exception"] if level == "exception" else []
                    yield LogEvent(
                        name,
                        "error" if level == "exception" else level,
                        (*fields, *traced),
                        path.relative_to(SOURCE).parts[0].removesuffix(".py"),
                    )


def event_reference() -> str:
    """Return the text of `docs/log-events.md`."""
    by_level: dict[str, dict[str, list[LogEvent]]] = {level: {} for level in reversed(LEVELS)}
    for call in calls():
        by_level[call.level].setdefault(call.name, []).append(call)
    sections = []
    for level, events in by_level.items():
        if events:
            sections += ["", f"## {level.capitalize()}", "", "| event | fields | from |"]
            sections += ["| --- | --- | --- |", *(_row(*each) for each in sorted(events.items()))]
    return DOCUMENT.format(sections="\n".join(sections))


def _row(name: str, found: list[LogEvent]) -> str:
    fields = dict.fromkeys(field for each in found for field in each.fields)
    modules = dict.fromkeys(each.module for each in found)
    return row(f"`{name}`", ", ".join(f"`{field}`" for field in fields), ", ".join(modules))
