"""Swagger UI and the OpenAPI document it shows, both served by the daemon alone.

The page has no inline script or style and loads nothing from another host, so its content
security policy is strict. Its links are relative, so that it works behind a proxy's path prefix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from openapi_ui_bundles import swagger_ui
from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.system.threads import in_thread

_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>ATLAS Supervisor: API</title>
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="docs/swagger-ui-bundle.js"></script>
    <script src="docs/init.js"></script>
  </body>
</html>
"""

_INIT = """"use strict";
SwaggerUIBundle({
  url: "openapi.json",
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


class Document(BaseModel, extra="allow", frozen=True):
    """An OpenAPI document."""

    openapi: str = Field(description="Version of the OpenAPI specification.")


def routes(document: Callable[[], dict[str, Any]]) -> tuple[AnyRoute, ...]:
    """Return the routes that show `document`, which is built at the first request."""

    @cache
    def encoded() -> bytes:
        return json.dumps(document()).encode()

    async def openapi(_call: Request[Nothing, Nothing]) -> Reply:
        return Reply(await in_thread(encoded), kept=True)

    return (
        _route(
            "/openapi.json",
            openapi,
            "The OpenAPI document",
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
            summary="A file of Swagger UI",
            description="Script, style or icon of the page. Nothing comes from another host.",
            tag=None,
            query=Nothing,
            body=Nothing,
            parameters={"asset": "The file's name."},
            answers=tuple(
                ResponseSpec(200, f"`{name}`.", None, content_type=content_type)
                for name, content_type in {**_ASSETS, "init.js": "text/javascript"}.items()
            ),
            errors=(errors.ASSET_NOT_FOUND,),
        ),
    )


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
        description="For people and for client generators.",
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
    if name not in _ASSETS:  # a name is looked up, never joined to a path unchecked
        raise errors.ASSET_NOT_FOUND.error()
    data = await in_thread(_read_asset, name)
    return Reply(data, content_type=_ASSETS[name], kept=True)


@cache
def _read_asset(name: str) -> bytes:
    return (swagger_ui.static_path / name).read_bytes()
