"""Builds the OpenAPI 3.1 document from the route table alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from openapi_pydantic import (
    Components,
    Example,
    Header,
    Info,
    MediaType,
    OpenAPI,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Response,
    Schema,
    SecurityScheme,
    Server,
    Tag,
)
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.messages import (
    FORM,
    IDEMPOTENCY_KEY,
    KEY_PATTERN,
    ErrorAnswer,
    ErrorDetail,
)
from atlas_supervisor.api.routes import Access, AnyRoute, Nothing, ResponseSpec, errors_of
from atlas_supervisor.errors import ErrorSpec
from atlas_supervisor.model.deploy import DeployRecord

_TAGS = {
    "Deploy": "Run, steer and inspect deploys.",
    "Health": "Health, liveness and readiness.",
    "Canary": "Shares of calls for new code, and the evidence on it.",
    "Metrics": "Metrics for Prometheus.",
    "Fleet": "Many machines: one rollout, one kill switch.",
}
_DESCRIPTION = """Blue-green deploys on one machine.

Over the Unix socket, root and the daemon's own user may do everything; other users may read the
status. Over TCP, changes, the audit trail and the logs need `Authorization: Bearer TOKEN`. Other
reads are open on loopback and need the token elsewhere. With the view token everything can be
read, and nothing changed. Every error has the shape of
`ErrorAnswer`."""

_KEY = (
    "A key chosen by the client, 1 to 255 visible ASCII characters. The same request with the same "
    "key is not executed twice: the answer is the first one's, with `Idempotency-Replayed: true`."
)


class RefusedDeploy(DeployRecord):
    """A deploy that did not do what was asked: its record, and the error."""

    error: ErrorDetail = Field(description="Why it did not.")


_SECURITY: list[dict[str, list[str]]] = [{"token": []}]


def build_document(table: Iterable[AnyRoute], *, version: str) -> dict[str, Any]:
    """Return the document on every route in `table`, ready for JSON."""
    rows = sorted(table, key=lambda route: route.path)
    paths = {
        path: PathItem(**{route.method.lower(): _operation(route) for route in group})
        for path, group in groupby(rows, key=lambda route: route.path)
    }
    used = {route.tag for route in rows}
    document = OpenAPI(
        openapi="3.1.0",
        info=Info(title="ATLAS Supervisor", version=version, description=_DESCRIPTION),
        servers=[Server(url=".")],  # the document's own folder, also behind a path prefix
        tags=[Tag(name=name, description=text) for name, text in _TAGS.items() if name in used],
        paths=paths,
        components=Components(
            securitySchemes={
                "token": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="The content of CONTROL_TOKEN_FILE.",
                )
            }
        ),
    )
    built = construct_open_api_with_schema_class(document)
    return built.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def _operation(route: AnyRoute) -> Operation:
    return Operation(
        operationId=_operation_id(route),
        summary=route.summary,
        description=route.description,
        tags=[route.tag] if route.tag else None,
        parameters=_parameters(route) or None,
        requestBody=_request_body(route),
        responses=_responses((*route.answers, *map(_error_response, errors_of(route)))),
        security=[] if route.access in {Access.PUBLIC, Access.READ} else _SECURITY,
    )


def _operation_id(route: AnyRoute) -> str:
    words = [word.strip("{}").replace(".", "_") for word in route.path.split("/") if word]
    return "_".join([route.method.lower(), *words])


def _parameters(route: AnyRoute) -> list[Parameter | Reference]:
    parameters = [
        _parameter(
            "path",
            name,
            {"type": "string", "description": text, "examples": [examples.PARAMETERS[name]]},
            required=True,
        )
        for name, text in route.parameters.items()
    ]
    if route.keyed:
        schema = {"type": "string", "pattern": KEY_PATTERN, "description": _KEY}
        parameters.append(_parameter("header", IDEMPOTENCY_KEY, schema, required=False))
    parameters += [
        _parameter("header", name, dict(schema), required=False)
        for name, schema in route.headers.items()
    ]
    shape = route.query.model_json_schema()
    for name, schema in shape.get("properties", {}).items():
        required = name in shape.get("required", ())
        parameters.append(_parameter("query", name, schema, required=required))
    return list(parameters)


def _parameter(place: str, name: str, schema: dict[str, Any], *, required: bool) -> Parameter:
    fields = {"in": place, "name": name, "required": required, "schema": schema}
    fields["description"] = schema.pop("description", None)
    if values := schema.pop("examples", None):
        fields["example"] = values[0]  # Swagger UI fills the field with it
    return Parameter.model_validate(fields)


def _request_body(route: AnyRoute) -> RequestBody | None:
    model: type[BaseModel] = route.body
    if model is Nothing:
        return None
    required = any(field.is_required() for field in model.model_fields.values())
    example = {
        name: field.examples[0] for name, field in model.model_fields.items() if field.examples
    }
    media = MediaType(media_type_schema=PydanticSchema(schema_class=model), example=example)
    return RequestBody(
        required=required, content={FORM if route.form else "application/json": media}
    )


def _responses(answers: Sequence[ResponseSpec]) -> dict[str, Response | Reference]:
    """Return one response for each status, with an example for each of its answers."""
    rows = sorted(answers, key=lambda answer: answer.status)
    return {
        str(status): _response(list(group))
        for status, group in groupby(rows, key=lambda answer: answer.status)
    }


def _response(answers: list[ResponseSpec]) -> Response:
    headers = {
        name: Header(description=text, param_schema=Schema(type="string"))
        for answer in answers
        for name, text in answer.headers.items()
    }
    content: dict[str, MediaType] = {}
    for content_type in dict.fromkeys(answer.content_type for answer in answers):
        group = [answer for answer in answers if answer.content_type == content_type]
        content[content_type] = MediaType(
            media_type_schema=_schema(group), examples=_examples(group) or None
        )
    return Response(
        description="\n\n".join(answer.description for answer in answers),
        headers=dict(headers) or None,
        content=content,
    )


def _schema(answers: list[ResponseSpec]) -> Schema:
    models = list(dict.fromkeys(answer.model for answer in answers if answer.model))
    schemas: list[Reference | Schema] = [PydanticSchema(schema_class=model) for model in models]
    if not schemas:
        return Schema(type="string")
    if len(models) == 1:
        return PydanticSchema(schema_class=models[0])
    return Schema(anyOf=schemas)


def _examples(answers: list[ResponseSpec]) -> dict[str, Example | Reference]:
    found: dict[str, Example | Reference] = {}
    for answer in answers:
        example = answer.example
        if example is None:
            continue
        if isinstance(example, str):
            found["example"] = Example(value=example)
            continue
        value = example.model_dump(mode="json")
        name = str(value.get("error", {}).get("code") or value.get("result") or "example")
        found[f"{name}_{len(found)}" if name in found else name] = Example(value=value)
    return found


def _error_response(row: ErrorSpec) -> ResponseSpec:
    """Return the answer that a row of the error catalogue documents."""
    error = row.documented()
    detail = ErrorDetail(code=error.code, message=error.message, hint=error.hint)
    text = f"`{row.code}`: {error.message}."
    if row.with_record:
        record = examples.REFUSED[row.code]
        example = RefusedDeploy(**dict(record), error=detail)
        text = f"{text} The deploy's record, and `error`."
        return ResponseSpec(row.status, text, RefusedDeploy, example)
    return ResponseSpec(row.status, text, ErrorAnswer, ErrorAnswer(error=detail))
