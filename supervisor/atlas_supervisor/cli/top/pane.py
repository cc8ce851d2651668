"""A part of the screen that the other verbs' renderers and the verbs themselves can write to."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType
from rich.text import Text

from atlas_supervisor.cli.terminal import Screen, safe


class Pane(Screen):
    """Keeps what is printed, as lines of a terminal of this width; never asks, shows no spinner."""

    def __init__(self, width: int) -> None:
        super().__init__(StringIO())
        self.is_terminal = True  # for its layout
        self.console = Console(
            file=StringIO(),
            force_terminal=True,
            force_interactive=False,
            color_system="standard",
            width=width,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self.printed: list[Text] = []

    def print(self, *what: RenderableType) -> None:
        """Keep each of `what`."""
        for item in what:
            self.printed += self.lines(safe(item) if isinstance(item, str) else item)

    def lines(self, renderable: RenderableType) -> list[Text]:
        """Return a renderable line by line."""
        rendered = self.console.render_lines(renderable, pad=False)
        return [Text.assemble(*((p.text, p.style or "") for p in line)) for line in rendered]
