"""Counts and evidence of feature canaries: all that one look at the rings brought, in one go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from atlas_supervisor.model.canary import CountsRow, EpochRow, KeyRow, RingRow
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.state_keeper import state_saved
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.failpoints import seam


@dataclass
class CanaryCommit:
    """What is to be written together: nothing of it may be there without the rest."""

    counts: Sequence[CountsRow] = ()
    rings: Sequence[RingRow] = ()
    gone: Sequence[str] = ()
    """Rings that are read to their end and no more."""
    epochs: Sequence[EpochRow] = ()
    keys: Sequence[KeyRow] = ()
    """Changed intervals of keys; those of rounds between the first and theirs are deleted."""
    ramps: Sequence[int] | None = None
    """The ramps that go on, where that has changed: the keys of all others are forgotten."""
    state: DeployState | None = None
    """The state file's content, where that has changed."""
    progress: Mapping[str, str] = field(default_factory=dict)
    """JSON by name."""


class CanaryStore:
    """What is known of canaries, for as long as `CANARY_RETENTION_DAYS`."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    @seam("canary-commit")
    async def commit(self, commit: CanaryCommit) -> None:
        """Write it all, or nothing."""
        statements: list[Statement] = [
            *(("put_canary_counts", row._asdict()) for row in commit.counts),
            *(("put_canary_ring", row._asdict()) for row in commit.rings),
            *(("forget_canary_ring", {"ring": ring}) for ring in commit.gone),
            *(("add_canary_epoch", row._asdict()) for row in commit.epochs),
            *(("put_canary_key", row._asdict()) for row in commit.keys),
            *(
                ("forget_canary_rounds", {"ramp": ramp, "round": number})
                for ramp, number in {(row.ramp, row.round) for row in commit.keys if row.round > 1}
            ),
            *(
                ("put_canary_progress", {"name": name, "value": value})
                for name, value in commit.progress.items()
            ),
        ]
        if commit.state is not None:
            statements.append(state_saved(commit.state))
        if commit.ramps is not None:
            statements.append(("forget_canary_keys", {"ramps": json.dumps(list(commit.ramps))}))
        await self._statements.write(*statements)

    async def trim(self, now: float, *, kept_days: float) -> None:
        """Forget what is too old; `now` is Unix time."""
        since = int(now - kept_days * 86400)
        before = datetime.fromtimestamp(since, UTC).isoformat()
        await self._statements.write(
            ("trim_canary_counts", {"since": since}), ("trim_canary_epochs", {"before": before})
        )

    async def counts(self, span: int, since: int, until: int) -> list[CountsRow]:
        """Return the spans of this length that begin in `[since, until)`, Unix time."""
        rows = await self._statements.read("canary_counts", span=span, since=since, until=until)
        return [CountsRow(*row) for row in rows]

    async def epochs(self, since: int) -> list[EpochRow]:
        """Return the epochs that had calls since then, and the last one of each feature."""
        return [EpochRow(*row) for row in await self._statements.read("canary_epochs", since=since)]

    async def rings(self) -> list[RingRow]:
        """Return how far each ring is accounted for."""
        return [RingRow(*row) for row in await self._statements.read("canary_rings")]

    async def keys(self) -> list[KeyRow]:
        """Return the intervals of all keys."""
        return [KeyRow(*row) for row in await self._statements.read("canary_keys")]

    async def progress(self) -> dict[str, str]:
        """Return the other values, by name."""
        return {row["name"]: row["value"] for row in await self._statements.read("canary_progress")}
