"""Renders the page for those who watch it: at most once a second, and once for each audience.

Each request of the API has an age up to which its answer is used again. A section whose answers
have not changed is not looked at; one whose view has not is neither rendered nor sent. Every open
page of an audience gets the same bytes; one that reads too slowly loses the changes in between, and
gets all sections at once instead.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from atlas_supervisor.dashboard import page
from atlas_supervisor.dashboard.answers import Answers, Audience, Record

log = structlog.get_logger(__name__)

Ask = Callable[[str, Audience], Awaitable[Record]]
"""Answers a request of the API, as this audience may have it."""

PERIOD_SECONDS = 1.0
QUIET_TICKS = 2
"""After so many periods without a change an open page is sent the time: it is not stale."""
LOOK_SECONDS = 3.0
"""What is not answered by then is shown as missing, and asked for again."""
_SLOW = f"There was no answer within {LOOK_SECONDS:g} s: the disk may be slow. It is tried again."
_MOST_WAITING = 8
_BROKEN = "This part can't be shown: the supervisor's log says why."
_FRESH_SECONDS = 0.25
"""Pages that are opened within this time share their answers."""


class Feed:
    """The changes for one open page; a source for a stream of the API."""

    def __init__(self, board: Board, audience: Audience, alive: Callable[[], bool]) -> None:
        self._board = board
        self.audience = audience
        self.alive = alive
        """Whether the session that it was opened with still holds."""
        self._waiting: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, block: bytes, everything: Callable[[], bytes]) -> None:
        """Add an event; `everything` stands for all that a slow reader has missed."""
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.clear()
            block = everything()
        self._waiting.append(block)
        self._ready.set()

    async def next(self) -> bytes | None:
        """Wait for the next event; None at the end."""
        while not self._waiting and not self._closed:
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """End it, from anywhere and at any time."""
        self._closed = True
        self._ready.set()
        self._board.leave(self)


class Board:
    """Every rendering that is watched."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._renderings = {audience: _Rendering(audience) for audience in Audience}
        self._feeds: list[Feed] = []
        self._task: asyncio.Task[None] | None = None

    async def snapshot(self, audience: Audience) -> dict[str, str]:
        """Return the HTML of each section as it is now."""
        rendering = self._renderings[audience]
        await rendering.look(self._ask)
        return await rendering.afresh()

    def expire(self) -> None:
        """Use no answer again that is older than this moment: something was done."""
        for rendering in self._renderings.values():
            rendering.expire()

    async def watch(self, audience: Audience, alive: Callable[[], bool]) -> Feed:
        """Return the changes from now on; the first event has every section."""
        rendering = self._renderings[audience]
        await rendering.look(self._ask)
        await rendering.render()
        if not any(each.audience is audience for each in self._feeds):
            rendering.begin()
        feed = Feed(self, audience, alive)
        feed.put(b"retry: 1000\n\n" + rendering.everything(), rendering.everything)
        self._feeds.append(feed)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return feed

    def leave(self, feed: Feed) -> None:
        """Forget a page that was closed."""
        if feed in self._feeds:
            self._feeds.remove(feed)

    async def _run(self) -> None:
        """Render for all that watch, until there is none."""
        try:
            while self._feeds:
                await asyncio.sleep(PERIOD_SECONDS)
                await self._turn()
        except Exception as error:  # a bug: pages connect again, and get it as their answer
            log.error("dashboard_failed", exc_info=error)
        finally:
            for feed in list(self._feeds):
                feed.close()

    async def _turn(self) -> None:
        for feed in [each for each in self._feeds if not each.alive()]:
            feed.put(_ENDED, lambda: _ENDED)
            feed.close()
        for audience in {each.audience for each in self._feeds}:
            rendering = self._renderings[audience]
            await rendering.look(self._ask)
            await rendering.render()
            if block := rendering.changes():
                for feed in self._feeds:
                    if feed.audience is audience:
                        feed.put(block, rendering.everything)


class _Remade(NamedTuple):
    """A section that was looked at again."""

    name: str
    seen: list[Record | None]
    """The answers that its view was made of."""
    view: Mapping[str, Any]
    html: str | None
    """None if the view is the same as before."""


class _Rendering:
    """The page as one audience sees it."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._needs = page.needs()
        self._found: dict[str, Record] = {}
        self._due: dict[str, float] = {}
        self._answers = Answers({}, at=datetime.now(UTC), audience=audience)
        self._looked = 0.0
        self._views: dict[str, Mapping[str, Any]] = {}
        self._html: dict[str, str] = {}
        self._seen: dict[str, list[Record | None]] = {}
        """The answers that the view of each section was made of."""
        self._afresh: dict[str, str] = {}
        self._afresh_at = float("-inf")
        self._unsent: set[str] = set()
        self._broken: set[str] = set()
        """Sections and requests that have failed."""
        self._everything = b""
        self._quiet = 0
        self._one_at_a_time = asyncio.Lock()

    async def look(self, ask: Ask) -> None:
        """Ask again for what has become too old."""
        async with self._one_at_a_time:
            now, due = asyncio.get_running_loop().time(), self._due
            if len(due) == len(self._needs) and now - self._looked < _FRESH_SECONDS:
                return
            until = (
                now + LOOK_SECONDS
            )  # those from memory need no time, and are there after it, too
            for request, seconds in self._needs.items():
                if now >= due.get(request, now):
                    await asyncio.sleep(0)  # answers from memory would else be one long turn
                    answer = await self._answer(ask, request, until)
                    if answer != self._found.get(request):  # else it stays the same object
                        self._found[request] = answer
                    due[request] = now + seconds - PERIOD_SECONDS / 2
            self._looked = now
            self._answers = Answers(self._found, at=datetime.now(UTC), audience=self._audience)

    async def _answer(self, ask: Ask, request: str, until: float) -> Record:
        try:
            async with asyncio.timeout_at(until):
                answer = await ask(request, self._audience)
        except TimeoutError as error:
            self._note(request, error)
            return {"error": {"message": _SLOW}}
        except Exception as error:  # noqa: BLE001  # a bug, logged: what others answer is shown
            self._note(request, error)
            return {"error": {"message": _BROKEN}}
        self._broken.discard(request)
        return answer

    async def render(self) -> None:
        """Render what has changed since, in a thread: the relay and the probes go on meanwhile."""
        async with self._one_at_a_time:
            for name, seen, view, html in await asyncio.to_thread(self._remade):
                self._seen[name] = seen
                if html is not None:
                    self._views[name], self._html[name] = view, html
                    self._unsent.add(name)
            self._everything = b""

    def expire(self) -> None:
        """Ask for everything at the next look: one that is in progress may have asked before."""
        self._due = {}

    def begin(self) -> None:
        """Forget what has changed while there was no page to send it to."""
        self._unsent.clear()

    async def afresh(self) -> dict[str, str]:
        """Return the HTML of each section, with the ages of the last look."""
        async with self._one_at_a_time:
            if self._afresh_at != self._looked:  # a flood of requests costs no flood of renderings
                self._afresh = await asyncio.to_thread(self._all)
                self._afresh_at = self._looked
            return self._afresh

    def _all(self) -> dict[str, str]:
        return {name: self._made(name)[1] or "" for name in page.SECTIONS}

    def changes(self) -> bytes | None:
        """Return the event with what has changed; None if there is nothing to send."""
        changed, self._unsent = self._unsent, set()
        self._quiet = 0 if changed else self._quiet + 1
        if not changed and self._quiet < QUIET_TICKS:
            return None
        self._quiet = 0
        return self._event(changed)

    def everything(self) -> bytes:
        """Return the event with every section."""
        if not self._everything:  # all that are late share it
            self._everything = self._event(self._html)
        return self._everything

    def _event(self, names: Iterable[str]) -> bytes:
        sections = {name: self._html[name] for name in names}
        return _event("sections", {"at": self._answers.at.isoformat(), "sections": sections})

    def _remade(self) -> list[_Remade]:
        """Return the sections whose answers are others than those that were looked at."""
        found = []
        for name, section in page.SECTIONS.items():
            seen = [self._found.get(request) for request in section.NEEDS]
            before = self._seen.get(name)
            if not before or any(each is not then for each, then in zip(seen, before, strict=True)):
                found.append(_Remade(name, seen, *self._made(name, self._views.get(name))))
        return found

    def _made(
        self, name: str, known: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Any], str | None]:
        """Return the view of a section and its HTML, None for that of the known view."""
        try:
            view = page.SECTIONS[name].view(self._answers)
            html = None if view == known else page.render_section(name, view, self._answers)
        except Exception as error:  # noqa: BLE001  # a bug, logged: other sections stand
            self._note(name, error)
            view = {"broken": name}
            return view, None if view == known else page.without(name, _BROKEN)
        self._broken.discard(name)
        return view, html

    def _note(self, what: str, error: Exception) -> None:
        """Log the failure of a section or a request, until it is mended."""
        if what not in self._broken:
            self._broken.add(what)
            log.error("dashboard_failed", part=what, exc_info=error)


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


_ENDED = _event("ended", {})
