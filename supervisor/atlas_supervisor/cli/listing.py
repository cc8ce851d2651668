"""Renders a list of records: one line each where it fits, else more, and nothing is cut.

A cell is never shortened or split. What does not fit beside the others goes below them, where long
texts wrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.terminal import Screen, spaced
from atlas_supervisor.cli.units import MISSING

_GAP = 2
_LEAST_ROOM = 40
"""Columns that a longer last cell needs beside the others to wrap there."""
_INDENT = 4


def listing(
    screen: Screen,
    names: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    frame: int = 0,
    named: bool = False,
) -> RenderableType:
    """Return the rows below their names, in aligned columns.

    The last cell takes the rest of the line and wraps. Cells that a terminal has no room for go
    below the others, with their names if they are `named`. `frame` is how many columns are taken.
    """
    widths = widths_of(names, rows)
    room = screen.room(frame)
    leading = _total(widths[:-1])
    if room is None or leading + _GAP + min(_LEAST_ROOM, widths[-1]) <= room:
        return Group(*_beside([_head(names), *rows], widths, room))
    columns = max(n for n in range(1, len(widths)) if n == 1 or _total(widths[:n]) <= room)
    below = names[columns:] if named else None
    return Group(*_lines([_head(names[:columns]), *rows], widths[:columns], room - _INDENT, below))


def widths_of(names: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[int]:
    """Return the width of each column."""
    return [max(len(name), *(row[n].cell_len for row in rows)) for n, name in enumerate(names)]


def fits(
    screen: Screen, names: Sequence[str], rows: Sequence[Sequence[Text]], *, frame: int = 0
) -> bool:
    """Return whether each row fits on one line as it is."""
    room = screen.room(frame)
    return room is None or _total(widths_of(names, rows)) <= room


def aligned(names: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[Text]:
    """Return each row on a line of its own, however long, its cells in columns."""
    widths = widths_of(names, rows) if rows else []
    return [_line(row, widths) for row in rows]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _head(names: Sequence[str]) -> list[Text]:
    return [Text(name, style="dim") for name in names]


def _beside(
    rows: Sequence[Sequence[Text]], widths: Sequence[int], room: int | None
) -> Iterator[RenderableType]:
    """Yield each row on a line of its own; a long last cell wraps in its column."""
    for row in rows:
        if room is None or _total(widths[:-1]) + _GAP + row[-1].cell_len <= room:
            yield _line(row, widths)
            continue
        line = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        for width in widths[:-1]:
            line.add_column(min_width=width, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(*row)
        yield line


def _line(row: Sequence[Text], widths: Sequence[int]) -> Text:
    cells = [cell.copy() for cell in row]
    for cell, width in zip(cells[:-1], widths, strict=False):
        cell.pad_right(width - cell.cell_len)
    return spaced(*cells)


def _lines(
    rows: Sequence[Sequence[Text]], widths: Sequence[int], room: int, names: Sequence[str] | None
) -> Iterator[RenderableType]:
    """Yield as many cells of each row as there are widths, and the others below them."""
    for row in rows:
        yield _line(row[: len(widths)], widths)
        below = row[len(widths) :]
        if names is not None:
            below = [
                Text.assemble((f"{name} ", "dim"), cell) if cell.plain else cell
                for name, cell in zip(names, below, strict=False)
            ]
        if below := [cell for cell in below if cell.plain not in ("", MISSING)]:
            together = spaced(*below)
            wraps = (
                together.cell_len > room and len(below) > 1
            )  # then the last has lines of its own
            for part in [spaced(*below[:-1]), below[-1]] if wraps else [together]:
                yield Padding(part, (0, 0, 0, _INDENT), expand=False)
