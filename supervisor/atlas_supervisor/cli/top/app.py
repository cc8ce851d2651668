"""The screen of `atlasctl top`, by Textual: lays out the text of other modules, and takes keys.

Nothing here waits for the daemon: reading and acting are tasks of their own.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.history import HISTORY_NAMES, history_row
from atlas_supervisor.cli.listing import aligned
from atlas_supervisor.cli.session import Session
from atlas_supervisor.cli.terminal import safe, spaced
from atlas_supervisor.cli.top import headline, panes
from atlas_supervisor.cli.top.actions import ACTIONS, Action, Choice, Run, begin, conduct
from atlas_supervisor.cli.top.dialogs import Ask, Help
from atlas_supervisor.cli.top.pane import Pane
from atlas_supervisor.cli.top.watch import HEALTH, HISTORY, Watch
from atlas_supervisor.cli.words import Record, mapping, objects

INTERRUPTED = "interrupted"
STALE_SECONDS = 5.0
"""From this age on, what is shown says nothing about now."""
_TALL = 36
"""From so many lines on, the end of the log is always shown below the pane."""
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)
_SENSELESS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What an answer of other types raises, be it of another version or no daemon's at all."""


class Top(App[str]):
    """The dashboard. Its return value is `INTERRUPTED` after Ctrl-C."""

    TITLE = "atlasctl top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    .line { height: auto; link-color: ansi_default; link-style: none; }
    .cut { text-wrap: nowrap; text-overflow: ellipsis; }
    #troubles { max-height: 4; }
    #tabs { margin-top: 1; }
    #text, #past, #said { scrollbar-size-vertical: 1; }
    #text, #past { height: 1fr; max-height: 1fr; }
    #past { border: none; padding: 0; }
    #tail { height: 30%; border-top: solid ansi_bright_black; }
    #said { max-height: 40%; height: auto; border-top: solid ansi_bright_black; }
    #filter { height: 1; border: none; padding: 0; }
    #past, #said, #filter { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit_by('interrupted')", priority=True),
        Binding("q", "quit_by('')"),
        Binding("question_mark", "help"),
        Binding("slash", "filter"),
        Binding("escape", "close"),
        Binding("tab,right", "turn(1)", priority=False),
        Binding("shift+tab,left", "turn(-1)"),
        Binding("l", "log"),
        Binding("j", "scroll('down')"),
        Binding("k", "scroll('up')"),
        Binding("g", "scroll('home')"),
        Binding("G", "scroll('end')"),
        *(Binding(str(n), f"open({n - 1})") for n in range(1, len(panes.PANES) + 1)),
        *(Binding(action.key, f"act('{action.key}')") for action in ACTIONS),
    ]

    def __init__(self, session: Session, status: Record) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, be it light or dark
        self.theme = "ansi-dark"
        self.session = session
        self.latest = Watch(session, status, self.paint)
        self.runs: list[Run] = []
        """Actions in progress, and the last one that has ended."""
        self._open = panes.DEPLOY
        self._filter = ""

    # Layout.

    @property
    def main(self) -> Screen[object]:
        """The screen itself, below any window."""
        return self.screen_stack[0]

    def compose(self) -> ComposeResult:
        """Lay out the screen, from top to bottom."""
        for name in ("headline", "change", "slots", "troubles", "tabs"):
            yield Static(id=name, classes="line")
        with VerticalScroll(id="text"):
            yield Static(id="content")
        yield OptionList(id="past", classes="cut", compact=True)
        yield Static(id="tail", classes="cut")
        with VerticalScroll(id="said"):
            yield Static(id="outcome")
        yield Input(id="filter", placeholder="filter", compact=True)
        yield Static(id="keys", classes="line")

    def on_mount(self) -> None:
        """Begin to read."""
        self.run_worker(self.latest.run())
        self._arm()
        self.set_interval(1.0, self.paint)  # ages and countdowns go on without an answer
        self.action_open(panes.DEPLOY)

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew."""
        if self.main.query("#keys"):  # the first size comes before the layout
            self._want()
            self.call_after_refresh(self.paint)

    def _arm(self) -> None:
        """Let signals that end a program restore the terminal first."""
        loop = asyncio.get_running_loop()
        for number in _ENDINGS:
            with suppress(ValueError, RuntimeError):  # in a thread that is not the main one
                loop.add_signal_handler(number, self.exit, None, 128 + number)

    # What is shown.

    def paint(self) -> None:
        """Show the latest answers; of one that makes no sense, what was shown before it."""
        if not self.is_running or not self.main.query("#keys"):
            return
        try:
            self._paint()
        except _SENSELESS as error:
            why = f"the daemon's answer is not understood: {error}"
            self._put("headline", spaced(safe(why, "dim"), safe("trying again", "dim")))

    def _paint(self) -> None:
        self._put("headline", self._headline())
        self._put("change", self._change())
        self._put("slots", self._slots())
        self._put("troubles", Text("\n").join(headline.troubles(self.latest.status)))
        self._put("tabs", self._tabs())
        if self._open == panes.PAST:
            self._list()
        else:
            self._fill()
        self._put("tail", self._tail())
        self._put("outcome", self._outcome())
        self._put("keys", self._keys())

    def _put(self, name: str, text: Text) -> None:
        widget = self.main.query_one(f"#{name}", Static)
        if widget.content != text:
            widget.display = bool(text)
            widget.update(text)

    @property
    def _is_stale(self) -> bool:
        """Whether what is shown says nothing about now."""
        return self.latest.fault is not None or self.latest.age_seconds >= STALE_SECONDS

    def _headline(self) -> Text:
        health = self.latest.answers.get(HEALTH, {})
        found = headline.headline(self.latest.status, health)
        if self._is_stale:
            found = found.as_of(self.latest.age_seconds)
        line = spaced(self._pane().sign(found.sign), safe(found.sentence, found.style))
        if self.latest.fault is None:
            return line
        away = spaced(safe(self.latest.fault.message), safe("trying again", "dim"))
        return Text("\n").join((line, away))

    def _slots(self) -> Text:
        table = Text("\n").join(headline.slot_lines(self.latest.status, self.size.width))
        return Text(table.plain, style="dim") if self._is_stale else table

    def _change(self) -> Text:
        words = headline.last_change(self.latest.status, self.latest.deploy, self.latest.entries())
        return Text.assemble(("last change  ", "dim"), safe(words))

    def _tabs(self) -> Text:
        """Return the line of panes, and the filter if there is one."""
        names = []
        for number, pane in enumerate(panes.PANES):
            is_log = number == panes.LOG == self._open
            name = f"log: {self.latest.log.source}" if is_log else pane.name
            style = "reverse" if number == self._open else ""
            names.append(Text(f" {number + 1} {name} ", style=style))
            names[-1].stylize(Style.from_meta({"@click": f"app.open({number})"}))
        line = Text(" ").join(names)
        return line + Text(f"  /{self._filter}", style="yellow") if self._filter else line

    def _pane(self) -> Pane:
        return Pane(max(self.size.width - 2, 20))  # beside it is the scroll bar

    def _fill(self) -> None:
        """Fill the open pane."""
        screen, shown = self._pane(), panes.PANES[self._open]
        path = self.latest.log.path if self._open == panes.LOG else next(iter(shown.needs), "")
        if (refused := self.latest.refusals.get(path)) is not None:
            screen.failure(refused.message, refused.hint)
        screen.print(*shown.content(screen, self.latest))
        lines = self._matching(screen.printed)
        scroll = self.main.query_one("#text", VerticalScroll)
        was_at_end = scroll.scroll_offset.y >= scroll.max_scroll_y
        self._put("content", Text("\n").join(lines))
        if self._open == panes.LOG and was_at_end:
            scroll.scroll_end(animate=False)

    def _tail(self) -> Text:
        """Return the end of the log, where there is room for it below another pane."""
        if not self._has_tail:
            return Text()
        room = self.main.query_one("#tail").size.height or self.size.height
        return Text("\n").join(self._matching(self.latest.log.lines)[-room:])

    def _matching(self, lines: Iterable[Text]) -> list[Text]:
        wanted = self._filter.lower()
        return [line for line in lines if wanted in line.plain.lower()]

    def _list(self) -> None:
        """Fill the list of deploys; the cursor stays on its deploy."""
        records = objects(mapping(self.latest.answers.get(HISTORY)).get("deploys"))
        rows = aligned(HISTORY_NAMES, [history_row(record) for record in records])
        found = [
            Option(row, id=str(record.get("deploy_id")))
            for record, row in zip(records, rows, strict=True)
            if self._filter.lower() in row.plain.lower()
        ]
        past = self.main.query_one("#past", OptionList)
        before = [(option.id, option.prompt) for option in past.options]
        if before == [(option.id, option.prompt) for option in found]:
            return
        at = past.highlighted_option.id if past.highlighted_option is not None else None
        past.clear_options()
        past.add_options(found)
        index = next((n for n, option in enumerate(found) if option.id == at), 0)
        past.highlighted = index if found else None

    def _outcome(self) -> Text:
        """Return the actions in progress, and what came of the last one."""
        lines: list[Text] = []
        for run in self.runs:
            how = "in progress" if run.succeeded is None else "Esc closes this"
            lines.append(Text.assemble(run.choice.command, (f"  {how}", "dim")))
            lines += [] if run.succeeded is None else run.pane.printed
        self.main.query_one("#said").display = bool(lines)
        return Text("\n").join(lines)

    def _keys(self) -> Text:
        keys = [("?", "help", "help"), ("q", "quit", "quit_by('')"), ("/", "filter", "filter")]
        if self._open == panes.LOG:
            keys.append(("l", "next log", "log"))
        if self._open == panes.PAST:
            keys.append(("enter", "show", ""))
        if self.latest.chosen or self._filter:
            keys.append(("esc", "back", "close"))
        keys += [
            (action.key, words, f"act('{action.key}')")
            for action in ACTIONS
            if (words := action.words(self.latest.status))
        ]
        lines = [Text()]
        for key, words, does in keys:
            word = Text(words, style=Style.from_meta({"@click": f"app.{does}"} if does else {}))
            part = Text.assemble((key, "bold cyan"), " ", word, "  ")
            if lines[-1].cell_len + part.cell_len > self.size.width + 2:
                lines.append(Text())
            lines[-1].append_text(part)
        return Text("\n").join(lines)

    # What is pressed.

    def action_open(self, number: int) -> None:
        """Open a pane."""
        self._open = number
        is_list = number == panes.PAST
        self.main.query_one("#past").display = is_list
        self.main.query_one("#text").display = not is_list
        self._want()
        self.main.query_one("#past" if is_list else "#text").focus()
        self.main.query_one("#text").scroll_home(animate=False)
        self.paint()
        if number == panes.LOG:
            self.call_after_refresh(self.main.query_one("#text").scroll_end, animate=False)

    def _want(self) -> None:
        """Have read what is shown."""
        is_log = self._open == panes.LOG
        self.latest.show(panes.PANES[self._open].needs, log=self._has_tail or is_log)

    @property
    def _has_tail(self) -> bool:
        return self.size.height >= _TALL and self._open != panes.LOG

    def action_turn(self, by: int) -> None:
        """Open the next pane, or the one before."""
        self.action_open((self._open + by) % len(panes.PANES))

    def action_log(self) -> None:
        """Open the log; there, go to the next one."""
        if self._open == panes.LOG:
            self.latest.log.turn()
        self.action_open(panes.LOG)

    def action_scroll(self, to: str) -> None:
        """Scroll, or move the cursor of the list."""
        if self._open != panes.PAST:
            getattr(self.main.query_one("#text"), f"scroll_{to}")(animate=False)
            return
        moves = {"down": "cursor_down", "up": "cursor_up", "home": "first", "end": "last"}
        getattr(self.main.query_one("#past"), f"action_{moves[to]}")()

    def action_filter(self) -> None:
        """Ask for the text that lines must have."""
        field = self.main.query_one("#filter", Input)
        field.display = True
        field.value = self._filter
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._filter = event.value
        self.paint()

    def on_input_submitted(self) -> None:
        """Keep the filter, and close its field."""
        self.main.query_one("#filter").display = False
        self.action_open(self._open)

    def action_close(self) -> None:
        """Close one thing: the filter, the outcome, the deploy that was chosen."""
        if self.main.query_one("#filter").display or self._filter:
            self._filter = ""
            self.on_input_submitted()
        elif any(run.succeeded is not None for run in self.runs):
            self.runs = [run for run in self.runs if run.succeeded is None]
        else:
            self.latest.chosen = {}
        self.paint()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Show the deploy under the cursor of the history."""
        self.run_worker(self._choose(str(event.option.id)))

    async def _choose(self, deploy_id: str) -> None:
        try:
            await self.latest.choose(deploy_id)
        except FailedError as error:
            self.notify(error.message, severity="error", markup=False)
        else:
            self.action_open(panes.DEPLOY)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_quit_by(self, how: str) -> None:
        """Leave."""
        self.exit(how)

    # What is done.

    def action_act(self, key: str) -> None:
        """Ask for an action, if it is possible now."""
        action = next(each for each in ACTIONS if each.key == key)
        if words := action.words(self.latest.status):
            self.run_worker(self._ask(action, words))

    async def _ask(self, action: Action, words: str) -> None:
        try:
            question = await action.ask(self.session, self.latest.status)
        except FailedError as error:
            run = self._begin(Choice((), words))
            run.pane.failure(error.message, error.hint)
            run.succeeded = False
            self.paint()
            return

        def answered(choice: Choice | None) -> None:
            if choice is not None:
                self.run_worker(self._do(choice))

        self.push_screen(Ask(words, question), answered)

    def _begin(self, choice: Choice) -> Run:
        run = begin(choice, self.session, self.size.width - 2)
        self.runs = [*(each for each in self.runs if each.succeeded is None), run]
        return run

    async def _do(self, choice: Choice) -> None:
        """Run a verb, and show what came of it; meanwhile others can be run."""
        run = self._begin(choice)
        if choice.arguments[0] in {"deploy", "rollback"}:
            self.latest.chosen = {}
            self.action_open(panes.DEPLOY)
        self.paint()
        await conduct(run)
        self._arm()  # a change ignores the end of the terminal until it is done
        self.latest.look()
        self.paint()
        self.main.query_one("#said", VerticalScroll).scroll_end(animate=False)
