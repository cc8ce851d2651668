from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system import text as system_text
from atlas_supervisor.system.text import keep_secret
from atlas_supervisor.telemetry.sanitize import (
    LONGEST_TEXT,
    LONGEST_TRACEBACK,
    MOST_VALUES,
    in_order,
    plain_event,
    without_secrets,
)
from tests.unit.supervisor.telemetry.support import lines


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_text, "_known", [])


def plain(**event: Any) -> dict[str, Any]:
    return dict(in_order(None, "info", plain_event(None, "info", event)))


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("password", "hunter2", "***"),
        ("control_token", "abc", "***"),
        ("API_KEY", "abc", "***"),
        ("why", "GET http://me:pass@host/x failed", "GET http://***@host/x failed"),
        ("why", "see https://h/p?key=1&b=2 now", "see https://h/p?*** now"),
        ("why", "psql password=hunter2 host=db", "psql password=*** host=db"),
        ("why", "DB_PASSWORD='a b', x", "DB_PASSWORD=***, x"),
        ("why", "{'api_key': 'abc', 'n': 1}", "{'api_key': '***', 'n': 1}"),
        ("why", "Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("why", "authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
        ("why", "state/control.token: Permission denied", "state/control.token: Permission denied"),
        ("why", "what? nothing: is=secret", "what? nothing: is=secret"),
    ],
)
def test_a_secret_is_masked_by_its_name_or_place(key: str, text: str, shown: str) -> None:
    assert without_secrets(key, text) == shown


def test_a_known_secret_is_masked_in_every_field() -> None:
    keep_secret(["the-token-itself", "short"])
    assert plain(event="short", why=["x the-token-itself y"]) == {
        "event": "short",
        "why": ["x *** y"],
    }


def test_secrets_in_the_text_of_an_exception_are_masked(path: Path) -> None:
    keep_secret(["s3cret-value"])
    try:
        raise ValueError("no entry at http://root:pw@db/ with s3cret-value")
    except ValueError:
        structlog.get_logger("t").exception("failed")
    text = path.read_text()
    assert "ValueError: no entry at http://***@db/ with ***" in text
    assert "s3cret-value" not in text.replace('ValueError("no entry', "")  # not in a source line


@pytest.mark.parametrize("character", "\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200f\ud800")
def test_names_and_values_of_an_event_are_printable(character: str) -> None:
    event = plain(event=f"x{character}", many={f"k{character}": [character]})
    assert json.dumps(event, ensure_ascii=False).isprintable()


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    shown = plain(event="e", why="a" * 5000 + "middle" + "z" * 1_000_000)["why"]
    assert len(shown) == LONGEST_TEXT + 1
    assert shown.startswith("aaa")
    assert shown.endswith("zzz")
    trace = plain(event="e", exception="Traceback\n" + "x\n" * 100_000 + "Error: it")["exception"]
    assert trace.endswith("\nError: it")
    assert len(trace) <= LONGEST_TRACEBACK + 1


def test_the_length_of_a_line_is_bounded() -> None:
    event = plain(
        event="e", deploy_id="d", **{f"k{n}": ['"' * 4000] * 100 for n in range(200)}, slot="blue"
    )
    assert len(json.dumps(event)) < 256 * 1024
    assert (event["deploy_id"], event["event"]) == ("d", "e")
    assert event["left_out"]


def test_the_first_fields_and_the_traceback_of_a_full_line_are_kept() -> None:
    many = {f"k{n}": "x" * 4000 for n in range(70)}
    event = plain(**many, event="e", level="error", ts="t", exception="Traceback\nError: it")
    assert (event["event"], event["level"], event["ts"]) == ("e", "error", "t")
    assert event["exception"] == "Traceback\nError: it"
    assert "k60" in event["left_out"]


class Closed(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("closed")


class Nameless:
    def __str__(self) -> str:
        raise RuntimeError("no name")


def test_unreadable_values_do_not_lose_the_line() -> None:
    event = plain(event="e", n=10**5000, closed=Closed(a=1), named={Nameless(): 1}, ok=2**64)
    assert json.loads(json.dumps(event))["ok"] == 2**64
    assert "can't be shown" in event["n"]
    assert "can't be shown" in event["closed"]


def test_many_values_are_cut_and_deep_ones_become_text() -> None:
    deep: Any = "end"
    for _ in range(50):
        deep = [deep]
    event = plain(event="e", many=list(range(1000)), deep=deep)
    assert event["many"] == list(range(MOST_VALUES))
    assert "[[" in json.dumps(event["deep"])


def test_values_unknown_to_JSON_become_text() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    event = plain(event=SlotName.BLUE, a=float("nan"), b=Path("/x"), c=Odd(), d=None, e=1.5, f=True)
    assert event == {
        "event": "blue",
        "a": "nan",
        "b": "/x",
        "c": "<Odd that can't be shown>",
        "d": None,
        "e": 1.5,
        "f": True,
    }


def test_one_event_is_one_line_with_the_same_fields_first(path: Path) -> None:
    log = structlog.get_logger("t").bind(slot="blue", deploy_id="d")
    log.info("a\u2028b\x85c\r\nd", why="x\ny")
    (line,) = path.read_bytes().split(b"\n")[:-1]
    assert list(json.loads(line)) == ["ts", "level", "event", "deploy_id", "slot", "why"]
    assert lines(path)[0]["event"] == "a\\u2028b\\x85c\\r\\nd"


def test_a_secret_that_contains_another_is_masked_whole() -> None:
    keep_secret(["secret-a", "secret-a-longer"])
    assert plain(event="secret-a-longer secret-a")["event"] == "*** ***"


@pytest.mark.parametrize(
    "piece",
    ["a-", "token-", "a", "'token", "token='", "authorization: ", "bearer ", "x://", "://", "\x00"],
)
def test_the_work_is_linear_in_the_length_of_a_text(piece: str) -> None:
    def seconds(length: int) -> float:
        text = (piece * length)[:length] + "://"
        began = time.process_time()
        without_secrets("why", text)
        return time.process_time() - began

    # Four times as long takes sixteen times as long if the work is quadratic.
    short = min(seconds(16_000) for _ in range(5))
    assert min(seconds(64_000) for _ in range(5)) < 9 * max(short, 0.0005)


def test_the_work_on_a_deep_value_is_bounded() -> None:
    deep: Any = "x" * 100
    for _ in range(4):
        deep = [deep] * MOST_VALUES  # 16 million texts
    began = time.process_time()
    event = plain(event="e", deep=deep)
    assert time.process_time() - began < 1
    assert len(json.dumps(event)) < 64 * 1024
