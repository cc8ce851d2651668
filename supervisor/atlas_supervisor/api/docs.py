"""Swagger UI and the document it shows, served from this machine alone.

No script or style stands in the page itself and none comes from another host, so its content
security policy can be as strict as they get.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from openapi_ui_bundles import swagger_ui
from pydantic import BaseModel, ConfigDict

from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.errors import RefusedError

_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>ATLAS Supervisor: API</title>
    <link rel="stylesheet" href="/docs/swagger-ui.css">
    <link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="/docs/swagger-ui-bundle.js"></script>
    <script src="/docs/init.js"></script>
  </body>
</html>
"""

_INIT = """"use strict";
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""

_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}


class Document(BaseModel):
    """An OpenAPI document."""

    model_config = ConfigDict(extra="allow", frozen=True)

    openapi: str


def routes(document: Callable[[], dict[str, Any]]) -> tuple[AnyRoute, ...]:
    """Return the routes that show `document`, which is built when it is first asked for."""

    @cache
    def encoded() -> bytes:
        return json.dumps(document()).encode()

    async def openapi(_call: Request[Nothing, Nothing]) -> Reply:
        return Reply(await asyncio.to_thread(encoded))

    return (
        _route(
            "/openapi.json",
            openapi,
            "This document",
            ResponseSpec(200, "OpenAPI 3.1.", Document),
        ),
        _route(
            "/docs",
            _page,
            "Swagger UI",
            ResponseSpec(200, "A page.", None, content_type="text/html"),
        ),
        Route(
            method="GET",
            path="/docs/{asset}",
            handler=_asset,
            summary="A part of Swagger UI",
            description="Script, style or icon of the page.",
            tag=None,
            query=Nothing,
            body=Nothing,
            parameters={"asset": "The file's name."},
            answers=(
                *(
                    ResponseSpec(200, f"`{name}`.", None, content_type=content_type)
                    for name, content_type in {**_ASSETS, "init.js": "text/javascript"}.items()
                ),
                examples.refused(404, _CODE, _MESSAGE, _HINT),
            ),
        ),
    )


_CODE, _MESSAGE, _HINT = "not_found", "Swagger UI has no such part", "see GET /docs"


def _route(
    path: str,
    handler: Callable[[Request[Nothing, Nothing]], Any],
    summary: str,
    answer: ResponseSpec,
) -> AnyRoute:
    return Route(
        method="GET",
        path=path,
        handler=handler,
        summary=summary,
        description="For people and for generators of clients.",
        tag=None,
        query=Nothing,
        body=Nothing,
        answers=(answer,),
    )


async def _page(_call: Request[Nothing, Nothing]) -> Reply:
    return Reply(_PAGE.encode(), headers=_POLICY, content_type="text/html")


async def _asset(call: Request[Nothing, Nothing]) -> Reply:
    name = call.path["asset"]
    if name == "init.js":
        return Reply(_INIT.encode(), content_type="text/javascript")
    if name not in _ASSETS:  # names are looked up, never joined to a path as they come
        raise RefusedError(_CODE, _MESSAGE, status=404, hint=_HINT)
    data = await asyncio.to_thread((swagger_ui.static_path / name).read_bytes)
    return Reply(data, content_type=_ASSETS[name])
