"""The table of a slot's life: complete, without dead ends, and as the status promises it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.model.slot import (
    INITIAL,
    SERVING,
    TABLE,
    SlotEvent,
    SlotState,
    UnexpectedEventError,
    diagram,
    next_state,
    possible,
)

EVENTS = st.lists(st.sampled_from(SlotEvent), max_size=40)
EARLIER = {SlotEvent.ADOPTED, SlotEvent.INHERITED}
OWN = st.lists(st.sampled_from(sorted({*SlotEvent} - EARLIER)), max_size=40)
"""What can happen to workers that this daemon has launched."""


def walk(events: list[SlotEvent]) -> SlotState:
    """Apply the events that are possible, one after the other."""
    state = INITIAL
    for event in events:
        if possible(state, event):
            state = next_state(state, event)
    return state


def test_every_state_and_every_event_is_in_the_table() -> None:
    assert {state for state, _ in TABLE} == set(SlotState) == {INITIAL, *TABLE.values()}
    assert {event for _, event in TABLE} == set(SlotEvent)


def test_a_slot_can_be_cleared_in_every_state() -> None:
    assert {next_state(state, SlotEvent.CLEARED) for state in SlotState} == {SlotState.EMPTY}


def test_an_event_without_a_row_is_refused() -> None:
    missing = [pair for pair in product(SlotState, SlotEvent) if pair not in TABLE]
    assert missing
    for state, event in missing:
        assert not possible(state, event)
        with pytest.raises(UnexpectedEventError, match=f"{event} is not possible in {state}"):
            next_state(state, event)


def test_only_a_ready_worker_gains_or_loses_the_traffic() -> None:
    roles = {SlotEvent.ACTIVATED, SlotEvent.DEACTIVATED}
    assert {state for state, event in TABLE if event in roles} == SERVING
    assert {TABLE[each] for each in TABLE if each[1] in roles} == SERVING


@given(OWN)
def test_a_worker_runs_only_after_it_was_launched_and_became_ready(events: list[SlotEvent]) -> None:
    state, seen = INITIAL, list[SlotEvent]()
    for event in events:
        if possible(state, event):
            state = next_state(state, event)
            seen.append(event)
        if state in SERVING:
            launch = len(seen) - seen[::-1].index(SlotEvent.LAUNCHED)
            assert SlotEvent.READY in seen[launch:]
            assert SlotEvent.CLEARED not in seen[launch:]


@given(EVENTS)
def test_a_new_worker_can_be_launched_once_the_slot_was_cleared(events: list[SlotEvent]) -> None:
    assert possible(walk([*events, SlotEvent.CLEARED]), SlotEvent.LAUNCHED)


@given(OWN)
def test_a_draining_worker_never_serves_again(events: list[SlotEvent]) -> None:
    state = SlotState.DRAINING
    for event in events:
        if event is SlotEvent.LAUNCHED:
            break
        if possible(state, event):
            state = next_state(state, event)
        assert state not in SERVING


def test_only_an_empty_slot_inherits_a_worker_and_keeps_it_out_of_the_active_role() -> None:
    rows = {state: target for (state, event), target in TABLE.items() if event == "inherited"}
    assert rows == {SlotState.EMPTY: SlotState.WARM}


def test_the_diagram_has_an_arrow_for_every_row() -> None:
    arrows = diagram().splitlines()[2:]
    assert len(arrows) == len(TABLE)
    assert "    starting --> running: ready" in arrows
