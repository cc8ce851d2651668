"""The geometry of charts: points in their places, and gaps where nothing was measured."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.dashboard import chart
from atlas_supervisor.dashboard.chart import Cell, Moment, Scale, Series, Window
from atlas_supervisor.dashboard.page import render_section
from atlas_supervisor.dashboard.sections import traffic
from tests.unit.supervisor.dashboard.support import answers, hour, minute

NOON = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
HOUR = Window(NOON - timedelta(hours=1), NOON)
TEN = Scale(10.0, height=100)


def minutes(*values: float | None, first: int = 0) -> list[Cell]:
    """Return a value for each minute of the hour, from the given one on."""
    starts = [HOUR.since + timedelta(minutes=first + each) for each in range(len(values))]
    return [
        Cell(since, since + timedelta(minutes=1), value)
        for since, value in zip(starts, values, strict=True)
    ]


def test_the_hour_ends_with_the_present_minute() -> None:
    window = Window.hour(NOON - timedelta(seconds=12))

    assert (window.since, window.until) == (HOUR.since, HOUR.until)
    assert (window.place(HOUR.since), window.place(NOON)) == (0.0, 100.0)
    assert window.place(NOON - timedelta(minutes=15)) == 75.0


def test_a_value_holds_from_its_beginning_to_its_end() -> None:
    series = Series("1.0", "v0", minutes(5.0, 10.0, first=30))

    drawn = chart.steps(series, HOUR, TEN)

    base, top = chart.ABOVE + 100, chart.ABOVE
    assert drawn.data == f"M500 {(base + top) / 2:g}H516.7V{top}H533.3"
    assert drawn.style == "line v0"


def test_nothing_is_drawn_where_nothing_was_measured() -> None:
    by_none = Series("1.0", "v0", minutes(5.0, None, 5.0))
    by_absence = Series("1.0", "v0", [*minutes(5.0), *minutes(5.0, first=2)])

    for series in (by_none, by_absence):
        assert chart.steps(series, HOUR, TEN).data.count("M") == 2
    assert chart.polyline(by_none, HOUR, TEN).data.count("M") == 2
    assert chart.steps(Series("1.0", "v0", []), HOUR, TEN).data == ""


def test_layers_stand_on_each_other() -> None:
    layers = [Series("1.0", "v0", minutes(4.0)), Series("1.1", "v1", minutes(6.0))]

    lower, upper = chart.stacked(layers, HOUR, TEN)

    assert chart.highest(layers) == 10.0
    assert lower.data == "M0 114V74H16.7V114Z"
    assert upper.data == "M0 74V14H16.7V74Z"


def test_cells_outside_of_the_window_are_cut_off() -> None:
    early = Cell(HOUR.since - timedelta(seconds=30), HOUR.since + timedelta(seconds=30), 10.0)
    before = Cell(HOUR.since - timedelta(minutes=9), HOUR.since - timedelta(minutes=8), 10.0)

    assert chart.steps(Series("1.0", "v0", [before, early]), HOUR, TEN).data == "M0 14H8.3"


@given(st.floats(0, 1e9, allow_nan=False), st.floats(1e-6, 1e3))
def test_the_scale_is_round_and_has_room_for_the_highest_value(value: float, least: float) -> None:
    high = chart.nice(value, least)

    assert max(value, least) <= high * (1 + 1e-6)
    assert high <= 10 * max(value, least) * (1 + 1e-6)
    assert f"{high:.6e}"[0] in "125"
    assert set(f"{high:.6e}"[2:8]) == {"0"}


def test_a_logarithmic_scale_has_a_line_for_each_power_of_ten() -> None:
    odds = Scale(1000.0, 0.1, height=100, text=lambda value: f"{value:g}")

    assert [tick.label for tick in odds.ticks()] == ["0.1", "1", "10", "100", "1000"]
    assert [tick.place for tick in odds.ticks()] == [114, 89, 64, 39, 14]
    assert odds.place(1e-30) == 114
    assert odds.place(1e30) == 14


def test_a_label_goes_where_there_is_room_and_the_newest_goes_first() -> None:
    def at(minute: int, label: str) -> Moment:
        return Moment(HOUR.since + timedelta(minutes=minute), label)

    lines = HOUR.lines([at(20, "1.0"), at(23, "1.1"), at(24, "1.2"), at(59, "a" * 40), at(-5, "x")])

    assert [(line.place, line.label, line.anchor) for line in lines] == [
        (33.33, "1.0", "end"),
        (38.33, "", "end"),
        (40.0, "1.2", "start"),
        (98.33, "a" * 17 + "…", "end"),
    ]


@pytest.mark.parametrize("seconds", [20, 300, 3600, 86_400])
def test_the_time_axis_has_a_few_round_times(seconds: int) -> None:
    window = Window(NOON - timedelta(seconds=seconds + 7), NOON)

    ticks = window.ticks()

    assert 1 <= len(ticks) <= 8
    assert all(4 <= tick.place <= 96 for tick in ticks)
    assert all(tick.at.timestamp() % 10 == 0 for tick in ticks)


HOSTILE = '"><script>alert(1)</script><rect x="'


def test_hostile_names_of_versions_are_text_everywhere() -> None:
    found = hour([minute(1, HOSTILE, 60, failed=6)], switches=[(2, HOSTILE)], uncounted=[HOSTILE])
    asked = answers({"/deploy/requests": found})
    html = render_section("traffic", traffic.view(asked), asked)

    assert "<script>" not in html
    assert HOSTILE not in html
    charts = re.findall(r'<svg class="chart".*?</svg>(?=\s*<(?:h3|table))', html, re.DOTALL)
    assert len(charts) == 3
    for drawn in charts:
        ET.fromstring(drawn)  # noqa: S314 # it is ours
