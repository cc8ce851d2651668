"""The catalogue of errors is the only place that an API error comes from."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from atlas_supervisor import errors
from atlas_supervisor.api.routes import errors_of
from atlas_supervisor.api.server import table
from atlas_supervisor.errors import CATALOGUE, ErrorSpec

SOURCES = Path(errors.__file__).parent
NAMES = {name: row for name, row in vars(errors).items() if isinstance(row, ErrorSpec)}


class Found(NamedTuple):
    """What the modules of the daemon have, but for the catalogue itself; each with its place."""

    names: set[str]
    calls: list[tuple[str, str]]
    texts: list[tuple[str, str]]


@pytest.fixture(scope="module")
def found() -> Found:
    """Read all modules: once, because to parse them takes two seconds of a core."""
    names, calls, texts = set[str](), list[tuple[str, str]](), list[tuple[str, str]]()
    for path in sorted(SOURCES.rglob("*.py")):
        if path == SOURCES / "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                    calls.append((f"{path.relative_to(SOURCES)}:{node.lineno}", name))
                case ast.Constant(value=str(text)):
                    texts.append((f"{path.relative_to(SOURCES)}:{node.lineno}", text))
    return Found(names, calls, texts)


def test_only_the_catalogue_constructs_refused_errors(found: Found) -> None:
    others = {
        *("ConnectionRefusedError", "StartRefusedError"),
        *("RingRefusedError", "SlotRefusedError"),  # of a ring and of FleetLock, not of the API
    }
    calls = [call for call in found.calls if call[1].endswith("RefusedError")]
    assert [call for call in calls if call[1] not in others] == []
    assert calls


def test_no_text_of_the_catalogue_is_repeated_elsewhere(found: Found) -> None:
    texts = {text for row in CATALOGUE for text in (row.message, row.hint) if " " in text}
    assert len(texts) > 50
    assert [each for each in found.texts if each[1] in texts] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_raised_somewhere(name: str, found: Found) -> None:
    assert name in found.names


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.code)
def test_a_row_is_stable_and_says_what_to_do(row: ErrorSpec) -> None:
    error = row.documented()

    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row.code)
    assert row.status in {0, *range(400, 424), 500, 503}
    assert error.message
    assert error.hint
    assert not re.search(r"[{}]", error.message)
    assert not error.message.endswith(".")


def test_no_two_rows_have_the_same_message() -> None:
    variable = {"{problem}"}
    assert [
        message
        for message, times in Counter(row.message for row in CATALOGUE).items()
        if times > 1 and message not in variable
    ] == []


def test_a_code_has_one_status() -> None:
    assert len({row.code for row in CATALOGUE}) == len(
        {(row.code, row.status) for row in CATALOGUE}
    )


def test_every_row_that_a_handler_raises_is_listed_by_a_route() -> None:
    by_the_framework = (
        errors.BAD_REQUEST,
        errors.EXPECTATION_FAILED,
        errors.METHOD_NOT_ALLOWED,
        errors.NOT_FOUND,
        errors.REFUSED,
    )
    listed = {id(row) for route in table("1") for row in errors_of(route)}
    missing = [row.code for row in CATALOGUE if id(row) not in listed]
    assert sorted(missing) == sorted(row.code for row in by_the_framework)


def test_values_are_filled_into_message_and_hint() -> None:
    error = errors.UNKNOWN_FEATURE.error(name="{speech}", known="vision")

    assert (error.code, error.status) == ("unknown_feature", 404)
    assert error.message == "there is no feature '{speech}'"
    assert error.hint == "CANARY_FEATURES lists them: vision"
