"""The dashboard's routes: sessions, the view token, forms, and the stream of changes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atlas_supervisor import errors
from atlas_supervisor.api import audit, examples
from atlas_supervisor.api.routes import Access, AnyRoute
from atlas_supervisor.api.security import Caller, Gate
from atlas_supervisor.api.server import table
from atlas_supervisor.api.sessions import Rank
from atlas_supervisor.dashboard import live, page
from atlas_supervisor.dashboard.actions import ACTIONS
from atlas_supervisor.dashboard.answers import Audience
from atlas_supervisor.dashboard.sections import slots
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.model.actor import Actor
from tests.unit.supervisor.api.support import (
    BEARER,
    TOKEN,
    Answer,
    MemoryControl,
    Server,
    eventually,
    running,
)

VIEW_TOKEN = "a-token-that-only-reads"
VIEW = {"Authorization": f"Bearer {VIEW_TOKEN}"}
HTML = {"Accept": "text/html"}
SIGNED_OUT = {"audience": Audience.READER, "notice": None, "session": False, "over_tcp": True}
TABLE = [route for route in table("1") if not route.path.startswith("/docs/")]


@pytest.fixture(autouse=True)
def _entries_are_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory's trail writes nothing by itself, so waiting for an entry is in vain."""
    monkeypatch.setattr("atlas_supervisor.api.dashboard_actions._AUDIT_SECONDS", 0.2)


def target(route: AnyRoute) -> str:
    return re.sub(r"{(\w+)}", lambda found: examples.PARAMETERS[found[1]], route.path)


def cookie_of(answer: Answer) -> dict[str, str]:
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def form_token(shown: Answer) -> str:
    return re.search(r'data-token="([\w-]+)"', shown.body.decode())[1]  # type: ignore[index]  # it is


async def signed_in(server: Server, token: str = TOKEN) -> dict[str, str]:
    """Return the headers of a session that was begun with this token."""
    answer = await server.tcp("POST", "/dashboard/session", data={"token": token})
    assert (answer.status, answer.headers["Location"]) == (303, "../")
    return cookie_of(answer)


async def act(
    server: Server, action: str, headers: dict[str, str], **fields: str
) -> tuple[Answer, dict[str, Any]]:
    """Do an action as the page's script does; return the answer and its JSON."""
    shown = await server.tcp("GET", "/", headers=headers)
    fields.setdefault("form_token", form_token(shown))
    answer = await server.tcp("POST", f"/dashboard/actions/{action}", headers=headers, data=fields)
    return answer, answer.json


@asynccontextmanager
async def watching(server: Server, headers: dict[str, str]) -> AsyncIterator[aiohttp.StreamReader]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.authority}/dashboard/events", headers=headers) as answer,
    ):
        assert answer.status == 200
        yield answer.content


async def next_event(stream: aiohttp.StreamReader) -> tuple[str, dict[str, Any]]:
    """Return the next event that has data."""
    kind = ""
    async with asyncio.timeout(10):
        while line := (await stream.readline()).decode():
            if line.startswith("event: "):
                kind = line[7:].strip()
            elif line.startswith("data: "):
                return kind, json.loads(line[6:])
    return "end", {}


# The page.


async def test_the_page_is_open_on_loopback_without_buttons_and_without_a_workers_words(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        shown = await server.tcp("GET", "/")
    text = shown.body.decode()
    assert shown.status == 200
    assert shown.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "1.4.0 serves all traffic" in text
    assert "dashboard/actions/" not in text
    assert 'id="sign-in"' in text


async def test_the_page_loads_nothing_from_another_host_and_has_no_inline_script(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        shown = await server.tcp("GET", "/", headers=BEARER)
        text = shown.body.decode()
        links = re.findall(r'(?:src|href|action)="([^"]+)"', text)
        for each in links:
            if each.startswith("dashboard/atlas."):
                assert (await server.tcp("GET", f"/{each}")).status == 200
    assert all(not re.match(r"(?!data:image)\w+:|/", each) for each in links)  # relative ones
    policy = shown.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text)


async def test_script_style_and_page_are_under_150_kb(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        paths = ("/", "/dashboard/atlas.js", "/dashboard/atlas.css")
        sizes = [len((await server.tcp("GET", path, headers=BEARER)).body) for path in paths]
    assert sum(sizes) < 150_000


async def test_off_loopback_a_stranger_may_sign_in_and_read_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        gate = Gate(server.options, loopback=False)
    refused = partial(errors.TOKEN_REQUIRED.error, file="control.token")
    stranger = Caller(Actor(name="anonymous", origin="10.0.0.7"), Rank.STRANGER, refused)
    gate.admit(stranger, Access.PUBLIC)
    assert not gate.reads(stranger)
    with pytest.raises(RefusedError):
        gate.admit(stranger, Access.READ)
    assert 'id="sign-in"' in (html := page.render_page(None, form_token="x", **SIGNED_OUT))
    assert "serves" not in html


@pytest.mark.parametrize("file", ["atlas.svg", "page.html", "..%2Fpage.html"])
async def test_only_the_files_of_the_page_are_served(tmp_path: Path, file: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", f"/dashboard/{file}")
    assert answer.status == 404


async def test_over_the_unix_socket_the_daemons_user_needs_no_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        shown = await server.unix("GET", "/")
        origin = {"Origin": "http://localhost:9000", "Host": "localhost:9000"}
        fields = {"form_token": form_token(shown)}
        answer = await server.unix("POST", "/dashboard/actions/switch", headers=origin, data=fields)
    assert "dashboard/actions/rollback" in shown.body.decode()
    assert "sign-in" not in shown.body.decode()
    assert answer.json["ok"] is True
    assert server.control.asked == [
        ("switch", None, Actor(name=f"uid:{os.geteuid()}", origin="unix"))
    ]


# Sessions.


async def test_a_token_is_pasted_once_and_the_session_is_audited(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("POST", "/dashboard/session", data={"token": f" {TOKEN}\n"})
        shown = await server.tcp("GET", "/", headers=cookie_of(answer))
    cookie = answer.headers["Set-Cookie"]
    assert all(each in cookie for each in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=432"))
    assert TOKEN not in cookie
    assert "dashboard/actions/rollback" in shown.body.decode()
    ((actor, action, outcome, _),) = server.audit.recorded
    assert (action, outcome) == ("session", "begun")
    assert re.fullmatch(r"session:[0-9a-f]{16}", actor.name)


async def test_a_wrong_token_begins_no_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        for token in ("", "guess", TOKEN[:-1], "ü"):
            data = {"token": token}
            answer = await server.tcp("POST", "/dashboard/session", data=data, headers=HTML)
            assert answer.status == 401
            assert "Set-Cookie" not in answer.headers
            assert "token is wrong" in answer.body.decode()


async def test_a_changed_cookie_is_no_session(tmp_path: Path) -> None:
    async with running(tmp_path, view_token=VIEW_TOKEN) as server:
        whole = (await signed_in(server, VIEW_TOKEN))["Cookie"]
        label, _, value = whole.partition("=")
        rank, ends, session, signature = value.split(".")
        for forged in (
            f"2.{ends}.{session}.{signature}",
            f"{rank}.{int(ends) + 1}.{session}.{signature}",
            f"{rank}.{ends}.{session[::-1]}.{signature}",
            f"{rank}.{ends}.{session}.{signature[::-1]}",
            "",
        ):
            headers = {"Cookie": f"{label}={forged}"}
            answer = await server.tcp("GET", "/deploy/audit", headers=headers)
            assert (answer.status, answer.code) == (401, "token_required")


async def test_cookies_of_other_applications_do_not_hide_the_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        own = (await signed_in(server))["Cookie"]
        for others in ('a={"x":1,"y":"é"}; {}', "{}; dark mode; b[0]=@", 'c="open; {}'):
            headers = {"Cookie": others.replace("{}", own)}
            assert (await server.tcp("GET", "/deploy/audit", headers=headers)).status == 200


async def test_a_log_that_is_followed_ends_with_its_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        fields = {"form_token": form_token(await server.tcp("GET", "/", headers=session))}
        url = f"http://{server.authority}/deploy/logs/supervisor?follow=true&lines=1"
        log = tmp_path / "supervisor.jsonl"
        log.write_text('{"ts": "2026-01-05T09:30:00Z", "level": "info", "event": "before"}\n')
        async with aiohttp.ClientSession() as client, client.get(url, headers=session) as stream:
            assert b"before" in await asyncio.wait_for(stream.content.readline(), 10)
            await server.tcp("POST", "/dashboard/session/end", headers=session, data=fields)
            with log.open("a") as file:
                file.write('{"ts": "2026-01-05T09:30:01Z", "level": "info", "event": "after"}\n')
            assert await asyncio.wait_for(stream.content.read(), 10) == b""


async def test_a_session_ends_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        assert (await server.tcp("GET", "/deploy/audit", headers=session)).status == 200
        monkeypatch.setattr("atlas_supervisor.api.sessions.LASTS_SECONDS", 0)
        short = await signed_in(server)
        assert (await server.tcp("GET", "/deploy/audit", headers=short)).status == 401


async def test_after_signing_out_the_cookie_is_worth_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        fields = {"form_token": form_token(await server.tcp("GET", "/", headers=session))}
        async with watching(server, session) as stream:
            await next_event(stream)
            forged = await server.tcp("POST", "/dashboard/session/end", headers=session, data={})
            answer = await server.tcp(
                "POST", "/dashboard/session/end", headers=session, data=fields
            )
            assert await next_event(stream) == ("ended", {})
        after = await server.tcp("GET", "/deploy/audit", headers=session)
    assert (forged.status, forged.code) == (403, "form_expired")
    assert (answer.status, answer.headers["Location"]) == (303, "../../")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert after.status == 401
    assert server.audit.recorded[-1][1:3] == ("session", "ended")
    assert server.audit.written[0].subject == session["Cookie"].split(".")[2]  # before the answer


async def test_a_session_lives_through_a_restart_but_not_if_it_was_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session, other = await signed_in(server), await signed_in(server)
        ended = other["Cookie"].split(".")[2]
    async with running(tmp_path, port=server.options.port) as server:
        entry = {"action": "session", "outcome": "ended", "subject": ended}
        server.audit.written = [audit.ENTRY.model_copy(update=entry)]
        assert (await server.tcp("GET", "/deploy/audit", headers=other)).status == 401
        assert (await server.tcp("GET", "/deploy/audit", headers=session)).status == 200
    async with running(tmp_path, port=server.options.port, token="another-token-now") as server:
        assert (await server.tcp("GET", "/deploy/audit", headers=session)).status == 401


# The view token, over every route.


async def test_with_the_view_token_everything_can_be_read(tmp_path: Path) -> None:
    control = MemoryControl(records={examples.SWITCHED.deploy_id: examples.SWITCHED})
    async with running(tmp_path, control, view_token=VIEW_TOKEN) as server:
        session = await signed_in(server, VIEW_TOKEN)
        found = {
            (target(route), by): (await server.tcp("HEAD", target(route), headers=headers)).status
            for route in TABLE
            if route.method == "GET"
            for by, headers in (("token", VIEW), ("session", session))
        }
    assert len(found) > 40
    assert set(found.values()) == {200}, found


async def test_with_the_view_token_nothing_can_be_changed(tmp_path: Path) -> None:
    changing = [each for each in TABLE if each.access in {Access.CHANGE, Access.FORM}]
    async with running(tmp_path, view_token=VIEW_TOKEN) as server:
        session = await signed_in(server, VIEW_TOKEN)
        token = form_token(await server.tcp("GET", "/", headers=session))
        for route in changing:
            fields = {"data": {"form_token": token}} if route.form else {"json": {}}
            for headers in (VIEW, session):
                answer = await server.tcp(route.method, target(route), headers=headers, **fields)
                assert (answer.status, answer.code) == (403, "not_permitted"), route.path
    assert len(changing) > 12
    assert server.control.asked == []
    assert {name for name, _ in server.control.canaries.asked} <= {"report"}, "the page reads it"


async def test_every_method_but_get_is_a_change_or_a_session() -> None:
    others = [each for each in TABLE if each.method != "GET"]
    public = [each.path for each in others if each.access not in {Access.CHANGE, Access.FORM}]
    assert public == ["/dashboard/session", "/dashboard/session/end"]


async def test_with_the_view_token_the_buttons_are_absent_and_all_else_is_there(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, view_token=VIEW_TOKEN) as server:
        server.audit.written = [audit.ENTRY]
        shown = (await server.tcp("GET", "/", headers=VIEW)).body.decode()
    assert "dashboard/actions/" not in shown
    assert "popover" not in shown
    assert "disabled" not in shown


# Forms.


DONE: list[tuple[str, dict[str, str], Any, str]] = [
    ("deploy", {"release": "1.4.0"}, ("deploy", ("1.4.0", False)), "atlasctl deploy 1.4.0"),
    ("deploy", {"release": ""}, ("deploy", (None, False)), "atlasctl deploy"),
    ("dry-run", {}, ("deploy", (None, True)), "atlasctl deploy --dry-run"),
    ("switch", {}, ("switch", None), "atlasctl switch"),
    ("abort", {}, ("abort", None), "atlasctl abort"),
    ("rollback", {"version": "1 3"}, ("rollback", ("1 3", False)), "atlasctl rollback '1 3'"),
    ("hold", {"max_seconds": "30"}, ("hold", 30.0), "atlasctl hold --max 30"),
    ("release", {}, ("release", None), "atlasctl hold --release"),
    ("ramp-pause", {}, ("ramp", "pause"), "atlasctl ramp pause"),
    ("ramp-resume", {}, ("ramp", "resume"), "atlasctl ramp resume"),
    ("ramp-advance", {}, ("ramp", "advance"), "atlasctl ramp advance"),
    ("reset", {}, ("mode", "bluegreen"), "atlasctl mode bluegreen"),
    ("reload", {}, ("reload", None), "atlasctl reload"),
]
"""Each action with its form's fields, what the daemon is asked, and the command."""
DONE_TO_FLEET: list[tuple[str, dict[str, str], Any, str]] = [
    (
        "fleet-rollout",
        {"release": "1.4.0"},
        ("begin", "1.4.0", 1, [1, 0.1, 1]),
        "atlasctl fleet rollout 1.4.0",
    ),
    ("fleet-pause", {}, ("pause",), "atlasctl fleet pause"),
    ("fleet-resume", {}, ("resume",), "atlasctl fleet resume"),
    ("fleet-abort", {}, ("abort",), "atlasctl fleet abort"),
    ("fleet-rollback", {}, ("rollback",), "atlasctl fleet rollback"),
    (
        "fleet-break",
        {"host": "web2", "generation": "17"},
        ("break", "web2", 17),
        "atlasctl fleet break web2 --generation 17",
    ),
    ("fleet-forget", {"host": "web9"}, ("forget", "web9"), "atlasctl fleet forget web9"),
    ("fleet-kill", {"feature": "vision"}, ("kill", "vision"), "atlasctl fleet kill vision"),
    ("fleet-kill-all", {}, ("kill", None), "atlasctl fleet kill all"),
    ("fleet-reset", {}, ("reset",), "atlasctl fleet reset"),
]
"""The same for the actions on a fleet."""


async def test_each_action_does_what_its_command_does_in_the_name_of_the_session(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        actor = Actor(name=f"session:{session['Cookie'].split('.')[2]}", origin="127.0.0.1")
        shown = await server.tcp("GET", "/", headers=session)
        server.audit.written = [audit.ENTRY.model_copy(update={"id": 9, "actor": actor.name})]
        for action, fields, asked, command in DONE:
            server.control.asked.clear()
            answer = await server.tcp(
                "POST",
                f"/dashboard/actions/{action}",
                headers=session,
                data={"form_token": form_token(shown), **fields},
            )
            assert (answer.status, answer.json["command"]) == (200, command)
            assert server.control.asked == [(*asked, actor)]


async def test_each_action_on_a_fleet_does_what_its_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_supervisor.api.dashboard_actions._AUDIT_SECONDS", 0)
    async with running(tmp_path) as server:
        session = await signed_in(server)
        shown = await server.tcp("GET", "/", headers=session)
        played = server.control.fleet
        assert played
        for action, fields, asked, command in DONE_TO_FLEET:
            played.asked.clear()
            data = {"form_token": form_token(shown), **fields}
            answer = await server.tcp(
                "POST", f"/dashboard/actions/{action}", headers=session, data=data
            )
            assert (answer.status, answer.json["command"]) == (200, command)
            assert played.asked == [(*asked, f"session:{session['Cookie'].split('.')[2]}")]
        nameless = await server.tcp(
            "POST",
            "/dashboard/actions/fleet-kill",
            headers=session,
            data={"form_token": form_token(shown), "feature": ""},
        )
    assert nameless.json["ok"] is False  # else it would be a kill of all
    assert {action for action, *_ in [*DONE, *DONE_TO_FLEET]} == set(ACTIONS)


async def test_an_actions_audit_entries_are_in_its_outcome(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        name = f"session:{session['Cookie'].split('.')[2]}"
        shown = await server.tcp("GET", "/", headers=session)
        server.audit.written = []
        doing = asyncio.create_task(
            server.tcp(
                "POST",
                "/dashboard/actions/abort",
                headers=session,
                data={"form_token": form_token(shown)},
            )
        )
        await eventually(lambda: bool(server.control.asked))
        own = {"actor": name, "action": "abort", "outcome": "done"}
        server.audit.written = [audit.ENTRY, audit.ENTRY.model_copy(update=own)]
        found = (await doing).json
    assert [each.split(" ", 2)[2] for each in found["audit"]] == [
        f"{name} abort done {audit.ENTRY.subject}"
    ]


async def test_a_refused_action_says_why_and_what_to_do(tmp_path: Path) -> None:
    refusal = RefusedError("nothing", "there is none", status=409, hint="see `atlasctl status`")
    async with running(tmp_path, MemoryControl(refusal=refusal)) as server:
        _, found = await act(server, "ramp-pause", await signed_in(server))
    assert (found["ok"], found["message"]) == (False, "there is none")
    assert found["hint"] == "see `atlasctl status`"


async def test_without_the_script_a_form_leads_back_to_a_page_with_the_outcome(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        session = {**await signed_in(server), **HTML}
        token = form_token(await server.tcp("GET", "/", headers=session))
        fields = {"form_token": token, "version": "1.3.2"}
        answer = await server.tcp(
            "POST", "/dashboard/actions/rollback", headers=session, data=fields
        )
        assert answer.status == 303
        location = answer.headers["Location"].removeprefix("../..")
        shown = (await server.tcp("GET", location, headers=session)).body.decode()
        stranger = (await server.tcp("GET", location)).body.decode()
    assert "<code>atlasctl rollback 1.3.2</code>" in shown
    assert "atlasctl rollback 1.3.2" not in stranger


FOREIGN = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8790"},
    {"Origin": "https://evil.example"},
)


async def test_a_form_of_another_site_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        fields = {"form_token": form_token(await server.tcp("GET", "/", headers=session))}
        for path in ("/dashboard/actions/abort", "/dashboard/session"):
            for foreign in FOREIGN:
                headers = {**session, **foreign}
                answer = await server.tcp("POST", path, headers=headers, data=fields)
                assert (answer.status, answer.code) == (403, "foreign_origin"), headers
    assert server.control.asked == []


async def test_a_form_needs_the_token_of_its_own_session(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session, other = await signed_in(server), await signed_in(server)
        theirs = form_token(await server.tcp("GET", "/", headers=other))
        for token in ("", "x", theirs, "ü"):
            answer, found = await act(server, "abort", session, form_token=token)
            assert (answer.status, found["error"]["code"]) == (403, "form_expired")
    assert server.control.asked == []


async def test_a_session_alone_changes_nothing_outside_of_the_forms(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        answer = await server.tcp("POST", "/deploy/abort", headers=session)
    assert (answer.status, answer.code) == (401, "token_required")
    assert server.control.asked == []


SENSELESS: tuple[tuple[str, dict[str, str], int], ...] = (
    ("nope", {}, 404),
    ("hold", {"max_seconds": "nan"}, 400),
    ("hold", {"max_seconds": "soon"}, 400),
    ("deploy", {"surprise": "1"}, 400),
    ("deploy", {"release": "x" * 256}, 400),
    # These the API itself refuses: the outcome says so.
    ("deploy", {"release": "../etc"}, 200),
    ("deploy", {"release": ".hidden"}, 200),
    ("hold", {"max_seconds": "1e9"}, 200),
    ("abort", {"release": "1.4.0"}, 200),
)


async def test_fields_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        token = form_token(await server.tcp("GET", "/", headers=session))
        for action, fields, status in SENSELESS:
            path, data = f"/dashboard/actions/{action}", {"form_token": token, **fields}
            answer = await server.tcp("POST", path, headers=session, data=data)
            assert answer.status == status, action
            assert "error" in answer.json or answer.json["ok"] is False
    assert server.control.asked == []


async def test_a_link_from_another_site_gets_a_page_with_a_way_in(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        answer = await server.tcp("GET", "/", headers={"Sec-Fetch-Site": "cross-site", **HTML})
    assert answer.status == 403
    assert answer.headers["Content-Type"].startswith("text/html")
    assert '<a href="./">' in answer.body.decode()


# Changes as they happen.


async def test_open_pages_get_what_changes_and_share_one_rendering(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        session = await signed_in(server)
        async with watching(server, session) as first, watching(server, session) as second:
            for stream in (first, second):
                kind, data = await next_event(stream)
                assert (kind, "1.4.0 serves" in data["sections"]["headline"]) == ("sections", True)
            server.control.is_ready = False
            events = [await changed(stream, "headline") for stream in (first, second)]
    assert "No version serves" in events[0]["sections"]["headline"]
    assert events[0] == events[1]


async def changed(stream: aiohttp.StreamReader, section: str) -> dict[str, Any]:
    """Return the next event with this section."""
    while True:
        _, data = await next_event(stream)
        if section in data["sections"]:
            return data


async def test_a_page_is_sent_the_time_while_nothing_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as server, watching(server, {}) as stream:
        await next_event(stream)
        kind, data = await next_event(stream)
    assert (kind, data["sections"]) == ("sections", {})
    assert data["at"]


async def test_a_reader_gets_no_buttons_over_the_stream_either(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        async with watching(server, {}) as stream:
            _, reader = await next_event(stream)
        async with watching(server, BEARER) as stream:
            _, operator = await next_event(stream)
    assert "dashboard/actions" not in json.dumps(reader)
    assert "dashboard/actions" in json.dumps(operator)


async def test_one_broken_section_leaves_the_page_standing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_FRESH_SECONDS", 0)
    async with running(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(slots, "view", lambda _answers: 1 // 0)
            shown = await server.tcp("GET", "/", headers=BEARER)
            async with watching(server, BEARER) as stream:
                _, event = await next_event(stream)
        mended = await server.tcp("GET", "/", headers=BEARER)
    for text in (shown.body.decode(), "".join(event["sections"].values())):
        assert "1.4.0 serves all traffic" in text
        assert text.count("can&#39;t be shown") == 1
    assert "can&#39;t be shown" not in mended.body.decode()


async def test_a_broken_database_leaves_the_page_standing(tmp_path: Path) -> None:
    async with running(tmp_path) as server:

        async def broken(**_: Any) -> Any:
            raise AtlasError("the database can't be read: disk I/O error")

        server.audit.entries = broken  # type: ignore[method-assign]  # a database that fails
        shown = await server.tcp("GET", "/", headers=BEARER)
    assert shown.status == 200
    assert "1.4.0 serves all traffic" in shown.body.decode()
