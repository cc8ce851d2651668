"""`./scripts/generate-docs`: the documents that are drawn from the code, so that they are right.

`tests/unit/test_docs.py` compares what stands in `docs/` with what this would write.
"""

from __future__ import annotations

from pathlib import Path

from atlas_supervisor.deploy.machine import FIRST_PHASE, IN_PROGRESS, TABLE, Phase, Row, diagram

ROOT = Path(__file__).resolve().parents[1]

DEPLOY_MACHINE = """\
# The deploy as a table

<!-- Drawn from the table in deploy/machine.py by ./scripts/generate-docs; do not edit. -->

A deploy begins in `{first}` and ends in `{last}`. In every phase one activity runs. It passes or
fails, or something else happens meanwhile (an operator asks for something, a worker dies, the next
deploy begins, the daemon stops). The row for that phase and that event says what follows, and
nothing else can follow. A transition is written to the journal before its effects are performed.

While a deploy is in one of these phases it holds the place, and a second one is refused:
{in_progress}.
From `{guard}` on it has its result, and the next deploy ends early what is left of it.

## The diagram

An arrow's label is the event, in brackets the condition on what was asked for, and after the
slash the deploy's result as it is known from then on.

```mermaid
{diagram}```

## The table

The effects of a row are performed in their order; the last one is the activity of the next phase.

| in phase | on event | if | next phase | effects | result |
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
        rows="\n".join(table_row(row) for row in TABLE),
    )


def table_row(row: Row) -> str:
    effects = ", ".join(effect.value for effect in row.effects)
    result = f"`{row.result}`" if row.result else ""
    cells = (f"`{row.phase}`", f"`{row.event}`", row.when.value, f"`{row.target}`", effects, result)
    return f"| {' | '.join(cells)} |"


GENERATED = {"docs/deploy-machine.md": deploy_machine}
"""By path below the repository: what returns the document's text."""


def main() -> None:
    for name, write in GENERATED.items():
        (ROOT / name).write_text(write(), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
