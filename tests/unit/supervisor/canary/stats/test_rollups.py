from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.canary.stats.rollups import HOUR, MINUTE, Rollups, tally_of

NOON = 1_800_000_000 // HOUR * HOUR


def a_tally(calls: int = 1, errors: int = 0) -> Tally:
    return Tally(calls, 0, calls, errors, 0, Histogram([(300, calls)]))


def test_calls_are_counted_in_their_minute_and_in_their_hour() -> None:
    spans = Rollups()
    spans.add(NOON + 61.5, NOON + 62, 5, a_tally(3, 1), canary=True)

    found = {(row.span, row.start): (row.epoch, row.canary, row.calls) for row in spans.changed()}
    assert found == {(MINUTE, NOON + 60): (5, True, 3), (HOUR, NOON): (5, True, 3)}


def test_what_is_written_is_not_written_again_until_it_changes() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(), canary=True)
    rows = spans.changed()
    spans.add(NOON + 61, NOON + 61, 5, a_tally(), canary=True)
    spans.written(rows)

    assert [(row.span, row.start, row.calls) for row in spans.changed()] == [
        (MINUTE, NOON + 60, 1),
        (HOUR, NOON, 2),
    ]


def test_the_last_hour_is_sixty_minutes_the_one_that_is_not_over_included() -> None:
    spans = Rollups()
    for minute in range(120):
        at = NOON + 60 * minute
        spans.add(at, at, 5, a_tally(), canary=False)

    both = spans.last_hour(NOON + 120 * 60 - 1)[5]
    assert (both.stable.calls, both.canary.calls) == (60, 0)


def test_the_arms_are_counted_from_an_epoch_on() -> None:
    spans = Rollups()
    for epoch in (4, 5):
        spans.add(NOON, NOON, epoch, a_tally(3, 1), canary=True)
    spans.add(NOON, NOON, 5, a_tally(7), canary=False)
    spans.add(NOON - 3599, NOON - 3599, 5, a_tally(7), canary=False)

    assert spans.arms(NOON, 5) == (Arm(3, 1), Arm(7, 0))
    assert spans.arms(NOON, 0) == (Arm(6, 2), Arm(7, 0))


def test_a_late_call_of_an_older_minute_is_in_the_last_hour() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(), canary=True)
    assert spans.last_hour(NOON + 600)[5].canary.calls == 1

    spans.add(NOON + 1, NOON + 600, 5, a_tally(), canary=True)
    assert spans.last_hour(NOON + 600)[5].canary.calls == 2
    assert spans.last_hour(NOON + 600)[5].canary.calls == 2


def test_what_is_old_and_written_is_forgotten_and_what_is_not_written_is_kept() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(), canary=True)
    spans.forget(NOON + 3 * HOUR)
    assert len(spans.changed()) == 2

    spans.written(spans.changed())
    spans.forget(NOON + 3 * HOUR)
    assert spans.last_hour(NOON) == {}


def test_calls_of_long_ago_count_as_now_so_that_no_closed_span_changes() -> None:
    spans = Rollups()
    spans.add(NOON - 5 * HOUR, NOON, 5, a_tally(), canary=True)

    assert {row.start for row in spans.changed()} == {NOON}


def test_a_restart_in_the_middle_of_a_minute_goes_on_with_it() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(2), canary=True)
    again = Rollups(spans.changed())
    again.add(NOON + 1, NOON + 1, 5, a_tally(3), canary=True)

    assert {row.calls for row in again.changed()} == {5}


@given(st.lists(st.tuples(st.integers(0, 7200), st.booleans(), st.integers(0, 9)), max_size=30))
def test_minutes_and_hours_hold_the_same_calls(story: list[tuple[int, bool, int]]) -> None:
    spans = Rollups()
    for at, canary, calls in sorted(story):
        spans.add(NOON + at, NOON + at, 5, a_tally(calls), canary=canary)

    for span in (MINUTE, HOUR):
        rows = [row for row in spans.changed() if row.span == span]
        assert sum(row.calls for row in rows) == sum(calls for _, _, calls in story)
        assert sum(tally_of(row).latency.count for row in rows) == sum(row.calls for row in rows)
