"""The language model: a client of any endpoint that speaks the OpenAI chat protocol.

Every failure of the endpoint becomes a `RequestError` with its cause, and the latency of every call
is kept for the health check.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from atlas_worker.app.errors import RequestError

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""The longest silence of the model, before its answer and within it."""
ANSWER_BYTES = 4 * 1024 * 1024
EXCERPT_CHARACTERS = 200
LINE_BYTES = 256 * 1024

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """The model's address, and its name if the endpoint has more than one.

    `url` is the base, up to `/v1`.
    """

    url: str
    name: str
    api_key_file: Path | None = None

    @property
    def endpoint(self) -> str:
        """The address of chat completions; a `url` that names it is used unchanged."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


@dataclass(frozen=True, slots=True)
class _Call:
    ended: float
    seconds: float | None
    """Until the first word; None if it failed."""


class Latencies:
    """The recent calls: the time to the first word of each."""

    WINDOW_SECONDS = 900.0
    MOST = 200

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: deque[_Call] = deque(maxlen=self.MOST)

    def add(self, seconds: float | None) -> None:
        """Add one call; None for a failed one."""
        self._calls.append(_Call(self._clock(), seconds))

    def recent(self) -> list[float | None]:
        """Return the calls of the window, the oldest first."""
        horizon = self._clock() - self.WINDOW_SECONDS
        while self._calls and self._calls[0].ended < horizon:
            self._calls.popleft()
        return [call.seconds for call in self._calls]


class LanguageModel:
    """A client of the model. `open` before use, `close` after it."""

    def __init__(self, model: Model, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.model = model
        self.latencies = Latencies()
        self._silence = silence_seconds
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Create the client; it does not connect yet."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=self._silence
        )
        self._session = aiohttp.ClientSession(timeout=timeout, read_bufsize=LINE_BYTES)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def answer(self, messages: list[Message]) -> str:
        """Return the whole answer. Raises `RequestError`."""
        async with self._call(messages, stream=False) as (response, started):
            body = await _read_bounded(response)
            text = _whole_answer(body)
            self.latencies.add(time.monotonic() - started)
            return text

    async def pieces(self, messages: list[Message]) -> AsyncIterator[str]:
        """Yield the answer piece by piece, as it arrives. Raises `RequestError`."""
        async with self._call(messages, stream=True) as (response, started):
            first = True
            async for piece in _streamed(response):
                if first:
                    self.latencies.add(time.monotonic() - started)
                    first = False
                yield piece
            if first:
                raise _failed("its answer was empty")

    @asynccontextmanager
    async def _call(
        self, messages: list[Message], *, stream: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        """Send the request, and turn every failure until its end into a `RequestError`."""
        if self._session is None:
            raise RuntimeError("the language model is used before it was opened")
        headers = await asyncio.to_thread(self._headers)
        body: dict[str, Any] = {"messages": messages, "stream": stream}
        if self.model.name:
            body["model"] = self.model.name
        started = time.monotonic()
        try:
            async with self._session.post(
                self.model.endpoint, json=body, headers=headers, allow_redirects=False
            ) as response:
                await _expect_ok(response)
                yield response, started
        except TimeoutError as error:
            self.latencies.add(None)
            raise RequestError(
                "llm_timeout",
                f"the language model was silent for {self._silence:g} s",
                hint="try again, or check the endpoint of LLM_URL",
                status=504,
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.latencies.add(None)
            raise _failed(str(error) or type(error).__name__) from error
        except RequestError:
            self.latencies.add(None)
            raise

    def _headers(self) -> dict[str, str]:
        """Return the headers; the key is read each time, because it may change."""
        if self.model.api_key_file is None:
            return {}
        try:
            key = self.model.api_key_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise RequestError(
                "llm_key_unreadable",
                "the key of the language model can't be read",
                hint=f"check the file in LLM_API_KEY_FILE ({type(error).__name__})",
                status=503,
            ) from error
        if not (key.isascii() and key.isprintable()):
            raise RequestError(
                "llm_key_unreadable",
                "the key of the language model is not a line of text",
                hint="the file in LLM_API_KEY_FILE must contain the key only",
                status=503,
            )
        return {"Authorization": f"Bearer {key}"}


def _failed(why: str) -> RequestError:
    return RequestError(
        "llm_failed",
        f"the language model failed: {why}",
        hint="check the endpoint of LLM_URL",
        status=502,
    )


async def _expect_ok(response: aiohttp.ClientResponse) -> None:
    if response.status == HTTPStatus.OK:
        return
    excerpt = ""
    with suppress(aiohttp.ClientError, TimeoutError):
        raw = await response.content.read(4 * EXCERPT_CHARACTERS)
        excerpt = raw.decode(errors="replace")[:EXCERPT_CHARACTERS]
    answer = f"it answered {response.status}" + (f": {excerpt}" if excerpt else "")
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RequestError(
            "llm_busy", f"the language model is overloaded: {answer}", hint="later", status=503
        )
    if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise RequestError(
            "llm_refused_us",
            f"the language model rejects the key: {answer}",
            hint="check LLM_API_KEY_FILE",
            status=502,
        )
    raise _failed(answer)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES:
            raise _failed(f"its answer is longer than {ANSWER_BYTES} bytes")
    return bytes(body)


def _whole_answer(body: bytes) -> str:
    text = _content(_json(body), "message")
    if text is None:
        raise _failed("its answer has no text")
    return text


async def _streamed(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Yield the texts of the protocol's server-sent events, up to its `[DONE]`."""
    taken = 0
    async for line in response.content:
        taken += len(line)
        if taken > ANSWER_BYTES:
            raise _failed(f"its answer is longer than {ANSWER_BYTES} bytes")
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            continue
        if value.strip() == b"[DONE]":
            return
        event = _json(value)
        if isinstance(event, dict) and "error" in event:
            raise _failed(f"it broke off: {json.dumps(event['error'])[:EXCERPT_CHARACTERS]}")
        if text := _content(event, "delta"):
            yield text
    raise _failed("its answer broke off")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _failed("its answer is not JSON") from error


def _content(event: Any, field: str) -> str | None:
    try:
        text = event["choices"][0][field].get("content")
    except (LookupError, TypeError, AttributeError):
        return None
    return text if isinstance(text, str) else None
