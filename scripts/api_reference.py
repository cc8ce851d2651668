"""Writes `docs/api.md`: the route table and the error catalogue in words.

The prose between the generated parts is `scripts/templates/api.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from atlas_supervisor import errors
from atlas_supervisor.api.messages import ErrorAnswer
from atlas_supervisor.api.routes import Access, AnyRoute, ResponseSpec, errors_of
from atlas_supervisor.api.server import table
from atlas_supervisor.errors import CATALOGUE, ErrorSpec
from atlas_supervisor.model.deploy import DeployEvent, Result, StepName
from scripts.markdown import linked, row, wrapped

TEMPLATE = Path(__file__).parent / "templates/api.md"

Schema = Mapping[str, Any]

_WORTH_NAMING = 1_000_000
"""Greater limits only keep a number within what the database can store."""

_PARAMETERS = "| field | in | type | |\n| --- | --- | --- | --- |"
_FIELDS = "| field | type | |\n| --- | --- | --- |"
_ACCESS = {
    Access.PUBLIC: "Permission: none.",
    Access.READ: "Permission: read.",
    Access.SENSITIVE: "Permission: read everything (audit trail and logs).",
    Access.CHANGE: "Permission: change.",
    Access.FORM: "Permission: change, or a session of the dashboard and its form's token.",
}


def api_reference() -> str:
    """Return the text of `docs/api.md`."""
    routes = table("1")
    parts = {
        "common_errors": wrapped(", ".join(_codes(_common(routes)))),
        "requests": "\n\n".join(_request(route) for route in routes),
        "objects": "\n\n".join(_objects(routes)),
        "steps": ", ".join(f"`{step}`" for step in StepName),
        "results": ", ".join(f"`{result}`" for result in Result),
        "error_example": _error_example(),
        "errors": "\n".join(map(_error_row, sorted(CATALOGUE, key=lambda row: row.status or 999))),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    return text


# Requests.


def _common(routes: Iterable[AnyRoute]) -> list[ErrorSpec]:
    """Return the errors that every route has."""
    first, *others = [errors_of(route) for route in routes]
    return [row for row in first if all(row in other for other in others)]


def _request(route: AnyRoute) -> str:
    heading = f"### `{route.method} {route.path}`"
    key = " Takes an [`Idempotency-Key`](#idempotency)." if route.keyed else ""
    description = wrapped(f"{route.summary}. {linked(route.description)}")
    parts = [heading, description, _ACCESS[route.access] + key]
    if parameters := list(_parameters(route)):
        parts.append("\n".join([_PARAMETERS, *parameters]))
    parts.append("\n".join(["Answers:", "", *map(_answer, route.answers), *_errors(route)]))
    return "\n\n".join(parts)


def _parameters(route: AnyRoute) -> Iterator[str]:
    """Yield a row for each placeholder of the path, header, query field and body field."""
    for name, text in route.parameters.items():
        yield row(f"`{name}`", "path", "string", text)
    for name, schema in route.headers.items():
        yield row(f"`{name}`", "header", schema["type"], schema["description"])
    for place, model in (("query", route.query), ("body", route.body)):
        shape = model.model_json_schema()
        for name, schema in shape.get("properties", {}).items():
            required = "" if name not in shape.get("required", ()) else "Required. "
            text = f"{required}{schema['description']}{_default(schema)}"
            yield row(f"`{name}`", place, _type(schema, shape.get("$defs", {})), text)


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None else f" Default: `{json.dumps(default)}`."


def _answer(answer: ResponseSpec) -> str:
    kind = f"`{answer.content_type}`"
    if answer.model is not None:
        kind = _link(answer.model.__name__)
        if answer.content_type != "application/json":
            kind += f" (`{answer.content_type}`)"
    headers = "".join(f" Header `{name}`: {text}" for name, text in answer.headers.items())
    return wrapped(f"- {answer.status} {kind}: {answer.description}{headers}", indent="  ")


def _errors(route: AnyRoute) -> Iterator[str]:
    by_status: dict[int, list[ErrorSpec]] = {}
    for spec in sorted(route.errors, key=lambda spec: spec.status):
        by_status.setdefault(spec.status, []).append(spec)
    for status, rows in by_status.items():
        yield wrapped(f"- {status} {', '.join(_codes(rows))}", indent="  ")


def _codes(rows: Iterable[ErrorSpec]) -> list[str]:
    return [f"`{row.code}`{' with the record' if row.with_record else ''}" for row in rows]


# Objects.


def _objects(routes: Iterable[AnyRoute]) -> Iterator[str]:
    """Yield a table of fields for each model that an answer has, directly or within another."""
    models = [answer.model for route in routes for answer in route.answers if answer.model]
    models += [DeployEvent, ErrorAnswer]
    _, schema = models_json_schema(
        [(model, "serialization") for model in dict.fromkeys(models)], ref_template="{model}"
    )
    known: dict[str, Schema] = {}
    for name, shape in schema["$defs"].items():
        known[name] = {key: _named(part, known) for key, part in shape.items()}
    for name, shape in sorted(known.items()):
        if "properties" not in shape:
            continue
        base = _base(shape, known)
        inherited = known[base]["properties"] if base else {}
        rows = [
            row(f"`{field}`", _type(of, known), linked(of["description"]))
            for field, of in shape["properties"].items()
            if field not in inherited
        ]
        also = f" All fields of {_link(base)}, and:" if base else ""
        text = wrapped(linked(shape["description"]) + also)
        yield "\n".join([f"### {name}\n\n{text}\n", _FIELDS, *rows])


def _named(part: Any, known: dict[str, Schema]) -> Any:
    """Return a part of a schema with its inline objects moved to `known`, by their titles."""
    match part:
        case {"title": str(title), "properties": dict()}:
            known[title] = {key: _named(each, known) for key, each in part.items()}
            return {"$ref": title}
        case dict():
            return {key: _named(each, known) for key, each in part.items()}
        case list():
            return [_named(each, known) for each in part]
        case _:
            return part


def _base(shape: Schema, known: Mapping[str, Schema]) -> str:
    """Return the object whose fields `shape` has all and more; an empty string for none."""
    fields = shape["properties"].items()
    others = {name: other["properties"] for name, other in known.items() if "properties" in other}
    found = [name for name, other in others.items() if other.items() < fields]
    return max(found, key=lambda name: len(others[name]), default="")


def _type(schema: Schema, known: Mapping[str, Schema]) -> str:
    """Return a JSON schema as a few words, with links to objects."""
    match schema:
        case {"$ref": reference}:
            name = str(reference).rsplit("/", 1)[-1]
            words = _type(known[name], known) if "enum" in known[name] else _link(name)
        case {"anyOf": alternatives}:
            words = " or ".join(dict.fromkeys(_type(each, known) for each in alternatives))
        case {"enum": values}:
            words = ", ".join(f"`{value}`" for value in values)
        case {"type": "array", "items": items}:
            words = f"list of {_type(items, known)}"
        case {"type": "object", "additionalProperties": {"$ref": _} as values}:
            words = f"map of {_type(values, known)}"
        case {"type": "string", "format": "date-time"}:
            words = "time"
        case _:
            words = str(schema["type"]) + _limits(schema)
    return words


def _limits(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return ""
    return f", {low} to {high}" if high is not None and high <= _WORTH_NAMING else f", from {low}"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


# Errors.


def _error_example() -> str:
    error = errors.TOKEN_REQUIRED.documented()
    detail = {"code": error.code, "message": error.message, "hint": error.hint}
    answer = ErrorAnswer.model_validate({"error": detail})
    return answer.model_dump_json(exclude_none=True, indent=2)


def _error_row(spec: ErrorSpec) -> str:
    error = spec.documented()
    star = " *" if spec.with_record else ""
    return row(f"`{spec.code}`", f"{spec.status or 'other'}{star}", error.message, error.hint)
