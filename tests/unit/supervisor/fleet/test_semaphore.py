"""The slots that hosts share."""

from __future__ import annotations

from atlas_supervisor.fleet import semaphore as slots
from atlas_supervisor.fleet.documents import Purpose, Semaphore
from tests.unit.supervisor.fleet.support import START


def taken(semaphore: Semaphore, host: str, purpose: Purpose = Purpose.DEPLOY) -> Semaphore:
    after = slots.take(semaphore, host, purpose, now=START)
    assert after is not None
    return after


def test_each_change_makes_the_generation_grow_and_a_slot_keeps_its_own() -> None:
    first = taken(Semaphore(slots=2, generation=7), "a")
    second = taken(first, "b")

    assert second.generation == 9
    assert {host: each.generation for host, each in second.holders.items()} == {"a": 8, "b": 9}
    freed = slots.give_back(second, "a", 8)
    assert freed is not None
    assert (freed.generation, set(freed.holders)) == (10, {"b"})


def test_deploys_and_reboots_share_the_slots() -> None:
    full = taken(Semaphore(slots=1), "a", Purpose.REBOOT)

    assert slots.take(full, "b", Purpose.DEPLOY, now=START) is None


def test_a_host_has_one_slot() -> None:
    held = taken(Semaphore(slots=3), "a", Purpose.REBOOT)

    assert slots.take(held, "a", Purpose.DEPLOY, now=START) is None


def test_a_slot_of_another_generation_is_not_given_back() -> None:
    held = taken(Semaphore(slots=1), "a")

    assert slots.give_back(held, "a", 2) is None
    assert slots.give_back(held, "b", 1) is None


def test_fewer_slots_than_holders_leave_none_free() -> None:
    held = taken(taken(Semaphore(slots=2), "a"), "b")

    assert slots.free_slots(slots.resized(held, 1)) == 0


def test_holders_are_named_in_words() -> None:
    one = taken(Semaphore(slots=1), "web2")
    two = taken(taken(Semaphore(slots=3), "web2"), "web1")

    assert slots.in_words(Semaphore(slots=2)) == "0 of 2 slots are held"
    assert slots.in_words(one) == "1 of 1 slots is held by web2"
    assert slots.in_words(two) == "2 of 3 slots are held by web1, web2"
    many = Semaphore(slots=7)
    for host in "gfedcba":
        many = taken(many, host)
    assert slots.in_words(many) == "7 of 7 slots are held by a, b, c, d, e and 2 more"
