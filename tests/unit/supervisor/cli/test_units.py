"""Formatting of durations, times, rates and counts; escaping."""

from __future__ import annotations

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.cli.terminal import printable
from atlas_supervisor.cli.units import (
    age,
    amount,
    change,
    duration,
    latency,
    local_time,
    moment,
    percent,
)


@given(st.text(st.characters()))
def test_only_printable_characters_are_output(text: str) -> None:
    assert printable(text).isprintable()


def test_printable_text_is_unchanged() -> None:
    text = string.ascii_letters + string.digits + string.punctuation + " äöü → 日本 😀"
    assert printable(text) == text


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (-1, "0 ms"),
        (0, "0 ms"),
        (0.061, "0.06 ms"),
        (12.4, "12 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (60_000, "1 min"),
        (125_000, "2 min 5 s"),
        (3_600_000 * 3 + 60_000 * 10, "3 h 10 min"),
        (86_400_000 * 3, "3 d"),
        (86_400_000 * 3 + 3_600_000 * 4, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_largest_units(milliseconds: float, words: str) -> None:
    assert duration(milliseconds) == words


@pytest.mark.parametrize(
    ("timestamp", "words"),
    [
        ("2025-11-23T05:59:30Z", "30 s"),
        ("2025-11-23T05:55:00+00:00", "5 min"),
        ("2025-11-23T07:00:00+02:00", "1 h"),
        ("2025-11-20T06:00:00", "3 d"),
        ("2025-11-23T06:00:30Z", "0 s"),  # its clock is ahead of ours
        (None, "-"),
        ("yesterday", "-"),
        (17, "-"),
    ],
)
def test_an_age_has_one_unit_and_nonsense_has_none(timestamp: object, words: str) -> None:
    assert age(timestamp, datetime(2025, 11, 23, 6, tzinfo=UTC)) == words


def test_a_time_is_shown_in_local_time() -> None:
    shown = local_time("2025-11-23T06:00:00Z")
    then = moment("2025-11-23T06:00:00Z")
    assert then is not None
    assert shown == then.astimezone().strftime("%Y-%m-%d %H:%M")
    assert local_time(None) == "-"


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.1, "10 %"),
        (0.125, "12.5 %"),
        (5 / 412, "1.2 %"),
        (0.0052, "0.52 %"),
        (0.000041, "0.0041 %"),
        (0.9996, "99.96 %"),
        (1e-9, "under 0.0001 %"),
        (1 - 1e-9, "over 99.9999 %"),
    ],
)
def test_a_rate_has_significant_digits(rate: float, words: str) -> None:
    assert percent(rate) == words


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_only_exact_rates_are_shown_as_0_or_100_percent(rate: float) -> None:
    assert percent(rate) not in ("0 %", "100 %")


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.017, "+1.7 %"), (-0.007, "-0.7 %"), (0.0, "0 %"), (-1e-12, "0 %"), (-1, "-100 %")],
)
def test_a_difference_has_its_sign(rate: float, words: str) -> None:
    assert change(rate) == words


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0.00123, "0.001 ms"),
        (0.0612, "0.061 ms"),
        (1.4849, "1.48 ms"),
        (74.1, "74.1 ms"),
        (999.4, "999 ms"),
        (999.9, "1.0 s"),
        (1234.5, "1.2 s"),
        (125_000, "2 min 5 s"),
    ],
)
def test_a_latency_has_three_digits(milliseconds: float, words: str) -> None:
    assert latency(milliseconds) == words


@pytest.mark.parametrize("nonsense", [None, "1", True, [], float("nan"), float("inf"), 10**400])
def test_anything_but_a_number_is_missing(nonsense: object) -> None:
    assert {percent(nonsense), change(nonsense), amount(nonsense), latency(nonsense)} == {"-"}
