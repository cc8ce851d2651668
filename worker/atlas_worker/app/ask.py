"""`POST /ask`: a question to the language model, answered whole or word by word."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from typing import Any

from aiohttp import web

from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.app.llm import LanguageModel, Message
from atlas_worker.app.requests import read_object, text_field

PROMPT_CHARACTERS = 128 * 1024
MOST_MESSAGES = 200
ROLES = ("system", "user", "assistant")

LANGUAGE_MODEL: web.AppKey[LanguageModel] = web.AppKey("language_model", LanguageModel)
routes = web.RouteTableDef()


@routes.post("/ask")
async def post_ask(request: web.Request) -> web.StreamResponse:
    """Answer a question; with `"stream": true` as server-sent events."""
    model = request.app.get(LANGUAGE_MODEL)
    if model is None:
        raise RequestError(
            "module_off", "there is no language model", hint="set LLM_URL", status=404
        )
    body = await read_object(request, fields=frozenset({"prompt", "messages", "stream"}))
    messages = _messages(body)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise bad_field("stream", "is neither true nor false", "true or false")
    if stream:
        return await _stream(request, model, messages)
    started = time.monotonic()
    answer = await model.answer(messages)
    return web.json_response(
        {"answer": answer, "model": model.model.name, "latency_ms": _milliseconds(started)}
    )


async def _stream(
    request: web.Request, model: LanguageModel, messages: list[Message]
) -> web.StreamResponse:
    """Pass the pieces on as they arrive. A failure before the first gets its own status."""
    started = time.monotonic()
    async with aclosing(model.pieces(messages)) as pieces:  # type: ignore[type-var]  # an async generator; its annotation is wider
        first = await anext(pieces)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        try:
            await response.write(_event({"text": first}))
            async for piece in pieces:
                await response.write(_event({"text": piece}))
        except RequestError as error:  # too late for a status: the stream reports it
            failure = {"code": error.code, "message": error.message, "hint": error.hint}
            await response.write(_event({"error": failure}, name="error"))
        else:
            done = {"model": model.model.name, "latency_ms": _milliseconds(started)}
            await response.write(_event(done, name="done"))
    await response.write_eof()
    return response


def _event(data: dict[str, Any], *, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _milliseconds(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _messages(body: dict[str, Any]) -> list[Message]:
    """Return the messages to send: the `prompt` as the user's message, or the given `messages`."""
    if ("prompt" in body) == ("messages" in body):
        raise bad_field("body", "has neither or both", "either a prompt, or messages")
    if "prompt" in body:
        return [{"role": "user", "content": text_field(body, "prompt", limit=PROMPT_CHARACTERS)}]
    given = body["messages"]
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_MESSAGES:
        raise bad_field("messages", "is invalid", f"a list of 1 to {MOST_MESSAGES} messages")
    return [_message(f"messages[{index}]", value) for index, value in enumerate(given)]


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        raise bad_field(name, "is not a message", "an object with role and content")
    if value["role"] not in ROLES:
        raise bad_field(f"{name}.role", "is unknown", f"one of {', '.join(ROLES)}")
    content = text_field(value, "content", limit=PROMPT_CHARACTERS)
    return {"role": value["role"], "content": content}
