"""Compares a response with its expectation, and lists the differences."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import JsonValue

from atlas_supervisor.config.smoke_file import Expectation
from atlas_supervisor.model.worker_text import quoted
from atlas_supervisor.probes.http_client import HttpResponse, printable


def describe(expect: Expectation) -> str:
    """Return the expectation in one line."""
    parts = [f"status {expect.status}"]
    if expect.contains is not None:
        parts.append(f"contains {_as_json(expect.contains)}")
    if expect.json_ is not None:
        parts.append(f"json {_as_json(expect.json_)}")
    if expect.max_ms is not None:
        parts.append(f"within {expect.max_ms:g} ms")
    return ", ".join(parts)


def problems(expect: Expectation, answer: HttpResponse, duration_ms: float) -> Iterator[str]:
    """Yield a line for each difference."""
    if answer.status != expect.status:
        yield f"status is {answer.status}, expected {expect.status}"
    if expect.contains is not None and expect.contains.encode() not in answer.body:
        where = f"the first {len(answer.body)} bytes of the body" if answer.cut else "the body"
        yield f"{_as_json(expect.contains)} is not in {where}"
    if expect.json_ is not None:
        yield from _json_problems(expect.json_, answer)
    if expect.max_ms is not None and duration_ms > expect.max_ms:
        yield f"took {duration_ms:.0f} ms, expected at most {expect.max_ms:g} ms"


def _json_problems(expected: JsonValue, answer: HttpResponse) -> Iterator[str]:
    if answer.cut:
        yield f"the body is longer than {len(answer.body)} bytes and was not read as JSON"
        return
    try:
        got = json.loads(answer.body)
        yield from _differences(expected, got, "json")
    except (ValueError, RecursionError) as error:
        yield f"the body is not JSON ({type(error).__name__}: {str(error)[:100]})"


def _differences(expected: JsonValue, got: JsonValue, place: str) -> Iterator[str]:
    """Compare tables key by key (the body may have more) and lists item by item."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key in got:
                yield from _differences(value, got[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is missing, expected {_as_json(value)}"
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for index, (wanted, item) in enumerate(zip(expected, got, strict=True)):
            yield from _differences(wanted, item, f"{place}[{index}]")
    # In Python true equals 1; in JSON it does not.
    elif expected != got or isinstance(expected, bool) != isinstance(got, bool):
        yield f"{place} is {quoted(printable(_as_json(got)))}, expected {_as_json(expected)}"


def _as_json(value: JsonValue) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
