"""The walk along a chain finds every change of its entries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from atlas_supervisor.model.audit import Problem
from atlas_supervisor.store.audit import NOTHING, Head, hash_of
from atlas_supervisor.store.audit_trail import ChainBreak, ChainRow, Walk

TEXTS = st.text(max_size=8)
FIELDS = st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, st.none() | TEXTS, TEXTS, TEXTS)
MANY = st.lists(FIELDS, min_size=1, max_size=8)


def chained(entries: Sequence[tuple[Any, ...]], after: Head = NOTHING) -> list[ChainRow]:
    """Return the entries as rows of a chain."""
    rows, last = [], after
    for number, entry in enumerate(entries, start=after.id + 1):
        row = ChainRow._make((number, *entry, last.hash, hash_of(last.hash, (number, *entry))))
        rows.append(row)
        last = Head(row.id, row.hash)
    return rows


def end(rows: Sequence[ChainRow]) -> Head:
    return Head(rows[-1].id, rows[-1].hash)


def fault(rows: Sequence[ChainRow], head: Head) -> ChainBreak | None:
    """Walk along rows as a database gives them out, and tell what is found first."""
    walk = Walk()
    rows = sorted(rows, key=lambda row: row.id)
    for row in rows:
        if row.id <= head.id and (found := walk.step(row)):
            return found
    return walk.arrived(head, max((row.id for row in rows), default=0))


@given(MANY)
def test_a_chain_as_it_was_written_is_whole(entries: list[tuple[Any, ...]]) -> None:
    rows = chained(entries)
    assert fault(rows, end(rows)) is None


def test_no_entry_at_all_is_whole() -> None:
    assert fault([], NOTHING) is None


@given(MANY, st.data())
def test_any_field_of_any_entry_that_is_changed_is_found(
    entries: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    rows = chained(entries)
    which = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(ChainRow._fields))
    value = data.draw(st.integers(-(2**63), 2**63 - 1) if field == "id" else st.none() | TEXTS)
    assume(value != getattr(rows[which], field) and value not in {row.id for row in rows})
    before = rows[which]
    rows[which] = ChainRow._make({**before._asdict(), field: value}.values())
    found = fault(rows, end(chained(entries)))
    assert found is not None
    if field not in ("id", "previous_hash"):
        assert found[:2] == (before.id, Problem.CHANGED)


@given(MANY, st.data())
def test_a_change_that_covers_its_own_traces_is_found_by_the_next_entry_or_the_head(
    entries: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    rows = chained(entries)
    which = data.draw(st.integers(0, len(rows) - 1))
    until = data.draw(st.integers(which, len(rows) - 1))
    forged = [(*entry[:3], "forged", *entry[4:]) for entry in entries]
    assume(forged[which] != entries[which])
    before = rows[which - 1] if which else None
    after = Head(before.id, before.hash) if before else NOTHING
    changed = chained(forged[which : until + 1], after)
    found = fault([*rows[:which], *changed, *rows[until + 1 :]], end(rows))
    assert found is not None
    assert found.problem is Problem.OUT_OF_PLACE


@given(MANY, st.data())
def test_entries_that_are_taken_out_are_missed_from_the_first_of_them_on(
    entries: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    rows = chained(entries)
    gone = data.draw(st.sets(st.integers(1, len(rows)), min_size=1))
    found = fault([row for row in rows if row.id not in gone], end(rows))
    assert found is not None
    assert found.id == min(gone)
    at_the_end = set(range(min(gone), len(rows) + 1)) == gone
    assert found.problem is (Problem.CUT_OFF if at_the_end else Problem.MISSING)


@given(st.lists(FIELDS, min_size=2, max_size=8, unique=True), st.data())
def test_two_entries_that_are_exchanged_are_found(
    entries: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    rows = chained(entries)
    one, other = sorted(data.draw(st.permutations(range(len(rows))))[:2])
    swapped = list(rows)
    swapped[one] = rows[other]._replace(id=rows[one].id)
    swapped[other] = rows[one]._replace(id=rows[other].id)
    found = fault(swapped, end(rows))
    assert found is not None
    assert found.id == rows[one].id


@given(MANY, FIELDS, st.data())
def test_an_entry_that_is_put_in_between_is_found(
    entries: list[tuple[Any, ...]], entry: tuple[Any, ...], data: st.DataObject
) -> None:
    rows = chained(entries)
    place = data.draw(st.integers(0, len(rows)))
    before = end(rows[:place]) if place else NOTHING
    # The ids after it moved on; its own hash is right.
    added = chained([entry], before)
    moved = [row._replace(id=row.id + 1) for row in rows[place:]]
    found = fault([*rows[:place], *added, *moved], end(rows))
    assert found is not None
    assert found.id in (before.id + 1, before.id + 2)


@given(MANY, FIELDS)
def test_an_entry_that_is_added_at_the_end_or_before_the_first_is_found(
    entries: list[tuple[Any, ...]], entry: tuple[Any, ...]
) -> None:
    rows = chained(entries)
    added = chained([entry], end(rows))
    found = fault([*rows, *added], end(rows))
    assert found is not None
    assert found[:2] == (len(rows) + 1, Problem.FOREIGN)
    found = fault([added[0]._replace(id=0), *rows], end(rows))
    assert found is not None
    assert found[:2] == (0, Problem.FOREIGN)


def test_a_file_may_begin_with_the_entry_that_says_where_the_others_went() -> None:
    old = chained([("t", "a", "o", "mode", None, "single", "{}")] * 3)
    aside = ("t", "supervisor", "internal", "database", None, "set_aside", "{}")
    new = chained([aside, *[("t", "a", "o", "mode", None, "single", "{}")] * 2], end(old))
    assert fault(new, end(new)) is None
    found = fault(new[1:], end(new))
    assert found is not None
    assert (found.id, found.problem, found.message) == (
        1,
        Problem.MISSING,
        "entries 1 to 4 are missing",
    )


def test_an_entry_is_hashed_as_it_is_documented() -> None:
    (row,) = chained(
        [("2026-01-05T09:30:00+00:00", "uid:0", "unix", "mode", None, "single", '{"why": "ä"}')]
    )
    written = (
        '["' + "0" * 64 + '",1,"2026-01-05T09:30:00+00:00","uid:0","unix","mode",null,"single",'
        '"{\\"why\\": \\"\\u00e4\\"}"]'
    )
    assert row.hash == hashlib.sha256(written.encode()).hexdigest()
