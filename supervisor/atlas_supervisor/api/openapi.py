"""From the route table to its OpenAPI 3.1 document; what a row says is all that it knows."""

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
    Tag,
)
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel

from atlas_supervisor.api.examples import refused
from atlas_supervisor.api.parsing import IDEMPOTENCY_KEY, KEY_PATTERN
from atlas_supervisor.api.routes import Access, AnyRoute, Nothing, ResponseSpec

_TAGS = {
    "Deploy": "Run deploys, steer them, look at them.",
    "Health": "What process managers and load balancers ask.",
    "Canary": "Shares of traffic and calls for a new version, and the evidence on it.",
    "Metrics": "Numbers for Prometheus.",
}
_DESCRIPTION = """Blue-green deploys on one machine.

Over the Unix socket, root and the daemon's own user may do everything, other users may read. Over
TCP, reading is open on loopback; off loopback it needs the token too. A change and logs need
`Authorization: Bearer TOKEN`, always. Every error has the shape of `ErrorAnswer`."""

_KEY = (
    "A key of your own for this request, 1 to 255 visible ASCII characters. Sent again with the "
    "same key, nothing is done twice: the answer is that of the first one, with "
    "`Idempotency-Replayed: true`."
)

_SECURITY: list[dict[str, list[str]]] = [{"token": []}]


def build_document(table: Iterable[AnyRoute], *, version: str) -> dict[str, Any]:
    """Return the document of every route in `table`, ready for JSON."""
    rows = sorted(table, key=lambda route: route.path)
    paths = {
        path: PathItem(**{route.method.lower(): _operation(route) for route in group})
        for path, group in groupby(rows, key=lambda route: route.path)
    }
    used = {route.tag for route in rows}
    document = OpenAPI(
        openapi="3.1.0",
        info=Info(title="ATLAS Supervisor", version=version, description=_DESCRIPTION),
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
        requestBody=_request_body(route.body),
        responses=_responses((*route.answers, *_common(route))),
        security=[] if route.access is Access.READ else _SECURITY,
    )


def _operation_id(route: AnyRoute) -> str:
    words = [word.strip("{}").replace(".", "_") for word in route.path.split("/") if word]
    return "_".join([route.method.lower(), *words])


def _parameters(route: AnyRoute) -> list[Parameter | Reference]:
    parameters = [
        _parameter("path", name, {"type": "string", "description": text}, required=True)
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
    description = schema.pop("description", None)
    return Parameter.model_validate(
        {
            "in": place,
            "name": name,
            "required": required,
            "description": description,
            "schema": schema,
        }
    )


def _request_body(model: type[BaseModel]) -> RequestBody | None:
    if model is Nothing:
        return None
    required = any(field.is_required() for field in model.model_fields.values())
    media = MediaType(media_type_schema=PydanticSchema(schema_class=model))
    return RequestBody(required=required, content={"application/json": media})


def _responses(answers: Sequence[ResponseSpec]) -> dict[str, Response | Reference]:
    """Return one response for each status; answers that share one are told apart by example."""
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
        name = value.get("error", {}).get("code") or value.get("result") or "example"
        found[str(name)] = Example(value=value)
    return found


def _common(route: AnyRoute) -> tuple[ResponseSpec, ...]:
    """Return what any request of this kind can be refused with."""
    see = "GET /docs shows what this request takes"
    found = [
        refused(400, "invalid_query", "dry: there is no such field", see),
        refused(403, "foreign_origin", "another site's page sent this", "use the API's own pages"),
        refused(408, "too_slow", "the request did not come in whole in time", "send it again"),
        refused(413, "body_too_large", "request entity too large", "a body may have 65536 bytes"),
        refused(421, "wrong_host", "this host name is not ours", "use the host of CONTROL_HOST"),
        refused(500, "internal_error", "the daemon failed to answer", "the log has the details"),
        refused(503, "unavailable", "the database could not be read", "see whether a disk is full"),
        refused(401, "token_required", "this request needs the token", "or use atlasctl"),
    ]
    if route.body is not Nothing:
        found += [
            refused(400, "invalid_body", "the body is not valid JSON", see),
            refused(415, "unsupported_media_type", "a body is JSON in UTF-8", "send JSON"),
        ]
    for name in route.headers:
        found.append(refused(400, "invalid_header", f"{name}: it is given twice", see))
    if route.keyed:
        found += [
            refused(400, "invalid_header", "one key of 1 to 255 visible characters is taken", _KEY),
            refused(422, "idempotency_key_reused", "it was given with another request", _KEY),
        ]
    if route.access is not Access.READ:
        found.append(refused(403, "not_permitted", "uid 1000 may read, and no more", "be root"))
    return tuple(found)
