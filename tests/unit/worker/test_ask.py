"""The bundled worker's questions to a language model that answers over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_worker.app import checks, llm
from atlas_worker.app.llm import LanguageModel, Latencies, Model
from atlas_worker.app.settings import AppSettings
from atlas_worker.instance import BadEnvironmentError
from tests.unit.worker.app_support import Site, running_app
from tests.unit.worker.fakes import SLOW_SECONDS, WORDS, Played, language_model

QUESTION = {"prompt": "What is it?"}


@asynccontextmanager
async def asking(
    folder: Path, behaviour: str = "good", key_file: Path | None = None
) -> AsyncIterator[tuple[Site, Played]]:
    """The application with a model that behaves like this."""
    async with (
        language_model(behaviour) as played,
        running_app(
            folder,
            model=Model(played.url, "tiny", key_file),
            scheduler_enabled=False,
            memory_enabled=False,
        ) as site,
    ):
        yield site, played


async def events_of(site: Site) -> list[tuple[str, Any]]:
    """Ask for a streamed answer, and return its events by name."""
    async with site.client.post("/ask", json={**QUESTION, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


async def llm_check(site: Site) -> dict[str, Any]:
    _, body = await site.get("/health")
    check: dict[str, Any] = body["checks"]["llm_latency"]
    return check


async def test_a_prompt_is_answered_and_its_latency_is_in_the_health(tmp_path: Path) -> None:
    async with asking(tmp_path) as (site, played):
        assert (await llm_check(site))["status"] == "skipped"
        status, body = await site.post("/ask", QUESTION)
        assert (status, body["answer"], body["model"]) == (200, "Forty-two.", "tiny")
        assert body["latency_ms"] > 0
        assert played.asked == [
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "What is it?"}],
                "stream": False,
            }
        ]
        assert played.keys == [None]
        check = await llm_check(site)
        assert (check["status"], check["unit"]) == ("pass", "ms")
        assert 0 < check["value"] <= body["latency_ms"]


async def test_a_conversation_is_passed_on_unchanged(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"}]
    async with asking(tmp_path) as (site, played):
        assert (await site.post("/ask", {"messages": talk}))[0] == 200
        assert played.asked[0]["messages"] == talk


async def test_a_streamed_answer_comes_word_by_word(tmp_path: Path) -> None:
    async with asking(tmp_path, "halting") as (site, played):
        async with site.client.post("/ask", json={**QUESTION, "stream": True}) as response:
            first = await response.content.readuntil(b"\n\n")
            assert json.loads(first.removeprefix(b"data: ")) == {"text": WORDS[0]}
            played.first_read.set()  # so the first word arrived before the rest
            assert b"event: done" in await response.read()
        played.behaviour = "good"
        events = await events_of(site)
        assert [data["text"] for name, data in events if name == "message"] == list(WORDS)
        assert events[-1][0] == "done"
        assert (await llm_check(site))["status"] == "pass"


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("500", 502, "llm_failed"),
        ("302", 502, "llm_failed"),
        ("429", 503, "llm_busy"),
        ("401", 502, "llm_refused_us"),
        ("garbage", 502, "llm_failed"),
        ("empty", 502, "llm_failed"),
        ("silent", 504, "llm_timeout"),
    ],
)
async def test_failures_of_the_model_have_error_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, status: int, code: str
) -> None:
    monkeypatch.setattr(llm.LanguageModel.__init__, "__kwdefaults__", {"silence_seconds": 0.2})
    async with asking(tmp_path, behaviour) as (site, _):
        for _ in range(3):
            answered, body = await site.post("/ask", QUESTION)
            assert (answered, body["error"]["code"]) == (status, code)
        check = await llm_check(site)
        assert (check["status"], check["value"]) == ("fail", None)
        # A model that is down is no reason to stop and start the worker.
        assert (await site.get("/health"))[0] == 200


async def test_a_slow_model_is_waited_for_and_its_latency_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shorter than the whole stream, longer than each of its pauses.
    limit = 3 * SLOW_SECONDS
    monkeypatch.setattr(llm.LanguageModel.__init__, "__kwdefaults__", {"silence_seconds": limit})
    async with asking(tmp_path, "slow") as (site, _):
        status, body = await site.post("/ask", QUESTION)
        assert (status, body["answer"]) == (200, "".join(WORDS))
        *words, last = await events_of(site)
        assert [data["text"] for _, data in words] == list(WORDS)
        assert last[0] == "done"
        assert last[1]["latency_ms"] > 1000 * limit
        check = await llm_check(site)
        assert check["status"] == "pass"
        assert check["value"] >= 1000 * SLOW_SECONDS


async def test_an_unreachable_model_is_an_error(tmp_path: Path) -> None:
    async with asking(tmp_path) as (site, played):
        pass
    async with running_app(tmp_path, model=Model(played.url, "tiny")) as site:
        status, body = await site.post("/ask", QUESTION)
        assert (status, body["error"]["code"]) == (502, "llm_failed")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("breaks off", "llm_failed"),
        ("reports an error", "llm_failed"),
        ("silent later", "llm_timeout"),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, code: str
) -> None:
    monkeypatch.setattr(llm.LanguageModel.__init__, "__kwdefaults__", {"silence_seconds": 0.2})
    async with asking(tmp_path, behaviour) as (site, _):
        *words, last = await events_of(site)
        assert [data["text"] for _, data in words] == list(WORDS[:2])
        assert (last[0], last[1]["error"]["code"]) == ("error", code)


async def test_the_key_is_read_for_each_question_and_never_shown(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sesame-1\n")
    async with asking(tmp_path, key_file=key_file) as (site, played):
        await site.post("/ask", QUESTION)
        key_file.write_text("sesame-2\n")
        await site.post("/ask", QUESTION)
        assert played.keys == ["Bearer sesame-1", "Bearer sesame-2"]
        for spoilt in (b"two\nlines", b"\xff\xfe"):
            key_file.write_bytes(spoilt)
            status, body = await site.post("/ask", QUESTION)
            assert (status, body["error"]["code"]) == (503, "llm_key_unreadable")
            assert "lines" not in json.dumps(body)
        key_file.unlink()
        assert (await site.post("/ask", QUESTION))[1]["error"]["code"] == "llm_key_unreadable"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"prompt": "a", "messages": []}, "body"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "content"),
    ],
)
async def test_a_bad_question_is_refused_and_its_field_named(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    async with asking(tmp_path) as (site, played):
        status, answer = await site.post("/ask", body)
        assert (status, answer["error"]["field"]) == (400, field)
        assert played.asked == []


async def test_without_a_model_questions_are_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.post("/ask", QUESTION)
        assert (status, body["error"]["code"]) == (404, "module_off")


def test_the_settings_name_the_model(tmp_path: Path) -> None:
    environ = {"LLM_URL": "http://127.0.0.1:1/v1/", "LLM_MODEL": "m", "LLM_API_KEY_FILE": "/k"}
    model = AppSettings.from_environment(environ, tmp_path).model
    assert model == Model("http://127.0.0.1:1/v1/", "m", Path("/k"))
    assert model.endpoint == "http://127.0.0.1:1/v1/chat/completions"
    assert Model(model.endpoint, "m").endpoint == model.endpoint
    assert AppSettings.from_environment({}, tmp_path).model is None
    with pytest.raises(BadEnvironmentError, match="LLM_URL='ftp:"):
        AppSettings.from_environment({"LLM_URL": "ftp://x"}, tmp_path)


@pytest.mark.parametrize(
    ("calls", "status", "value"),
    [
        ([0.1, 0.3], "pass", 200.0),
        ([11.0, 11.0], "warn", 11000.0),
        ([0.1, None, None], "warn", 100.0),
        ([0.1, None, None, None], "fail", 100.0),
        ([None, None], "warn", None),
        ([None, None, None, 0.2, 0.2, 0.2, 0.2], "pass", 200.0),
    ],
)
def test_the_check_judges_speed_and_failures(
    calls: list[float | None], status: str, value: float | None
) -> None:
    model = LanguageModel(Model("http://127.0.0.1:1", "m"))
    for seconds in calls:
        model.latencies.add(seconds)
    check = checks.llm_latency(model)
    assert (check.status, check.value) == (status, value)


def test_old_calls_are_forgotten() -> None:
    now = [0.0]
    latencies = Latencies(lambda: now[0])
    latencies.add(9.0)
    now[0] = Latencies.WINDOW_SECONDS
    latencies.add(1.0)
    assert latencies.recent() == [9.0, 1.0]
    now[0] += 1
    assert latencies.recent() == [1.0]
    for _ in range(2 * Latencies.MOST):
        latencies.add(2.0)
    assert len(latencies.recent()) == Latencies.MOST
