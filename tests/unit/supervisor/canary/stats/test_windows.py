from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.canary.stats import windows as windows_module
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.outcomes import TIMEOUT_SLICES, CallOutcome, CallTracker
from atlas_supervisor.canary.stats.windows import GRACE_SLICES, ClosedWindow, Group, Windows

RAMP = 7
CANARY, STABLE = Group(7, 100, canary=True), Group(7, 100, canary=False)
OVER = 100 + 1 + GRACE_SLICES


def following(*epochs: int) -> tuple[Windows, CallTracker]:
    windows = Windows()
    windows.set_ramps(dict.fromkeys(epochs or (7,), RAMP))
    return windows, CallTracker(windows)


def arms(sealed: list[ClosedWindow]) -> list[tuple[int, Arm, Arm]]:
    return [(each.slice, each.canary, each.stable) for each in sealed]


def begin(calls: CallTracker, group: Group, count: int = 1, ring: str = "r") -> None:
    calls.begin(ring, group, count, asked=False)


def end(
    calls: CallTracker,
    group: Group,
    count: int = 1,
    *,
    outcome: CallOutcome = CallOutcome.OK,
    ring: str = "r",
) -> None:
    calls.end(ring, group, count, outcome, 300, asked=False)


def test_a_window_closes_after_its_calls_and_its_grace_have_ended() -> None:
    windows, calls = following()
    begin(calls, CANARY, 2)
    begin(calls, STABLE, 3)
    end(calls, CANARY, 2, outcome=CallOutcome.ERROR)
    end(calls, STABLE, 3)

    assert windows.pop_closed(OVER - 1) == []
    assert arms(windows.pop_closed(OVER)) == [(100, Arm(2, 2), Arm(3, 0))]
    assert windows.pop_closed(OVER + 1) == []


def test_an_open_call_blocks_its_window_and_all_later_ones() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    later = CANARY._replace(slice=101)
    begin(calls, later)
    end(calls, later)

    assert windows.pop_closed(OVER + 50) == []
    end(calls, CANARY)
    assert [each.slice for each in windows.pop_closed(OVER + 50)] == [100, 101]


def test_windows_close_in_order_of_assignment_for_any_order_of_outcomes() -> None:
    windows, calls = following()
    groups = [CANARY._replace(slice=piece) for piece in range(100, 160)]
    for group in groups:
        begin(calls, group)
    shuffled = random.Random(1).sample(groups, len(groups))  # noqa: S311  # an order, no secret
    seen: list[int] = []
    for group in shuffled:
        end(calls, group)
        seen += [each.slice for each in windows.pop_closed(1000)]

    assert seen == [group.slice for group in groups]


def test_the_epochs_of_a_ramp_close_in_one_order() -> None:
    windows, calls = following(7, 8)
    for group in (Group(8, 101, canary=True), Group(7, 101, canary=True), CANARY):
        begin(calls, group)
        end(calls, group)

    sealed = windows.pop_closed(OVER + 1)
    assert [(each.slice, each.epoch) for each in sealed] == [(100, 7), (101, 7), (101, 8)]


def test_calls_of_several_processes_are_one_window() -> None:
    windows, calls = following()
    for ring in ("a", "b", "c"):
        begin(calls, CANARY, ring=ring)
    for ring in ("a", "b"):
        end(calls, CANARY, ring=ring)

    assert windows.pop_closed(OVER) == []
    end(calls, CANARY, ring="c", outcome=CallOutcome.ERROR)
    assert arms(windows.pop_closed(OVER)) == [(100, Arm(3, 1), Arm())]


def test_a_call_that_never_ends_fails_after_its_timeout() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    begin(calls, STABLE)
    calls.expire(100 + TIMEOUT_SLICES)
    assert calls.open == 2
    calls.expire(101 + TIMEOUT_SLICES)

    assert calls.open == 0
    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm(1, 1))]
    assert calls.pop_tallies()[CANARY].errors == 1


def test_an_outcome_after_the_timeout_is_late_and_not_counted() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    calls.expire(1000)
    calls.pop_tallies()
    end(calls, CANARY)

    assert calls.late == 1
    assert calls.pop_tallies() == {}
    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm())]


def test_after_a_process_exit_started_calls_have_failed_and_decisions_are_unreported() -> None:
    windows, calls = following()
    begin(calls, CANARY, 2, ring="dead")
    calls.begin("dead", STABLE, 3, asked=True)
    begin(calls, STABLE, ring="alive")
    end(calls, STABLE, ring="alive")
    calls.process_exited("dead", 104)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(2, 2), Arm(1, 0))]
    tallies = calls.pop_tallies()
    assert (tallies[CANARY].calls, tallies[CANARY].errors) == (2, 2)
    assert (tallies[STABLE].assigned, tallies[STABLE].unreported) == (4, 3)
    assert tallies[STABLE].calls == 1


def test_a_decision_without_an_outcome_is_not_evidence() -> None:
    windows, calls = following()
    calls.begin("r", CANARY, 2, asked=True)
    calls.end("r", CANARY, 1, CallOutcome.ERROR, 300, asked=True)
    assert windows.pop_closed(OVER + 10) == []

    calls.expire(1000)
    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm())]
    assert calls.pop_tallies()[CANARY].unreported == 1


def test_a_cancelled_call_counts_and_is_not_a_failure() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    end(calls, CANARY, outcome=CallOutcome.CANCELLED)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 0), Arm())]
    tally = calls.pop_tallies()[CANARY]
    assert (tally.calls, tally.errors, tally.cancelled, tally.latency.count) == (1, 0, 1, 1)


def test_a_recorded_call_is_assigned_and_ended_at_once() -> None:
    windows, calls = following()
    calls.record(CANARY, 4, CallOutcome.ERROR, 300)

    assert calls.open == 0
    assert arms(windows.pop_closed(OVER)) == [(100, Arm(4, 4), Arm())]
    assert calls.pop_tallies()[CANARY].assigned == 4


def test_calls_of_a_closed_window_are_counted_and_not_evidence() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    end(calls, CANARY)
    windows.pop_closed(OVER)
    calls.pop_tallies()
    begin(calls, CANARY)
    end(calls, CANARY, outcome=CallOutcome.ERROR)

    assert windows.pop_closed(1000) == []
    assert windows.late == 1
    assert calls.pop_tallies()[CANARY].errors == 1


def test_an_empty_slice_closes_too_so_late_calls_do_not_reopen_it() -> None:
    windows, calls = following()
    begin(calls, CANARY._replace(slice=200))
    end(calls, CANARY._replace(slice=200))
    windows.pop_closed(205)
    begin(calls, CANARY._replace(slice=150))

    assert windows.late == 1


def test_calls_of_an_epoch_without_a_ramp_are_counted_and_not_evidence() -> None:
    windows, calls = following()
    other = CANARY._replace(epoch=99)
    begin(calls, other)
    end(calls, other)

    assert windows.pop_closed(1000) == []
    assert windows.late == 0
    assert calls.pop_tallies()[other].calls == 1


def test_a_ramp_that_ends_is_dropped_with_its_open_calls() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    calls.begin("r", CANARY, 1, asked=False, key=5)
    windows.set_ramps({})
    end(calls, CANARY)
    calls.end("r", CANARY, 1, CallOutcome.ERROR, 300, asked=False, key=5)

    assert windows.pop_closed(1000) == []
    assert windows.pending_calls(RAMP) == 0


def test_the_first_call_of_a_key_is_evidence_and_all_its_calls_are_counted() -> None:
    windows, calls = following()
    for piece in (100, 101, 102):
        group = CANARY._replace(slice=piece)
        calls.begin("r", group, 1, asked=False, key=0)
        calls.end("r", group, 1, CallOutcome.ERROR, 300, asked=False, key=0)

    assert sum(each.canary.calls for each in windows.pop_closed(1000)) == 1
    assert sum(tally.calls for tally in calls.pop_tallies().values()) == 3
    assert windows.pop_new_keys() == [(RAMP, 0)]
    assert windows.pop_new_keys() == []


def test_the_outcome_of_a_key_is_that_of_its_first_call_even_if_a_later_one_ends_first() -> None:
    windows, calls = following()
    later = CANARY._replace(slice=101)
    calls.begin("r", CANARY, 1, asked=False, key=5)
    calls.begin("r", later, 1, asked=False, key=5)
    calls.end("r", later, 1, CallOutcome.OK, 300, asked=False, key=5)
    calls.end("r", CANARY, 1, CallOutcome.ERROR, 300, asked=False, key=5)

    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm())]


def test_a_key_counts_once_over_all_processes() -> None:
    windows, calls = following()
    for ring in ("a", "b"):
        calls.begin(ring, CANARY, 1, asked=False, key=5)
        calls.end(ring, CANARY, 1, CallOutcome.OK, 300, asked=False, key=5)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 0), Arm())]


def test_the_first_call_of_a_key_fails_with_its_process() -> None:
    windows, calls = following()
    calls.begin("r", CANARY, 1, asked=False, key=5)
    calls.begin("r", CANARY, 1, asked=False, key=5)
    calls.begin("r", CANARY, 1, asked=True, key=6)
    calls.process_exited("r", 102)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 1), Arm())]


def test_keys_beyond_the_limit_are_not_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows_module, "MAX_KEYS", 2)
    windows, calls = following()
    for key in range(5):
        calls.begin("r", CANARY, 1, asked=False, key=key)
        calls.end("r", CANARY, 1, CallOutcome.OK, 300, asked=False, key=key)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(2, 0), Arm())]
    assert windows.overflown == 3


Doing = tuple[str, int, bool, bool, "int | None", int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(100, 110),
            st.booleans(),
            st.booleans(),
            st.one_of(st.none(), st.integers(0, 3)),
            st.integers(0, 2),
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_saved_and_restored_at_any_moment_it_continues_unchanged(
    story: list[Doing], pause: int
) -> None:
    def play(*, interrupted: bool) -> tuple[list[ClosedWindow], int, int]:
        windows, calls = following()
        sealed: list[ClosedWindow] = []
        keys: list[tuple[int, int]] = []
        for number, (ring, piece, canary, asked, key, how) in enumerate(story):
            if interrupted and number == pause:
                kept = json.loads(json.dumps([windows.to_dict(), calls.to_list()]))
                keys += windows.pop_new_keys()
                windows = Windows.from_dict(kept[0], {7: RAMP})
                windows.restore_keys(RAMP, (each for _, each in keys))
                calls = CallTracker.from_list(windows, kept[1])
            group = Group(7, piece, canary)
            calls.begin(ring, group, 1, asked=asked, key=key)
            if how:
                outcome = CallOutcome.OK if how == 1 else CallOutcome.ERROR
                calls.end(ring, group, 1, outcome, 300, asked=asked, key=key)
            sealed += windows.pop_closed(piece)
        calls.process_exited("a", 120)
        calls.expire(1000)
        sealed += windows.pop_closed(1000)
        return sealed, calls.open, windows.late

    assert play(interrupted=True) == play(interrupted=False)


@given(st.data())
def test_every_call_is_counted_once_and_is_evidence_at_most_once(data: st.DataObject) -> None:
    windows, calls = following()
    assigned: Counter[bool] = Counter()
    for _ in range(data.draw(st.integers(0, 30))):
        group = Group(7, data.draw(st.integers(100, 105)), data.draw(st.booleans()))
        assigned[group.canary] += 1
        begin(calls, group, ring=data.draw(st.sampled_from("ab")))
        if data.draw(st.booleans()):
            end(calls, group, ring=data.draw(st.sampled_from("ab")))
    calls.process_exited("a", 120)
    calls.expire(1000)
    sealed = windows.pop_closed(1000)
    tallies = calls.pop_tallies()

    for canary in (True, False):
        mine = [tally for group, tally in tallies.items() if group.canary is canary]
        assert sum(tally.assigned for tally in mine) == assigned[canary]
        assert sum(tally.calls for tally in mine) == assigned[canary]
    assert sum(each.canary.calls for each in sealed) == assigned[True]
    assert sum(each.stable.calls for each in sealed) == assigned[False]
