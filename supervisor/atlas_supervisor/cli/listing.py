"""Renders a list of records: one line each, or two on a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from atlas_supervisor.cli.terminal import Screen, spaced
from atlas_supervisor.cli.units import MISSING

_GAP = 2
_LEAST_ROOM = 40
"""Columns that the last cell needs beside the others."""
_INDENT = 4


def listing(
    screen: Screen, names: Sequence[str], rows: Sequence[Sequence[Text]], *, kept: int
) -> RenderableType:
    """Return the rows below their names, in aligned columns.

    The last cell takes the rest of the line. If that is too little on a terminal, all cells but
    the first `kept` go to a second line.
    """
    widths = [max(len(name), *(row[n].cell_len for row in rows)) for n, name in enumerate(names)]
    room = screen.console.width - sum(width + _GAP for width in widths[:-1])
    fits = not screen.is_terminal or room >= min(_LEAST_ROOM, widths[-1])
    columns = len(names) if fits else kept
    head = [Text(name, style="dim") for name in names[:columns]]
    return Group(*_lines([head, *rows], widths, columns))


def _lines(
    rows: Sequence[Sequence[Text]], widths: Sequence[int], columns: int
) -> Iterator[RenderableType]:
    for row in rows:
        cells = [cell.copy() for cell in row[:columns]]
        for cell, width in zip(cells[:-1], widths, strict=False):
            cell.pad_right(width - cell.cell_len)
        line = spaced(*cells)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line
        if below := [cell for cell in row[columns:] if cell.plain not in ("", MISSING)]:
            yield Padding(spaced(*below), (0, 0, 0, _INDENT), expand=False)
