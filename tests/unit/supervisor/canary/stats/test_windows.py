from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.canary.stats import windows as windows_module
from atlas_supervisor.canary.stats.counts import Arm, CallKey, CallWindow, Ended, Group
from atlas_supervisor.canary.stats.outcomes import CallTracker
from atlas_supervisor.canary.stats.windows import (
    GRACE_SLICES,
    TIMEOUT_SLICES,
    WINDOW_SLICES,
    Windows,
)
from atlas_supervisor.model.canary import KeyRow
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.ring import Outcome

RAMP, SHARE = 7, 0.25
CANARY, STABLE = Group(7, 100, canary=True), Group(7, 100, canary=False)
OVER = 100 + 1 + GRACE_SLICES


def following(*epochs: int) -> tuple[Windows, CallTracker]:
    return drawn(dict.fromkeys(epochs or (7,), SHARE))


def drawn(shares: dict[int, float]) -> tuple[Windows, CallTracker]:
    """Return the windows of a ramp with these shares by epoch."""
    windows, calls = Windows(RAMP), CallTracker()
    windows.set_shares(shares)
    calls.windows = dict.fromkeys(shares, windows)
    return windows, calls


def open_calls(calls: CallTracker) -> int:
    return sum(row[-1] for row in calls.to_list())


def arms(windows: list[CallWindow]) -> list[tuple[int, Arm, Arm]]:
    return [(each.since, each.canary.arm, each.stable.arm) for each in windows]


def begin(calls: CallTracker, group: Group, count: int = 1, ring: str = "r") -> None:
    calls.begin(ring, group, count, asked=False)


def end(
    calls: CallTracker,
    group: Group,
    count: int = 1,
    *,
    outcome: Outcome = Outcome.OK,
    ring: str = "r",
) -> None:
    calls.end(ring, group, [Ended(outcome, 300, count)], asked=False)


def begin_key(calls: CallTracker, group: Group, key: int, serial: int = 1, ring: str = "r") -> None:
    calls.begin(ring, group, 1, asked=False, key=CallKey(ring, key, serial))


def end_key(
    calls: CallTracker,
    group: Group,
    key: int,
    serial: int = 1,
    outcome: Outcome = Outcome.OK,
) -> None:
    calls.end("r", group, [Ended(outcome, 300)], asked=False, key=CallKey("r", key, serial))


def test_a_window_closes_after_its_calls_and_its_grace_have_ended() -> None:
    windows, calls = following()
    begin(calls, CANARY, 2)
    begin(calls, STABLE, 3)
    end(calls, CANARY, 2, outcome=Outcome.ERROR)
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
    assert [each.since for each in windows.pop_closed(OVER + 50)] == [100, 101]


def test_windows_close_in_order_of_assignment_for_any_order_of_outcomes() -> None:
    windows, calls = following()
    groups = [CANARY._replace(slice=piece) for piece in range(100, 160)]
    for group in groups:
        begin(calls, group)
    shuffled = random.Random(1).sample(groups, len(groups))  # noqa: S311  # an order, no secret
    seen: list[int] = []
    for group in shuffled:
        end(calls, group)
        seen += [each.since for each in windows.pop_closed(1000)]

    assert seen == sorted(seen)
    assert seen[:25] == [group.slice for group in groups][:25]


def test_the_epochs_of_a_ramp_close_in_one_order() -> None:
    windows, calls = following(7, 8)
    for group in (Group(8, 101, canary=True), Group(7, 101, canary=True), CANARY):
        begin(calls, group)
        end(calls, group)

    found = [(each.since, each.stratum.epoch) for each in windows.pop_closed(OVER + 1)]
    assert found == [(101, 8), (101, 7)]


def test_calls_of_several_processes_are_one_window() -> None:
    windows, calls = following()
    for ring in ("a", "b", "c"):
        begin(calls, CANARY, ring=ring)
    for ring in ("a", "b"):
        end(calls, CANARY, ring=ring)

    assert windows.pop_closed(OVER) == []
    end(calls, CANARY, ring="c", outcome=Outcome.ERROR)
    assert arms(windows.pop_closed(OVER)) == [(100, Arm(3, 1), Arm())]


def test_a_call_that_never_ends_fails_after_its_timeout() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    begin(calls, STABLE)
    calls.expire(100 + TIMEOUT_SLICES)
    assert open_calls(calls) == 2
    calls.expire(101 + TIMEOUT_SLICES)

    assert open_calls(calls) == 0
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
    calls.end("r", CANARY, [Ended(Outcome.ERROR, 300)], asked=True)
    assert windows.pop_closed(OVER + 10) == []

    calls.expire(1000)
    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm())]
    assert calls.pop_tallies()[CANARY].unreported == 1


def test_a_cancelled_call_counts_and_is_not_a_failure() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    end(calls, CANARY, outcome=Outcome.CANCELLED)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 0), Arm())]
    tally = calls.pop_tallies()[CANARY]
    assert (tally.calls, tally.errors, tally.cancelled, tally.latency.count) == (1, 0, 1, 1)


def test_a_recorded_call_is_evidence_at_its_beginning_when_all_that_began_then_have_ended() -> None:
    windows, calls = following()
    calls.record(CANARY, Ended(Outcome.ERROR, latency_bucket(10), 4))
    slow = CANARY._replace(slice=150)
    calls.record(slow, Ended(Outcome.OK, latency_bucket(25_000), 6))
    over = 100 + TIMEOUT_SLICES + GRACE_SLICES

    assert (open_calls(calls), windows.pending_calls) == (0, 10)
    assert calls.pop_tallies()[CANARY].assigned == 4
    assert windows.pop_closed(over - 10) == []
    assert arms(windows.pop_closed(over + 1)) == [(99, Arm(10, 4), Arm())]
    calls.record(slow, Ended(Outcome.OK, latency_bucket(26_000), 1))
    assert windows.late == 1


def test_a_recorded_call_of_a_minute_is_evidence_of_a_failure() -> None:
    windows, calls = following()
    calls.record(CANARY, Ended(Outcome.OK, latency_bucket(60_000), 1))

    assert arms(windows.pop_closed(1000)) == [(100 - TIMEOUT_SLICES, Arm(1, 1), Arm())]
    assert calls.pop_tallies()[CANARY].errors == 0


def test_a_call_that_is_read_after_its_window_was_closed_is_evidence_in_a_new_one() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    end(calls, CANARY)
    assert len(windows.pop_closed(OVER)) == 1
    begin(calls, CANARY)
    end(calls, CANARY, outcome=Outcome.ERROR)

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 1), Arm())]


def test_windows_grow_with_the_ramp_and_begin_with_a_slice() -> None:
    windows, calls = following()
    for piece in range(100, 200):
        for group in (CANARY._replace(slice=piece), STABLE._replace(slice=piece)):
            begin(calls, group, 5)
            end(calls, group, 5)
    found = windows.pop_closed(1000)

    assert [each.since for each in found][:20] == list(range(100, 120))
    assert sum(each.canary.calls for each in found) == 500
    assert found[-2].latest - found[-2].since == WINDOW_SLICES - 1


def test_calls_of_an_epoch_without_a_ramp_are_counted_and_not_evidence() -> None:
    windows, calls = following()
    other = CANARY._replace(epoch=99)
    begin(calls, other)
    end(calls, other)

    assert windows.pop_closed(1000) == []
    assert calls.pop_tallies()[other].calls == 1


def test_a_ramp_that_ends_is_dropped_with_its_open_calls() -> None:
    windows, calls = following()
    begin(calls, CANARY)
    begin_key(calls, CANARY, 5)
    windows.set_shares({})
    calls.windows = {}
    end(calls, CANARY)
    end_key(calls, CANARY, 5, outcome=Outcome.ERROR)

    assert windows.pop_closed(1000) == []
    assert windows.pending_calls == 0


def test_the_first_call_of_a_key_is_evidence_and_all_its_calls_are_counted() -> None:
    windows, calls = following()
    for piece in (100, 101, 102):
        group = CANARY._replace(slice=piece)
        begin_key(calls, group, 0, piece)
        end_key(calls, group, 0, piece, Outcome.ERROR)

    assert sum(each.canary.calls for each in windows.pop_closed(1000)) == 1
    assert sum(tally.calls for tally in calls.pop_tallies().values()) == 3
    assert windows.pop_new_keys() == [KeyRow(RAMP, 0, 1, 0.0, SHARE)]
    assert windows.pop_new_keys() == []
    assert windows.repeats == 2


@pytest.mark.parametrize("later", [100, 101])
def test_the_outcome_of_a_key_is_that_of_its_first_call_even_if_a_later_one_ends_first(
    later: int,
) -> None:
    windows, calls = following()
    second = CANARY._replace(slice=later)
    begin_key(calls, CANARY, 5, 1)
    begin_key(calls, second, 5, 2)
    end_key(calls, second, 5, 2, Outcome.OK)
    assert [each.canary.calls for each in windows.open] == [0]
    end_key(calls, CANARY, 5, 1, Outcome.ERROR)

    assert arms(windows.pop_closed(1000)) == [(100, Arm(1, 1), Arm())]


def test_calls_with_a_key_of_an_earlier_kit_are_counted_and_not_evidence() -> None:
    windows, calls = following()
    begin_key(calls, CANARY, 5, serial=0)
    end_key(calls, CANARY, 5, serial=0)

    assert windows.pop_closed(1000) == []
    assert calls.pop_tallies()[CANARY].calls == 1


def test_a_key_counts_once_over_all_processes() -> None:
    windows, calls = following()
    for ring in ("a", "b"):
        begin_key(calls, CANARY, 5, ring=ring)
        calls.end(ring, CANARY, [Ended(Outcome.OK, 300)], asked=False, key=CallKey(ring, 5, 1))

    assert arms(windows.pop_closed(OVER)) == [(100, Arm(1, 0), Arm())]


def test_the_first_call_of_a_key_fails_with_its_process() -> None:
    windows, calls = following()
    begin_key(calls, CANARY, 5, 1)
    begin_key(calls, CANARY, 5, 2)
    calls.begin("r", CANARY, 1, asked=True, key=CallKey("r", 6, 3))
    calls.process_exited("r", 102)

    found = windows.pop_closed(OVER)
    assert arms(found) == [(100, Arm(1, 1), Arm())]
    assert found[0].unreported == {True: 1, False: 0}


def stepped(*shares: float) -> tuple[Windows, CallTracker]:
    """Return the windows of a ramp with a step for each share, in epochs 7, 8, …"""
    return drawn({7 + step: share for step, share in enumerate(shares)})


def shares_of(windows: Windows) -> list[tuple[float, int, int]]:
    found = windows.open
    return [
        (each.stratum.share, each.opened(canary=True), each.opened(canary=False)) for each in found
    ]


def test_a_key_that_was_stable_counts_again_at_the_next_step_with_the_chance_that_it_had() -> None:
    windows, calls = stepped(0.05, 0.24)
    for key in range(10):
        begin_key(calls, Group(7, 100, canary=key == 0), key, key + 1)
    for key in range(12):
        begin_key(calls, Group(8, 101, canary=key < 3), key, key + 1)
        begin_key(calls, Group(8, 102, canary=key < 3), key, key + 1)

    # Key 0 was the canary's before, and stays so; 10 and 11 are new.
    assert shares_of(windows) == [
        (0.05, 1, 9),
        (pytest.approx((0.24 - 0.05) / 0.95), 2, 7),
        (0.24, 0, 2),
    ]


def test_a_key_of_the_canary_counts_again_when_the_share_falls() -> None:
    windows, calls = stepped(0.5, 0.1)
    begin_key(calls, Group(7, 100, canary=True), 1, 1)
    begin_key(calls, Group(7, 100, canary=False), 2, 2)
    begin_key(calls, Group(8, 101, canary=False), 1, 3)
    begin_key(calls, Group(8, 101, canary=False), 2, 4)

    assert shares_of(windows) == [(0.5, 1, 1), (pytest.approx(0.2), 0, 1)]


def test_in_a_new_round_all_keys_count_anew() -> None:
    windows, calls = following()
    for key in range(5):
        begin_key(calls, CANARY, key, key + 1)
    windows.start_round(2)
    for key in range(5):
        begin_key(calls, CANARY._replace(slice=200), key, key + 1)

    assert [(each.stratum.round, each.assigned) for each in windows.open] == [
        (1, 5),
        (2, 5),
    ]
    assert sum(windows.assigned.by_share[SHARE]) == 5  # the ratio is checked in the first round


def test_a_key_that_is_new_on_a_later_day_counts_in_the_first_round_too() -> None:
    windows, calls = following()
    windows.start_round(2)
    for serial in (1, 2):
        begin_key(calls, CANARY, 5, serial)
        end_key(calls, CANARY, 5, serial, Outcome.ERROR)
    calls.begin("r", CANARY, 1, asked=True, key=CallKey("r", 6, 3))
    calls.process_exited("r", 102)

    found = windows.pop_closed(OVER)
    assert [(each.stratum.round, each.stratum.twice, each.canary.arm) for each in found] == [
        (1, True, Arm(1, 1)),
        (2, False, Arm(1, 1)),
    ]
    assert [each.unreported[True] for each in found] == [1, 1]
    assert windows.unreported.by_share == {SHARE: (1, 0)}


def test_a_stable_key_counts_at_a_new_share_in_the_first_round_on_a_later_day() -> None:
    windows, calls = stepped(0.05, 0.24)
    begin_key(calls, Group(7, 100, canary=False), 1, 1)
    begin_key(calls, Group(7, 100, canary=True), 2, 2)
    windows.start_round(2)
    begin_key(calls, Group(8, 101, canary=True), 1, 3)
    begin_key(calls, Group(8, 101, canary=True), 2, 4)

    assert [
        (each.stratum.round, *shares)
        for each, shares in zip(windows.open, shares_of(windows), strict=True)
    ] == [
        (1, 0.05, 1, 1),
        (1, pytest.approx((0.24 - 0.05) / 0.95), 1, 0),
        (2, 0.24, 2, 0),
    ]


def test_keys_of_an_earlier_version_in_a_later_round_count_only_in_it() -> None:
    windows, _ = following()
    windows.start_round(2)
    saved = windows.to_dict()
    del saved["keys"]  # the rows of the first round were deleted, too
    windows = Windows.from_dict(saved, same_boot=True)
    windows.set_shares({7: SHARE})
    windows.assign(CANARY, 1, key=CallKey("r", 5, 1))

    assert [each.stratum.round for each in windows.open] == [2]


def test_keys_beyond_the_limit_are_not_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows_module, "MAX_KEYS", 2)
    windows, calls = following()
    for key in range(5):
        begin_key(calls, CANARY, key)
        end_key(calls, CANARY, key)

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
            st.integers(0, 3),
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_saved_and_restored_at_any_moment_it_continues_unchanged(
    story: list[Doing], pause: int
) -> None:
    def play(*, interrupted: bool) -> tuple[list[CallWindow], int, int]:
        windows, calls = following()
        found: list[CallWindow] = []
        keys: list[KeyRow] = []
        for number, (ring, piece, canary, asked, key, how) in enumerate(story):
            if number == len(story) // 2:
                windows.start_round(2)
            if interrupted and number == pause:
                kept = json.loads(json.dumps([windows.to_dict(), calls.to_list()]))
                keys += windows.pop_new_keys()
                windows = Windows.from_dict(kept[0], same_boot=True)
                windows.set_shares({7: SHARE})
                for row in keys:
                    windows.restore_key(row)
                calls = CallTracker.from_list(kept[1])
                calls.windows = {7: windows}
            group = Group(7, piece, canary)
            unit = None if key is None else CallKey(ring, key, number + 1)
            if how == 3 and key is None:
                calls.record(group, Ended(Outcome.ERROR, 700, 1))
                continue
            calls.begin(ring, group, 1, asked=asked, key=unit)
            if how:
                outcome = Outcome.OK if how == 1 else Outcome.ERROR
                calls.end(ring, group, [Ended(outcome, 300)], asked=asked, key=unit)
            found += windows.pop_closed(piece)
        calls.process_exited("a", 120)
        calls.expire(1000)
        found += windows.pop_closed(1000)
        return found, open_calls(calls), windows.late

    assert play(interrupted=True) == play(interrupted=False)


@given(st.data())
def test_every_call_is_counted_once_and_is_evidence_once(data: st.DataObject) -> None:
    windows, calls = following()
    assigned: Counter[bool] = Counter()
    found: list[CallWindow] = []
    for _ in range(data.draw(st.integers(0, 30))):
        group = Group(7, data.draw(st.integers(100, 115)), data.draw(st.booleans()))
        assigned[group.canary] += 1
        begin(calls, group, ring=data.draw(st.sampled_from("ab")))
        if data.draw(st.booleans()):
            end(calls, group, ring=data.draw(st.sampled_from("ab")))
        found += windows.pop_closed(data.draw(st.integers(100, 125)))
    calls.process_exited("a", 120)
    calls.expire(1000)
    found += windows.pop_closed(1000)
    tallies = calls.pop_tallies()

    for canary in (True, False):
        mine = [tally for group, tally in tallies.items() if group.canary is canary]
        assert sum(tally.assigned for tally in mine) == assigned[canary]
        assert sum(tally.calls for tally in mine) == assigned[canary]
    assert sum(each.canary.calls for each in found) == assigned[True]
    assert sum(each.stable.calls for each in found) == assigned[False]
