from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.canary.stats.rollups import (
    HOUR,
    MINUTE,
    Course,
    EvidencePoint,
    Rollups,
    tally_of,
)
from atlas_supervisor.model.histogram import Histogram

NOON = 1_800_000_000 // HOUR * HOUR


def a_tally(calls: int = 1, errors: int = 0) -> Tally:
    return Tally(calls, 0, calls, errors, 0, Histogram([(300, calls)]))


def test_calls_are_counted_in_their_minute_and_their_hour() -> None:
    spans = Rollups()
    spans.add(NOON + 61.5, NOON + 62, 5, a_tally(3, 1), canary=True)

    found = {(row.span, row.start): (row.epoch, row.canary, row.calls) for row in spans.unwritten()}
    assert found == {(MINUTE, NOON + 60): (5, True, 3), (HOUR, NOON): (5, True, 3)}


def test_written_rows_are_written_again_only_after_a_change() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(), canary=True)
    rows = spans.unwritten()
    spans.add(NOON + 61, NOON + 61, 5, a_tally(), canary=True)
    spans.mark_written(rows)

    assert [(row.span, row.start, row.calls) for row in spans.unwritten()] == [
        (MINUTE, NOON + 60, 1),
        (HOUR, NOON, 2),
    ]


def test_the_last_hour_is_sixty_minutes_including_the_current_one() -> None:
    spans = Rollups()
    for minute in range(120):
        at = NOON + 60 * minute
        spans.add(at, at, 5, a_tally(), canary=False)

    both = spans.last_hour(NOON + 120 * 60 - 1)[5]
    assert (both.stable.calls, both.canary.calls) == (60, 0)


def test_arms_leave_out_epochs_before_the_given_one() -> None:
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


def test_old_rows_are_forgotten_once_written() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(), canary=True)
    spans.forget_old(NOON + 3 * HOUR)
    assert len(spans.unwritten()) == 2

    spans.mark_written(spans.unwritten())
    spans.forget_old(NOON + 3 * HOUR)
    assert spans.last_hour(NOON) == {}


def test_calls_over_an_hour_late_count_as_now() -> None:
    spans = Rollups()
    spans.add(NOON - 5 * HOUR, NOON, 5, a_tally(), canary=True)

    assert {row.start for row in spans.unwritten()} == {NOON}


def test_a_restart_within_a_minute_continues_that_minute() -> None:
    spans = Rollups()
    spans.add(NOON, NOON, 5, a_tally(2), canary=True)
    again = Rollups(spans.unwritten())
    again.add(NOON + 1, NOON + 1, 5, a_tally(3), canary=True)

    assert {row.calls for row in again.unwritten()} == {5}


@given(st.lists(st.tuples(st.integers(0, 7200), st.booleans(), st.integers(0, 9)), max_size=30))
def test_minutes_and_hours_hold_the_same_calls(story: list[tuple[int, bool, int]]) -> None:
    spans = Rollups()
    for at, canary, calls in sorted(story):
        spans.add(NOON + at, NOON + at, 5, a_tally(calls), canary=canary)

    for span in (MINUTE, HOUR):
        rows = [row for row in spans.unwritten() if row.span == span]
        assert sum(row.calls for row in rows) == sum(calls for _, _, calls in story)
        assert sum(tally_of(row).latency.count for row in rows) == sum(row.calls for row in rows)


def test_the_course_of_evidence_is_bounded_and_coarser_the_older_it_is() -> None:
    course = Course()
    for each in range(HOUR // 2):
        moment = NOON + 2.0 * each
        assert course.is_due(moment)
        course.add(EvidencePoint(moment, each, -each, 5.7))
        assert not course.is_due(moment + 1)

    moments = [point.unix for point in course.points]
    gaps = [late - early for early, late in itertools.pairwise(moments)]
    assert len(moments) == Course.MOST
    assert (moments[0], moments[-1]) == (NOON, NOON + 2.0 * (HOUR // 2 - 1))
    assert gaps[-1] == 2.0
    assert max(gaps[len(gaps) // 2 :]) < gaps[0] < HOUR / 2


def test_the_course_comes_back_as_it_was_saved_also_by_a_clock_that_was_ahead() -> None:
    course = Course()
    course.add(EvidencePoint(NOON, 1.0, 0.5, 5.7))
    course.add(EvidencePoint(NOON + HOUR, 2.0, 0.5, 5.7))

    again = Course(json.loads(json.dumps(course.points)))

    assert again.points == course.points
    assert again.is_due(NOON + 60)
    again.add(EvidencePoint(NOON + 60, 3.0, 0.5, 5.7))
    assert [point.rollback for point in again.points] == [1.0, 3.0]
