"""`./scripts/generate-docs`: writes the documents that are generated from the code.

`tests/unit/test_docs.py` compares the files in `docs/` with what this would write.
"""

from __future__ import annotations

from pathlib import Path

from atlas_supervisor.deploy.machine import (
    ACTIVITIES,
    FIRST_PHASE,
    IN_PROGRESS,
    TABLE,
    Phase,
    Row,
    diagram,
)
from atlas_supervisor.model import slot
from atlas_supervisor.model.slot import SlotState
from scripts.api_reference import api_reference
from scripts.command_reference import command_reference
from scripts.event_reference import event_reference
from scripts.fault_table import reliability
from scripts.man_page import man_page
from scripts.metrics_reference import metrics_reference
from scripts.runbook import runbook
from scripts.settings_reference import settings_reference

ROOT = Path(__file__).resolve().parents[1]

DEPLOY_MACHINE = """\
# The deploy as a table

<!-- Drawn from the table in deploy/machine.py by ./scripts/generate-docs; do not edit. -->

A deploy begins in `{first}` and ends in `{last}`. In every phase one activity runs. It passes or
fails, or something else happens meanwhile (an operator asks for something, a worker dies, the next
deploy begins, the daemon stops). The row for that phase and that event says what follows, and
nothing else can follow. A transition is written to the journal before anything that follows from
it.

In these phases a deploy is in progress, and a second one is refused:
{in_progress}.
From `{guard}` on it has its result, and the next deploy ends the rest of it early.

## The diagram

An arrow's label is the event, in brackets the condition on what was asked for, and after the
slash the deploy's result as it is known from then on.

```mermaid
{diagram}```

## The activities

| phase | activity |
| --- | --- |
{activities}

## The table

What a row demands is written in its order, after the transition and before the result is known.

| in phase | on event | if | next phase | demands | result |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def deploy_machine() -> str:
    """Return the text of `docs/deploy-machine.md`."""
    return DEPLOY_MACHINE.format(
        first=FIRST_PHASE,
        last=Phase.ENDED,
        guard=Phase.GUARD,
        in_progress=", ".join(f"`{phase}`" for phase in Phase if phase in IN_PROGRESS),
        diagram=diagram(),
        activities="\n".join(f"| `{phase}` | {words} |" for phase, words in ACTIVITIES.items()),
        rows="\n".join(table_row(row) for row in TABLE),
    )


def table_row(row: Row) -> str:
    demands = ", ".join(row.demands)
    result = f"`{row.result}`" if row.result else ""
    cells = (f"`{row.phase}`", f"`{row.event}`", row.when.value, f"`{row.target}`", demands, result)
    return f"| {' | '.join(cells)} |"


SLOT_MACHINE = """\
# A slot's life as a table

<!-- Generated from model/slot.py by ./scripts/generate-docs; do not edit. -->

A slot begins `{first}`. It runs one worker at a time. What happens to the worker is an event, and
the row for that state and that event gives the next state; no other state can follow. What a
deploy does with the two slots is in [the deploy's table](deploy-machine.md).

## The diagram

```mermaid
{diagram}```

## The table

| state | event | next state |
| --- | --- | --- |
{rows}

## The states

| state | while in it |
| --- | --- |
{states}
"""

SLOT_STATES = {
    SlotState.EMPTY: "there is no worker; queued connections go to the other slot",
    SlotState.STARTING: "a worker is launched and not ready yet",
    SlotState.RUNNING: "the worker is ready",
    SlotState.WARM: "the worker is ready and has lost the traffic; a rollback can switch to it",
    SlotState.DRAINING: "the worker finishes its connections and ends",
    SlotState.BACKOFF: "the worker crashed or was not ready in time, and is tried again later",
}


def slot_document() -> str:
    """Return the text of `docs/slot-machine.md`."""
    return SLOT_MACHINE.format(
        first=slot.INITIAL,
        diagram=slot.diagram(),
        rows="\n".join(
            f"| `{state}` | `{event}` | `{target}` |"
            for (state, event), target in slot.TABLE.items()
        ),
        states="\n".join(f"| `{state}` | {text} |" for state, text in SLOT_STATES.items()),
    )


GENERATED = {
    "docs/api.md": api_reference,
    "docs/commands.md": command_reference,
    "docs/deploy-machine.md": deploy_machine,
    "docs/log-events.md": event_reference,
    "docs/man/atlasctl.1": man_page,
    "docs/metrics.md": metrics_reference,
    "docs/reliability.md": reliability,
    "docs/runbook.md": runbook,
    "docs/settings.md": settings_reference,
    "docs/slot-machine.md": slot_document,
}
"""By path below the repository: what returns the document's text."""


def main() -> None:
    for name, write in GENERATED.items():
        (ROOT / name).write_text(write(), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
