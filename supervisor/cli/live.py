"""`atlasctl show --follow`: a deploy's story so far, and then as it goes on, up to its end."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime

from rich.text import Text

from supervisor.cli.client import Record
from supervisor.cli.follow import follow
from supervisor.cli.records import doing, outcome, settled, succeeded, switch_failed
from supervisor.cli.session import Session
from supervisor.cli.story import story
from supervisor.cli.terminal import Screen
from supervisor.cli.units import moment

WIDTHS = (8, len("old version drained"), 8)
"""Of the story's columns: its parts are printed before the widest of them is known."""


async def tell(session: Session, deploy_id: str) -> Record:
    """Print what is new until nothing more will happen; return the record as it is then.

    How it came out is told when it is known, and again if that changes.
    """
    session.parting = f"The deploy goes on; `atlasctl show -f {deploy_id}` watches it again."
    record: Record = {}
    teller = Teller(session.screen)
    with session.screen.waiting(lambda: doing(record), lambda: already(record)):
        async with aclosing(follow(session, deploy_id, ended)) as records:
            async for record in records:
                teller.tell(record)
    return record


async def until_ended(session: Session, deploy_id: str) -> None:
    """Wait, without a word, until nothing more will happen."""
    async with aclosing(follow(session, deploy_id, ended)) as records:
        async for _ in records:
            pass


def ended(record: Record) -> bool:
    """Tell whether nothing more will happen: guard, warm time and drain are over as well."""
    return record.get("phase") == "ended"


def already(record: Record) -> float:
    """Return for how many seconds the present phase has gone on, as far as clocks agree."""
    transitions = record.get("transitions") or [{}]
    began = moment(transitions[-1].get("ts"))
    return 0.0 if began is None else max(0.0, (datetime.now(UTC) - began).total_seconds())


class Teller:
    """Prints of each record what the ones before did not have."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told = {"transitions": 0, "steps": 0}
        self._outcome: object = None
        self._outcome_last = False

    def tell(self, record: Record) -> None:
        """Print the transitions that are new, and the outcome if it is."""
        new = dict(record)
        for name, told in self._told.items():
            every = record.get(name) or []
            new[name] = every[told:]
            self._told[name] = len(every)
        lines = list(story(self._screen, new, WIDTHS))
        if lines and self._outcome_last:
            lines.insert(0, Text())
        self._outcome_last = self._outcome_last and not lines
        self._screen.print(*lines)
        how = (record.get("result"), record.get("reason"), switch_failed(record))
        if settled(record) and how != self._outcome:
            self._outcome, self._outcome_last = how, True
            self._screen.print(Text(), outcome(self._screen, record, ok=succeeded(record)))
