"""What schemathesis does before it sends a request: there is to be something that it can change.

Loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in its own process. Without this nearly every
request would be refused, because no deploy waits or deploys are off.
"""

from __future__ import annotations

import http.client
import json
import os
from typing import Any

import schemathesis

PORT = int(os.environ["FUZZING_PORT"])
TOKEN = os.environ["FUZZING_TOKEN"]

WITH_A_WAITING_DEPLOY = {"/deploy/switch", "/deploy/abort"}
WITH_NO_DEPLOY = {"/deploy/bluegreen", "/deploy/rollback"}


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the daemon itself, past schemathesis."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer: dict[str, Any] = json.load(connection.getresponse())
    finally:
        connection.close()
    return answer


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Prepare what a valid request needs to be done."""
    path = case.operation.path
    if case.method != "POST" or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if path in WITH_A_WAITING_DEPLOY | WITH_NO_DEPLOY:
        ask("POST", "/deploy/mode", {"mode": "bluegreen"})
        waits = ask("GET", "/deploy/status")["deploy_in_progress"]
        if path in WITH_A_WAITING_DEPLOY and not waits:
            ask("POST", "/deploy/bluegreen")
        if path in WITH_NO_DEPLOY and waits:
            ask("POST", "/deploy/abort")
