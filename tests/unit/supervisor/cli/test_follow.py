"""Following a deploy by events, over broken and restarted streams."""

from __future__ import annotations

import pytest

from atlas_supervisor.cli import client, follow
from tests.unit.supervisor.cli.fakes import (
    BREAK,
    STAY,
    Asked,
    Played,
    event,
    problem,
    record,
    step,
)
from tests.unit.supervisor.cli.support import Call

LAUNCHING = record(step("preflight"), phase="launch")
SMOKING = record(step("preflight"), step("launch"), phase="smoke")
SWITCHED = record(step("preflight"), step("launch"), result="switched", phase="guard")


@pytest.fixture(autouse=True)
def never_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client that polls where it should listen never get on."""
    monkeypatch.setattr(follow, "POLL_SECONDS", 1000)


def begin(daemon: Played, *records: dict[str, object]) -> None:
    daemon.play("POST", "/deploy/bluegreen", record(), status=202)
    daemon.play("GET", "/deploy/d-42", *records)


def streams(daemon: Played) -> list[Asked]:
    return [asked for asked in daemon.asked if asked.path == "/deploy/events"]


def reads(daemon: Played) -> int:
    return [asked.path for asked in daemon.asked].count("/deploy/d-42")


async def test_the_record_is_read_once_at_first_and_then_at_each_event(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, LAUNCHING, SMOKING, SWITCHED)
    daemon.play_events((b"retry: 1000\nid: 6\n\n", event(7), event(8), STAY))
    outcome = await atlasctl("deploy")
    assert outcome.code == 0
    assert outcome.out.count("preflight") == 1
    assert reads(daemon) == 3
    [asked] = streams(daemon)
    assert asked.query == {"deploy_id": "d-42"}
    assert "last-event-id" not in asked.headers


async def test_a_deploy_that_settled_before_the_stream_opened_is_returned_at_once(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, SWITCHED)
    daemon.play_events((STAY,))
    assert (await atlasctl("deploy")).code == 0
    assert reads(daemon) == 1


@pytest.mark.parametrize("end", [(), (BREAK,), (b"id: 9\ndata: hal", BREAK)])
async def test_a_stream_that_ends_is_resumed_and_the_record_read(
    daemon: Played, atlasctl: Call, end: tuple[object, ...]
) -> None:
    begin(daemon, LAUNCHING, SMOKING, SMOKING, SMOKING, SWITCHED)
    # Once it has read the record three times, it has taken both events.
    first = (b"id: 6\n\n", event(7), event(None), 5, *end)
    daemon.play_events(first, (event(8), STAY))
    assert (await atlasctl("deploy")).code == 0
    assert [asked.headers.get("last-event-id") for asked in streams(daemon)] == [None, "7"]


async def test_a_keep_alive_comment_triggers_a_read(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, LAUNCHING, SWITCHED)
    daemon.play_events((b": still here\n\n", STAY))
    assert (await atlasctl("deploy")).code == 0


async def test_a_stream_that_is_silent_for_too_long_is_opened_again(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_SECONDS", 0.2)
    begin(daemon, LAUNCHING, LAUNCHING, SWITCHED)
    daemon.play_events((b"id: 6\n\n", STAY), (STAY,))
    assert (await atlasctl("deploy")).code == 0
    assert [asked.headers.get("last-event-id") for asked in streams(daemon)][:2] == [None, "6"]


async def test_a_stopping_daemon_is_waited_for(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RESTART_SECONDS", 0.3)
    begin(daemon)
    daemon.play("GET", "/deploy/d-42", problem("stopping", "It stops."), status=503)
    daemon.play_events(*[()] * 50)
    outcome = await atlasctl("deploy")
    assert outcome.code == 1
    assert "It stops." in outcome.err
    assert reads(daemon) > 1


async def test_too_many_streams_do_not_end_following(daemon: Played, atlasctl: Call) -> None:
    begin(daemon, LAUNCHING, SMOKING, SWITCHED)
    daemon.play("GET", "/deploy/events", problem("too_many_streams", "later"), status=503)
    assert (await atlasctl("deploy")).code == 0
    assert len(streams(daemon)) == 3


@pytest.mark.parametrize("status", [404, 400, 200])
async def test_a_daemon_without_events_is_polled(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    begin(daemon, LAUNCHING, LAUNCHING, SWITCHED)
    daemon.play("GET", "/deploy/events", problem("deploy_not_found", "what?"), status=status)
    assert (await atlasctl("deploy")).code == 0
    assert len(streams(daemon)) == 1


async def test_an_overlong_event_leads_to_polling(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "MAX_BYTES", 100)
    begin(daemon, LAUNCHING, SWITCHED)
    daemon.play_events((b"data: " + b"x" * 200, STAY))
    assert (await atlasctl("deploy")).code == 0


async def test_a_deploy_has_a_key_and_is_repeated_after_a_lost_answer(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, SWITCHED)
    daemon.break_first()
    outcome = await atlasctl("deploy", "v2")
    assert outcome.code == 0
    posts = [asked for asked in daemon.asked if asked.method == "POST"]
    assert len(posts) == 2
    assert posts[0].headers["idempotency-key"] == posts[1].headers["idempotency-key"] != ""
    assert posts[0].body == posts[1].body


async def test_a_stopping_daemon_is_asked_again_until_the_next_one_answers(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon, SWITCHED)
    daemon.play("POST", "/deploy/bluegreen", problem("stopping", "It stops."), status=503)
    daemon.play_also("POST", "/deploy/bluegreen", record(), status=202)
    daemon.break_first()
    assert (await atlasctl("deploy")).code == 0
    assert [asked.method for asked in daemon.asked].count("POST") == 3


async def test_each_deploy_has_a_key_of_its_own(daemon: Played, atlasctl: Call) -> None:
    begin(daemon)
    await atlasctl("deploy", "--no-wait")
    await atlasctl("deploy", "--no-wait")
    keys = [asked.headers["idempotency-key"] for asked in daemon.asked]
    assert len(set(keys)) == 2


async def test_a_request_whose_answer_is_lost_twice_is_not_repeated(
    daemon: Played, atlasctl: Call
) -> None:
    begin(daemon)
    daemon.break_first(times=3)
    outcome = await atlasctl("deploy")
    assert outcome.code == 3
    assert "may have been executed all the same" in outcome.err
    assert len(daemon.asked) == 2


async def test_a_request_without_a_key_is_sent_once(daemon: Played, atlasctl: Call) -> None:
    daemon.break_first()
    assert (await atlasctl("rollback")).code == 3
    assert len(daemon.asked) == 1
