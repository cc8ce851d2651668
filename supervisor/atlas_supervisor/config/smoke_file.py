"""`smoke.toml`: the smoke tests that a release must pass before it gets traffic.

The file is checked with the settings, so that a mistake in it refuses the start and not the first
deploy. `probes.smoke` runs the tests.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from atlas_supervisor.errors import SettingsError
from atlas_supervisor.system.files import read_regular

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]
TimeLimit = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


_FORMS = {
    "name": "a text without space around it",
    "method": "a method in capitals, as GET",
    "path": "a path that begins with /, in ASCII and without spaces, which are written as %20",
}


class Expectation(BaseModel):
    """The expected response; None is not checked."""

    model_config = _STRICT

    status: int = Field(default=200, ge=100, le=599)
    contains: str | None = Field(default=None, min_length=1)
    json_: JsonValue | None = Field(default=None, alias="json")
    """A part of the body: tables are compared key by key, other values as a whole."""
    max_ms: Milliseconds | None = None


class HttpCheck(BaseModel):
    """One request and its expected response."""

    model_config = _STRICT

    name: Name
    method: str = Field(default="GET", pattern=r"^[A-Z]{1,20}$")
    path: str = Field(pattern=r"^/[!-~]*$")
    headers: dict[str, str] = Field(default_factory=dict)
    body: str | None = None
    json_: JsonValue | None = Field(default=None, alias="json")
    expect: Expectation = Field(default_factory=Expectation)
    timeout_seconds: TimeLimit = 10

    @model_validator(mode="after")
    def _check_request(self) -> HttpCheck:
        if self.body is not None and self.json_ is not None:
            raise ValueError("body and json: accepted is one of them")
        for name, value in self.headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not value.isprintable():
                raise ValueError(f"headers: {name!r} is not a valid header")
        return self


class CommandCheck(BaseModel):
    """One program that must end with 0."""

    model_config = _STRICT

    name: Name
    run: Annotated[list[str], Field(min_length=1)]
    timeout_seconds: TimeLimit = 60

    @model_validator(mode="after")
    def _check_run(self) -> CommandCheck:
        if not self.run[0] or any("\0" in argument for argument in self.run):
            raise ValueError("run: accepted is a program and its arguments")
        return self


class SmokePlan(BaseModel):
    """All smoke tests of a file, in its order: requests, then commands."""

    model_config = _STRICT

    http: list[HttpCheck] = Field(default_factory=list)
    command: list[CommandCheck] = Field(default_factory=list)


def load_smoke_file(path: Path) -> SmokePlan:
    """Read and check a file of smoke tests.

    Raises SettingsError with one line per fault: the file, the test, the field and what is
    accepted.
    """
    try:
        data = tomllib.loads(read_regular(path, follow=True).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or nested without end
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise SettingsError([f"{path}: {why}; a TOML file is accepted"]) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError([f"{path}: {reason}; a readable file is accepted"]) from error
    faults = [f"{path}: {name!r} is the name of two tests" for name in _repeated(data)]
    try:
        plan = SmokePlan.model_validate(data)
    except ValidationError as error:
        faults += [f"{path}: {_fault(data, details)}" for details in error.errors()]
        raise SettingsError(faults) from error
    if faults:
        raise SettingsError(faults)
    return plan


def _tables(data: Mapping[str, Any], kind: str) -> list[Any]:
    tables = data.get(kind)
    return tables if isinstance(tables, list) else []


def _repeated(data: Mapping[str, Any]) -> list[str]:
    names = Counter(
        table["name"]
        for kind in SmokePlan.model_fields
        for table in _tables(data, kind)
        if isinstance(table, dict) and isinstance(table.get("name"), str)
    )
    return [name for name, count in names.items() if count > 1]


def _fault(data: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """Return the test, the field and the accepted value; `details` is one of pydantic's errors."""
    kind, *rest = details["loc"]
    if kind not in SmokePlan.model_fields:
        return f"{kind!r}: accepted are tables [[http]] and [[command]]"
    if not rest:
        return f"[{kind}]: accepted is [[{kind}]], in double brackets"
    table = _tables(data, str(kind))[rest[0]]
    name = table.get("name") if isinstance(table, dict) else None
    test = f"[[{kind}]] {name!r}" if isinstance(name, str) and name else f"[[{kind}]] {rest[0] + 1}"
    field = ".".join(str(part) for part in rest[1:])
    if details["type"] == "value_error":
        return f"{test}: {details['ctx']['error']}"
    if details["type"] == "missing":
        return f"{test}: {field} is missing"
    if details["type"] == "extra_forbidden":
        return f"{test}: {field} is not an accepted field"
    given = repr(details["input"])
    given = given if len(given) <= 60 else f"{given[:59]}…"
    reason = str(details["msg"])
    if details["type"] == "string_pattern_mismatch":
        reason = f"accepted is {_FORMS[field]}"
    return f"{test}: {field} = {given}: {reason[0].lower()}{reason[1:]}"


__all__ = ["CommandCheck", "Expectation", "HttpCheck", "SmokePlan", "load_smoke_file"]
