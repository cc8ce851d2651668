"""Geometry of charts: from numbers over time to the shapes that `templates/chart.svg` draws. Pure.

Horizontal places are percent of the width: a chart is as wide as its page, and its lines and
letters are never scaled. Vertical ones are pixels from the top. Nothing is drawn where
nothing was measured: a step line ends there, and goes on where numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

WIDTH = 1000
"""Units of a path over the whole width."""
ABOVE, ABOVE_MOMENTS = 14, 27
"""Pixels above the highest value: for its label, and with room for those of moments."""
_ROOM, _ROOM_ON_A_PHONE = 12.0, 36.0
"""What a moment's label needs beside its line, in percent."""
_LONGEST = 18
"""Characters of a label."""
_EDGE = 4.0
"""A time label's distance from an edge, in percent: half of its width on a phone."""
_NICE = (1, 2, 5, 10)


class Cell(NamedTuple):
    """A value from one moment to another; None where nothing was measured."""

    since: datetime
    until: datetime
    value: float | None


@dataclass(frozen=True)
class Series:
    """A line, or a layer of a stack; `style` is a class of the style sheet."""

    name: str
    style: str
    cells: Sequence[Cell]


class Moment(NamedTuple):
    """A moment that goes as a line through every chart."""

    at: datetime
    label: str
    style: str = "switch"


class Path(NamedTuple):
    """A shape: the data of an SVG path."""

    data: str
    style: str
    name: str


class Tick(NamedTuple):
    """A value that has a line: pixels from the top, and its label."""

    place: float
    label: str


class TimeTick(NamedTuple):
    """A place on the time axis, in percent of the width."""

    place: float
    at: datetime


class Line(NamedTuple):
    """A moment as it is drawn, its place in percent; another may have taken its label's room."""

    place: float
    label: str
    anchor: str
    style: str


@dataclass(frozen=True)
class Window:
    """The time that charts show."""

    since: datetime
    until: datetime

    @classmethod
    def hour(cls, until: datetime) -> Window:
        """Return the hour up to the end of this minute, so that its shapes stay where they are."""
        end = until.replace(second=0, microsecond=0)
        end += timedelta(minutes=1) if end < until else timedelta()
        return cls(end - timedelta(hours=1), end)

    def place(self, moment: datetime) -> float:
        """Return where a moment is, in percent of the width."""
        return round(100 * ((moment - self.since) / (self.until - self.since)), 2)

    def ticks(self) -> list[TimeTick]:
        """Return some four to seven round times, none too near to an edge for its label."""
        span = (self.until - self.since).total_seconds()
        steps = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600)
        step = next((each for each in steps if span / each <= 7), steps[-1])
        first = math.ceil(self.since.timestamp() / step) * step
        count = max(int((self.until.timestamp() - first) // step) + 1, 0)
        moments = [
            datetime.fromtimestamp(first + each * step, self.since.tzinfo) for each in range(count)
        ]
        found = [TimeTick(self.place(moment), moment) for moment in moments]
        return [each for each in found if _EDGE <= each.place <= 100 - _EDGE]

    def lines(self, moments: Iterable[Moment]) -> list[Line]:
        """Return the moments within the window, oldest first, with labels where there is room.

        A label stands to the right of its line, or else to the left. The newest one goes first.
        """
        places = sorted((self.place(each.at), each) for each in moments)
        within = [(place, each) for place, each in places if 0 <= place <= 100]
        found: list[Line] = []
        free = 100.0
        for number in range(len(within) - 1, -1, -1):
            place, moment = within[number]
            left = place - (within[number - 1][0] if number else 0.0)
            anchor, room = max(("start", free - place), ("end", left), key=lambda each: each[1])
            if free - place >= _ROOM_ON_A_PHONE:
                anchor, room = "start", free - place
            label = shortened(moment.label) if room >= _ROOM else ""
            style = moment.style if room >= _ROOM_ON_A_PHONE else f"{moment.style} tight"
            free = place - _ROOM if label and anchor == "end" else place
            found.append(Line(place, label, anchor, style))
        return found[::-1]


@dataclass(frozen=True)
class Scale:
    """The values of a chart, from 0 or a power of ten up."""

    high: float
    low: float = 0.0
    height: int = 80
    """Pixels."""
    above: int = ABOVE
    """Pixels above it."""
    text: Callable[[float], str] = field(default=str)

    @property
    def is_logarithmic(self) -> bool:
        """Whether equal distances are equal ratios."""
        return self.low > 0

    def place(self, value: float) -> float:
        """Return where a value is, in pixels from the top; beyond an end it is at that end."""
        if self.is_logarithmic:
            part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(self.above + self.height * (1 - min(max(part, 0.0), 1.0)), 1)

    def ticks(self) -> list[Tick]:
        """Return the values that have a line: the highest, and some below it."""
        if self.is_logarithmic:
            decades = round(math.log10(self.high / self.low))
            every = max(1, math.ceil(decades / 4))
            values = [self.low * 10**each for each in range(0, decades + 1, every)]
        else:
            values = [self.high / 2, self.high]
        return [Tick(self.place(each), self.text(each)) for each in values]


@dataclass(frozen=True)
class Chart:
    """A chart, as its template draws it."""

    name: str
    """Unique on its page; an HTML id."""
    title: str
    description: str
    """What is to be seen, for those who don't see it."""
    scale: Scale
    times: Sequence[TimeTick]
    paths: Sequence[Path]
    lines: Sequence[Line] = ()
    marks: Sequence[tuple[float, float, float]] = ()
    """Marked times below the base line: place and width in percent, height in pixels."""
    levels: Sequence[Tick] = ()
    """Labels of lines at the right edge."""

    @property
    def ticks(self) -> list[Tick]:
        """Its values that have a line."""
        return self.scale.ticks()

    @property
    def base(self) -> int:
        """Where the value 0 is, in pixels."""
        return self.scale.above + self.scale.height


def nice(value: float, least: float) -> float:
    """Return the next round number: 1, 2 or 5 times a power of ten, and at least `least`."""
    value = max(value, least)
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(each * power for each in _NICE if each * power >= value * (1 - 1e-9))


def shortened(label: str) -> str:
    """Return a label that fits beside its line."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def steps(series: Series, window: Window, scale: Scale) -> Path:
    """Return a line that keeps each value as long as it holds, with gaps where there is none."""
    parts: list[str] = []
    last: tuple[float, float] | None = None
    for since, until, value in _within(series.cells, window):
        if value is None:
            continue
        y = scale.place(value)
        if last is None or last[0] != since:
            parts.append(f"M{since:g} {y:g}")
        elif last[1] == y:
            parts.pop()
        else:
            parts.append(f"V{y:g}")
        parts.append(f"H{until:g}")
        last = until, y
    return Path("".join(parts), f"line {series.style}", series.name)


def polyline(series: Series, window: Window, scale: Scale) -> Path:
    """Return a line through the values at their beginnings, with gaps where there is none."""
    parts: list[str] = []
    gap = True
    for since, _until, value in _within(series.cells, window):
        if value is not None:
            parts.append(f"{'M' if gap else 'L'}{since:g} {scale.place(value):g}")
        gap = value is None
    return Path("".join(parts), f"line {series.style}", series.name)


def stacked(layers: Sequence[Series], window: Window, scale: Scale) -> list[Path]:
    """Return each layer as columns on top of those before it; columns begin and end alike."""
    below: dict[datetime, float] = {}
    paths = []
    for layer in layers:
        parts: list[str] = []
        for cell in layer.cells:
            if not cell.value:
                continue
            base = below.get(cell.since, 0.0)
            below[cell.since] = base + cell.value
            for since, until, _ in _within([cell], window):
                low, top = scale.place(base), scale.place(base + cell.value)
                parts.append(f"M{since:g} {low:g}V{top:g}H{until:g}V{low:g}Z")
        paths.append(Path("".join(parts), f"area {layer.style}", layer.name))
    return paths


def highest(layers: Iterable[Series]) -> float:
    """Return the highest sum of values that begin together."""
    sums: dict[datetime, float] = {}
    for layer in layers:
        for cell in layer.cells:
            sums[cell.since] = sums.get(cell.since, 0.0) + (cell.value or 0.0)
    return max(sums.values(), default=0.0)


def _within(cells: Iterable[Cell], window: Window) -> Iterator[tuple[float, float, float | None]]:
    """Yield the cells within the window, cut at its edges, in units of a path."""
    for cell in cells:
        since, until = max(cell.since, window.since), min(cell.until, window.until)
        if since <= until:
            yield (
                round(window.place(since) * WIDTH / 100, 1),
                round(window.place(until) * WIDTH / 100, 1),
                cell.value,
            )
