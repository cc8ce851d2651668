"""A small WSGI application, written as if there were no supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

VERSION = os.environ["ATLAS_VERSION"]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a POST with its body, anything else with `REQUEST-ID VERSION`."""
    if environ["REQUEST_METHOD"] == "POST":
        body = environ["wsgi.input"].read()
    else:
        body = f"{environ.get('HTTP_X_REQUEST_ID', '-')} {VERSION}".encode()
    headers = [("Content-Length", str(len(body))), ("X-Atlas-Version", VERSION)]
    start_response("200 OK", headers)
    return [body]
