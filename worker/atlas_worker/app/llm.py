"""The language model: a client of any endpoint that speaks the OpenAI chat protocol.

Everything that can go wrong out there becomes a `RequestError` that says whose fault it is, and
every call leaves its latency behind, for the health check.
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
"""How long the model may say nothing, before its answer and in the middle of it."""
ANSWER_BYTES = 4 * 1024 * 1024
EXCERPT_CHARACTERS = 200
LINE_BYTES = 256 * 1024

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """Where the model is, and what it is called there, if the endpoint has more than one.

    `url` is the base, up to `/v1`.
    """

    url: str
    name: str
    api_key_file: Path | None = None

    @property
    def endpoint(self) -> str:
        """The address of chat completions; a `url` that names it already is taken as it is."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


@dataclass(frozen=True, slots=True)
class _Call:
    ended: float
    seconds: float | None
    """Until the first word; None if it failed."""


class Latencies:
    """The calls of the last while: how long the model took to say its first word."""

    WINDOW_SECONDS = 900.0
    MOST = 200

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: deque[_Call] = deque(maxlen=self.MOST)

    def add(self, seconds: float | None) -> None:
        """Note one call; None for one that failed."""
        self._calls.append(_Call(self._clock(), seconds))

    def recent(self) -> list[float | None]:
        """Return the calls of the window, the oldest first."""
        horizon = self._clock() - self.WINDOW_SECONDS
        while self._calls and self._calls[0].ended < horizon:
            self._calls.popleft()
        return [call.seconds for call in self._calls]


class LanguageModel:
    """Asks the model. `open` before use, `close` after it."""

    def __init__(self, model: Model, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.model = model
        self.latencies = Latencies()
        self._silence = silence_seconds
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the client; nothing is connected yet."""
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
        async with self._asked(messages, stream=False) as (response, begun):
            body = await _read_bounded(response)
            text = _whole_answer(body)
            self.latencies.add(time.monotonic() - begun)
            return text

    async def pieces(self, messages: list[Message]) -> AsyncIterator[str]:
        """Yield the answer piece by piece, as the model says it. Raises `RequestError`."""
        async with self._asked(messages, stream=True) as (response, begun):
            first = True
            async for piece in _streamed(response):
                if first:
                    self.latencies.add(time.monotonic() - begun)
                    first = False
                yield piece
            if first:
                raise _failed("it ended its answer before it began")

    @asynccontextmanager
    async def _asked(
        self, messages: list[Message], *, stream: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        """Send the request, and make errors of ours of whatever goes wrong until the end."""
        if self._session is None:
            raise RuntimeError("the language model is used before it was opened")
        headers = await asyncio.to_thread(self._headers)
        body: dict[str, Any] = {"messages": messages, "stream": stream}
        if self.model.name:
            body["model"] = self.model.name
        begun = time.monotonic()
        try:
            async with self._session.post(
                self.model.endpoint, json=body, headers=headers, allow_redirects=False
            ) as response:
                await _expect_ok(response)
                yield response, begun
        except TimeoutError as error:
            self.latencies.add(None)
            raise RequestError(
                "llm_timeout",
                f"the language model said nothing for {self._silence:g} s",
                hint="try again, or see how the endpoint of LLM_URL does",
                status=504,
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.latencies.add(None)
            raise _failed(str(error) or type(error).__name__) from error
        except RequestError:
            self.latencies.add(None)
            raise

    def _headers(self) -> dict[str, str]:
        """Read the key anew each time: it may have been renewed."""
        if self.model.api_key_file is None:
            return {}
        try:
            key = self.model.api_key_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise RequestError(
                "llm_key_unreadable",
                "the key of the language model can't be read",
                hint=f"see to the file that LLM_API_KEY_FILE names ({type(error).__name__})",
                status=503,
            ) from error
        if not (key.isascii() and key.isprintable()):
            raise RequestError(
                "llm_key_unreadable",
                "the key of the language model is no line of text",
                hint="the file that LLM_API_KEY_FILE names holds the key and nothing else",
                status=503,
            )
        return {"Authorization": f"Bearer {key}"}


def _failed(why: str) -> RequestError:
    return RequestError(
        "llm_failed",
        f"the language model failed: {why}",
        hint="see to the endpoint of LLM_URL",
        status=502,
    )


async def _expect_ok(response: aiohttp.ClientResponse) -> None:
    if response.status == HTTPStatus.OK:
        return
    excerpt = ""
    with suppress(aiohttp.ClientError, TimeoutError):
        raw = await response.content.read(4 * EXCERPT_CHARACTERS)
        excerpt = raw.decode(errors="replace")[:EXCERPT_CHARACTERS]
    said = f"it answered {response.status}" + (f": {excerpt}" if excerpt else "")
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RequestError(
            "llm_busy", f"the language model has too much to do: {said}", hint="later", status=503
        )
    if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise RequestError(
            "llm_refused_us",
            f"the language model does not take our key: {said}",
            hint="see to LLM_API_KEY_FILE",
            status=502,
        )
    raise _failed(said)


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
        raise _failed("its answer holds no text")
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
        raise _failed("its answer is no JSON") from error


def _content(event: Any, field: str) -> str | None:
    try:
        text = event["choices"][0][field].get("content")
    except (LookupError, TypeError, AttributeError):
        return None
    return text if isinstance(text, str) else None
