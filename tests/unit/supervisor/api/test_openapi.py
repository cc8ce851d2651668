"""The OpenAPI document is valid and matches the server's answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types
from openapi_spec_validator import OpenAPIV31SpecValidator

from atlas_supervisor.api.openapi import build_document
from atlas_supervisor.api.routes import Access, AnyRoute, Nothing
from atlas_supervisor.api.server import table
from tests.unit.supervisor.api.support import BEARER, running

TABLE = table("1.2.3")
DOCUMENT = build_document(TABLE, version="1.2.3")


def operation(route: AnyRoute) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][route.path][route.method.lower()]
    return found


def name(route: AnyRoute) -> str:
    return f"{route.method} {route.path}"


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that stands on its own, with the document's components beside it."""
    return {**schema, "components": DOCUMENT["components"]}


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_every_reference_leads_to_a_schema() -> None:
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)))

    assert len(named) > 50
    assert named - DOCUMENT["components"]["schemas"].keys() == set()


def test_every_route_is_in_it_and_nothing_else() -> None:
    documented = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert documented == {(route.method, route.path) for route in TABLE}


def test_its_tags_are_those_in_use() -> None:
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    used = {route.tag for route in TABLE} - {None}
    assert tags == [
        tag for tag in ("Deploy", "Health", "Canary", "Metrics", "Fleet") if tag in used
    ]


def test_ids_of_operations_are_unique_words() -> None:
    ids = [operation(route)["operationId"] for route in TABLE]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z_]+", each) for each in ids)


@pytest.mark.parametrize("route", TABLE, ids=name)
def test_each_answer_has_a_schema_and_each_example_matches_it(route: AnyRoute) -> None:
    responses = operation(route)["responses"]
    assert {"400", "401", "403", "408", "421", "500"} <= set(responses)
    for status, response in responses.items():
        assert response["description"]
        for media in response["content"].values():
            validator = Draft202012Validator(resolved(media["schema"]))
            if int(status) >= 300 or route.tag:
                assert media["examples"], (status, route.path)
            for example in media.get("examples", {}).values():
                assert [error.message for error in validator.iter_errors(example["value"])] == []


@pytest.mark.parametrize("route", TABLE, ids=name)
def test_a_change_needs_the_token_and_a_read_needs_none(route: AnyRoute) -> None:
    expected: list[dict[str, list[str]]] = (
        [] if route.access in {Access.PUBLIC, Access.READ} else [{"token": []}]
    )
    assert operation(route)["security"] == expected
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


@pytest.mark.parametrize("route", TABLE, ids=name)
def test_every_parameter_is_described(route: AnyRoute) -> None:
    parameters = operation(route).get("parameters", [])
    in_path = {each["name"] for each in parameters if each["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", route.path))
    assert all(each["description"] for each in parameters)


def test_every_field_of_every_object_is_described() -> None:
    objects = DOCUMENT["components"]["schemas"]
    fields = [
        (name, field, schema)
        for name, shape in objects.items()
        for field, schema in shape.get("properties", {}).items()
    ]
    assert len(fields) > 150
    assert [(name, field) for name, field, schema in fields if not schema.get("description")] == []


def test_query_and_body_have_their_defaults_and_limits() -> None:
    limit = DOCUMENT["paths"]["/deploy/history"]["get"]["parameters"][0]
    assert limit["name"] == "limit"
    assert limit["schema"]["default"] == 50
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 1000)
    body = DOCUMENT["paths"]["/deploy/mode"]["post"]["requestBody"]
    assert body["required"] is True
    assert DOCUMENT["paths"]["/deploy/bluegreen"]["post"]["requestBody"]["required"] is False


def test_the_answers_of_a_deploy_that_did_not_pass_hold_record_and_error() -> None:
    response = DOCUMENT["paths"]["/deploy/bluegreen"]["post"]["responses"]["422"]
    example = response["content"]["application/json"]["examples"]["release_did_not_pass"]["value"]
    assert {"deploy_id", "steps", "result", "error"} <= set(example)


async def test_the_document_is_served_and_answers_match_it(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        served = (await server.tcp("GET", "/openapi.json")).json
        assert served == DOCUMENT
        for method, path in (
            ("GET", "/deploy/status"),
            ("GET", "/deploy/history"),
            ("POST", "/deploy/bluegreen"),
            ("POST", "/deploy/abort"),
            ("GET", "/readyz"),
            ("GET", "/health"),
        ):
            answer = await server.tcp(method, path, headers=BEARER)
            response = served["paths"][path][method.lower()]["responses"][str(answer.status)]
            schema = resolved(response["content"]["application/json"]["schema"])
            assert list(Draft202012Validator(schema).iter_errors(answer.json)) == []


def examples_of_request(route: AnyRoute) -> tuple[str, dict[str, str], Any]:
    """Return path, query and body as Swagger UI fills them in."""
    path, query = route.path, {}
    for parameter in operation(route).get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", parameter["example"])
        elif "example" in parameter:
            query[parameter["name"]] = json.dumps(parameter["example"])
    content = operation(route).get("requestBody", {}).get("content", {})
    return path, query, content.get("application/json", {}).get("example")


@pytest.mark.parametrize(
    "route",
    [route for route in TABLE if route.body is not Nothing and not route.form],
    ids=name,
)
async def test_the_example_of_a_change_is_accepted_and_harmless(
    route: AnyRoute, tmp_path: Path
) -> None:
    path, query, body = examples_of_request(route)
    assert "{" not in path
    assert body
    async with running(tmp_path) as server:
        target = f"{path}?{urlencode(query)}" if query else path
        answer = await server.tcp(route.method, target, headers=BEARER, json=body)
        assert answer.status in {200, 202}, answer.body
        asked = server.control.asked
    if route.path == "/deploy/bluegreen":
        assert asked[0][:2] == ("deploy", ("1.4.0", True))  # a dry run
    if route.path == "/deploy/mode":
        assert asked[0][:2] == ("mode", "bluegreen")
