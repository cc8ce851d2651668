"""What the renderer asks for again, and when."""

from __future__ import annotations

import asyncio

import pytest

from atlas_supervisor.dashboard import live
from atlas_supervisor.dashboard.answers import Audience, Record
from tests.unit.supervisor.dashboard.support import STATUS, slot, status


async def test_the_page_after_an_action_has_no_answer_from_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "_FRESH_SECONDS", 60)
    asked, may_answer = asyncio.Event(), asyncio.Event()
    now = status()

    async def ask(request: str, _audience: Audience) -> Record:
        if request != STATUS:
            return {}
        seen = now
        asked.set()
        await may_answer.wait()
        return seen

    board = live.Board(ask)
    in_progress = asyncio.create_task(board.snapshot(Audience.OPERATOR))
    await asyncio.wait_for(asked.wait(), 10)
    now = status(slots=[slot(0), slot(1, version="9.9.9")])
    board.expire()
    may_answer.set()
    await in_progress
    shown = await board.snapshot(Audience.OPERATOR)
    assert "9.9.9 serves all traffic" in shown["headline"]


async def test_an_answer_that_does_not_come_is_missing_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.05)
    never = asyncio.Event()

    async def ask(request: str, _audience: Audience) -> Record:
        if request == STATUS:
            return status(slots=[slot(0), slot(1, version="9.9.9")])
        if request != "/readyz":
            await never.wait()
        return {}

    async with asyncio.timeout(10):
        shown = await live.Board(ask).snapshot(Audience.OPERATOR)
    assert "9.9.9 serves all traffic" in shown["headline"]
    assert "There was no answer within" in shown["history"]
