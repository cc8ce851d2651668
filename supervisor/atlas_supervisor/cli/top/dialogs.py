"""The windows of `atlasctl top` over its screen: a question before an action, and the help."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalGroup, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from atlas_supervisor.cli.listing import aligned
from atlas_supervisor.cli.terminal import safe
from atlas_supervisor.cli.top.actions import ACTIONS, Choice, Question


class Ask(ModalScreen[Choice | None]):
    """Asks before an action: shows the command that does the same, and returns the choice."""

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > VerticalGroup {
        width: 90%; max-width: 90; border: round ansi_yellow; padding: 0 1;
        background: ansi_default;
    }
    Ask OptionList { max-height: 10; margin: 1 0; border: none; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,n", "leave", "leave"),
        Binding("y", "take", "yes"),
        Binding("j", "move('cursor_down')", show=False),
        Binding("k", "move('cursor_up')", show=False),
    ]

    def __init__(self, words: str, question: Question) -> None:
        super().__init__()
        self._words = words
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the question, what there is to choose, and the command."""
        with VerticalGroup() as window:
            window.border_title = self._words
            yield Static(safe(self._question.sentence))
            rows = [[safe(c.name, "bold"), safe(c.meaning)] for c in self._question.choices]
            yield OptionList(*aligned(("", ""), rows), compact=True)
            yield Static(id="command")
            yield Static(Text("Enter or y does it, Esc leaves it", style="dim"))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show the command of the choice under the cursor."""
        choice = self._question.choices[event.option_index]
        self.query_one("#command", Static).update(safe(choice.command))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the choice."""
        event.stop()  # the list of deploys on the screen below has events of the same name
        self.dismiss(self._question.choices[event.option_index])

    def action_take(self) -> None:
        """Return the choice under the cursor."""
        self.query_one(OptionList).action_select()

    def action_move(self, to: str) -> None:
        """Move the cursor."""
        getattr(self.query_one(OptionList), f"action_{to}")()

    def action_leave(self) -> None:
        """Do nothing."""
        self.dismiss(None)


class Help(ModalScreen[None]):
    """The keys, and what the screen shows."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 90%; max-width: 90; height: auto; max-height: 90%;
        border: round ansi_blue; padding: 0 1; background: ansi_default;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        """Show the text."""
        with VerticalScroll() as window:
            window.border_title = "atlasctl top"
            yield Static(_help())


def _help() -> Table:
    rows = (
        ("1 to 7, Tab", "the panes: deploy, history, canary, checks, log, audit, status"),
        ("l", "the log; again: the next one (supervisor, blue, green)"),
        ("/", "show only lines with a text; Esc shows all again"),
        ("Enter", "in the history: show that deploy; Esc goes back to the last one"),
        ("↑ ↓ j k g G", "scroll, or move in a list"),
        *((action.key, action.help) for action in ACTIONS),
        ("q, Ctrl-C", "leave; what was begun goes on in the daemon"),
        ("", ""),
        ("", "Each action asks first, and shows the command that does the same."),
        ("", "The first line is red when users are not served, or 1 % of their requests fail."),
        ("", "It is grey when the last answer is 5 s old: then it says nothing about now."),
    )
    table = Table.grid(padding=(0, 1))
    for key, words in rows:
        table.add_row(Text(key, style="bold cyan", no_wrap=True), safe(words))
    return table
