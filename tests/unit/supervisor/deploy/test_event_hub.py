"""The hub of events: none is missed or repeated, and no subscriber is waited for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from atlas_supervisor.deploy import event_hub as hub
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.model.deploy import DeployEvent, EventFeed, PublishedEvent
from tests.unit.supervisor.deploy.fakes import MemoryJournal
from tests.unit.supervisor.store.support import a_deploy

WHEN = datetime(2026, 1, 5, tzinfo=UTC)


class Scene:
    """A hub, and a journal that events are written to before they are published."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.events = EventHub(self.journal)
        self.count = 0

    def happens(self, deploy_id: str = "d", *, written: bool = True) -> PublishedEvent:
        self.count += 1
        event = DeployEvent.of(
            a_deploy(deploy_id), ts=WHEN, source="launch", event="passed", cause=f"{self.count}"
        )
        published = PublishedEvent(event)
        if written:
            self.write(published)
        else:
            self.journal.unwritten.append(published)
            self.events.publish(published, None)
        return published

    def write(self, event: PublishedEvent) -> None:
        if event in self.journal.unwritten:
            self.journal.unwritten.remove(event)
        self.journal.rows.append(event)
        self.events.publish(event, len(self.journal.rows))


async def taken(feed: EventFeed, count: int) -> list[str]:
    """Take that many events; return their causes, which number them."""
    found = []
    for _ in range(count):
        event = await asyncio.wait_for(feed.next(), 5)
        assert event is not None
        found.append(event.event.cause)
    return found


async def nothing_more(scene: Scene, feed: EventFeed) -> None:
    """Check that the next event is one that happens only now."""
    last = scene.happens()
    assert await taken(feed, 1) == [last.event.cause]


@pytest.mark.parametrize("written", [0, 1, 15, 16, 17, 40])
async def test_a_subscriber_that_resumes_misses_no_event_and_gets_none_twice(written: int) -> None:
    for after in range(written + 1):
        for turns in range(6):  # the moment of its coming at which more happens
            scene = Scene()
            for _ in range(written):
                scene.happens()
            coming = asyncio.create_task(scene.events.subscribe(after=after, deploy_id=None))
            for _ in range(turns):
                await asyncio.sleep(0)
            scene.happens()
            feed = await coming
            scene.happens()
            wanted = [str(number) for number in range(after + 1, written + 3)]
            assert await taken(feed, len(wanted)) == wanted
            await nothing_more(scene, feed)
            feed.close()


async def test_a_subscriber_that_does_not_resume_gets_events_from_now_on() -> None:
    scene = Scene()
    scene.happens()
    feed = await scene.events.subscribe(after=None, deploy_id=None)
    assert (feed.resumes_at, feed.reset) == (1, None)
    await nothing_more(scene, feed)


async def test_an_unknown_id_resets_the_subscription_which_is_then_live() -> None:
    scene = Scene()
    scene.happens()
    feed = await scene.events.subscribe(after=99, deploy_id=None)
    assert feed.resumes_at == 1
    assert "99" in str(feed.reset)
    await nothing_more(scene, feed)


async def test_a_subscription_can_be_for_one_deploy() -> None:
    scene = Scene()
    for deploy_id in ("a", "b", "a"):
        scene.happens(deploy_id)
    feed = await scene.events.subscribe(after=0, deploy_id="a")
    scene.happens("b")
    scene.happens("a")
    assert await taken(feed, 3) == ["1", "3", "5"]


async def test_an_event_that_can_not_be_written_is_published_once_and_without_an_id() -> None:
    scene = Scene()
    feed = await scene.events.subscribe(after=0, deploy_id=None)
    unwritten = scene.happens(written=False)
    event = await feed.next()
    assert event is not None
    assert (event.event.cause, event.id) == ("1", None)
    late = await scene.events.subscribe(after=0, deploy_id=None)
    assert await taken(late, 1) == ["1"]
    scene.write(unwritten)
    await nothing_more(scene, feed)


async def test_a_subscriber_that_does_not_take_its_events_is_ended_and_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "MAX_EVENTS", 3)
    scene = Scene()
    slow = await scene.events.subscribe(after=None, deploy_id=None)
    quick = await scene.events.subscribe(after=None, deploy_id=None)
    for number in range(1, 6):
        scene.happens()
        assert await taken(quick, 1) == [str(number)]
    assert await slow.next() is None
    again = await scene.events.subscribe(after=0, deploy_id=None)
    assert await taken(again, 5) == ["1", "2", "3", "4", "5"]


async def test_untaken_events_are_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    monkeypatch.setattr(hub, "MAX_BYTES", 2 * len(scene.happens().data) + 10)
    feed = await scene.events.subscribe(after=None, deploy_id=None)
    for _ in range(3):
        scene.happens()
    assert await feed.next() is None


async def test_a_closed_hub_ends_subscriptions_after_the_last_event() -> None:
    scene = Scene()
    feed = await scene.events.subscribe(after=None, deploy_id=None)
    scene.happens()
    scene.events.close()
    assert await taken(feed, 1) == ["1"]
    assert await feed.next() is None
    late = await scene.events.subscribe(after=None, deploy_id=None)
    assert await late.next() is None


async def test_closing_a_subscription_wakes_its_reader() -> None:
    scene = Scene()
    feed = await scene.events.subscribe(after=None, deploy_id=None)
    waiting = asyncio.create_task(feed.next())
    await asyncio.sleep(0)
    feed.close()
    assert await asyncio.wait_for(waiting, 5) is None
