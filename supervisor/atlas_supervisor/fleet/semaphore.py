"""The fleet's semaphore: how many hosts may be unavailable at a time, and which ones are.

Deploys and reboots share it. There is no lease: time alone frees no slot. Every change makes the
generation grow by one, and a slot keeps the generation at which it was taken; so a holder that
comes back after its slot was broken, and was perhaps taken anew, knows that it is not its own.

All of it is pure; to make a change that two hosts can't both make is the engine's work.
"""

from __future__ import annotations

from datetime import datetime

from atlas_supervisor.fleet.documents import Holder, Purpose, Semaphore

_NAMES = 5


def free_slots(semaphore: Semaphore) -> int:
    """Return how many slots can be taken now."""
    return max(semaphore.slots - len(semaphore.holders), 0)


def take(
    semaphore: Semaphore,
    host: str,
    purpose: Purpose,
    *,
    now: datetime,
    rollout_id: str | None = None,
    client_id: str | None = None,
) -> Semaphore | None:
    """Return the semaphore with a slot taken for a host; None if none is free or it has one."""
    if host in semaphore.holders or not free_slots(semaphore):
        return None
    holder = Holder(
        purpose=purpose,
        since_ts=now,
        generation=semaphore.generation + 1,
        rollout_id=rollout_id,
        client_id=client_id,
    )
    return _changed(semaphore, {**semaphore.holders, host: holder})


def give_back(semaphore: Semaphore, host: str, generation: int) -> Semaphore | None:
    """Return the semaphore without a host's slot; None if it holds none of this generation.

    An operator's break is the same: the host is another one's.
    """
    if not holds(semaphore, host, generation):
        return None
    left = {name: holder for name, holder in semaphore.holders.items() if name != host}
    return _changed(semaphore, left)


def resized(semaphore: Semaphore, slots: int) -> Semaphore:
    """Return the semaphore with another number of slots; the caller sees that it isn't exceeded."""
    return semaphore.model_copy(update={"slots": slots, "generation": semaphore.generation + 1})


def holds(semaphore: Semaphore, host: str, generation: int) -> bool:
    """Return whether a host holds the slot that it took at this generation."""
    holder = semaphore.holders.get(host)
    return holder is not None and holder.generation == generation


def in_words(semaphore: Semaphore) -> str:
    """Return how many slots are held, and by which hosts: "1 of 1 slots is held by web2".

    A thousand hosts announce it, so it has five names at most.
    """
    held = len(semaphore.holders)
    if not held:
        return f"0 of {semaphore.slots} slots are held"
    verb = "is" if held == 1 else "are"
    names = sorted(semaphore.holders)[:_NAMES]
    more = f" and {held - _NAMES} more" if held > _NAMES else ""
    return f"{held} of {semaphore.slots} slots {verb} held by {', '.join(names)}{more}"


def _changed(semaphore: Semaphore, holders: dict[str, Holder]) -> Semaphore:
    return semaphore.model_copy(update={"generation": semaphore.generation + 1, "holders": holders})
