"""What a worker says reaches no caller that may not read its log, and no secret reaches any.

A worker says something in every way it can: it prints, it reports checks, its answers are quoted in
failed probes and smoke tests. Then everything that can be read is read, with and without the token.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness import DaemonProcess, Setting
from tests.integration.support import release, scripted_daemon

PRINTED, REPORTED, ANSWERED, RAN = (
    "heard-printing",
    "heard-reporting",
    "heard-answering",
    "heard-ran",
)
WORDS = (PRINTED, REPORTED, ANSWERED, RAN)
PASSWORD, URL_PASSWORD, KEY = "pw-of-the-database", "pw-in-a-url", "key-of-the-model"
SECRETS = (PASSWORD, URL_PASSWORD, KEY)
TELLS_ALL = f"{PRINTED} {' '.join(SECRETS)}"
SMOKE = f"""
[[http]]
name = "answers"
path = "/health"
expect = {{ json = {{ status = "fine" }}, contains = "not there" }}

[[command]]
name = "runs"
run = ["python", "-c", "import os; print('{RAN}', os.environ['DB_PASSWORD']); raise SystemExit(1)"]
"""
READ = (
    "/deploy/status",
    "/deploy/history",
    "/deploy/releases",
    "/deploy/canary",
    "/health",
    "/metrics",
)


def says(word: str, status: str = "pass") -> dict[str, Any]:
    message = f"{word} {PASSWORD} ⟦{KEY}⟧"
    return {
        "status": f"{word} {KEY}",
        "checks": {"scheduler": {"status": status, "message": message}},
    }


async def all_that_is_read(daemon: DaemonProcess, *deploys: str, token: str | None) -> str:
    """Return every document and all events, as they were sent."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = f"http://127.0.0.1:{daemon.control_port}"
    found = []
    async with aiohttp.ClientSession(base, headers=headers) as session:
        for path in (*READ, *(f"/deploy/{each}" for each in deploys)):
            async with session.get(path) as answer:
                assert answer.status == 200
                found.append(await answer.text())
        async with session.get("/deploy/events", params={"after": "0"}) as stream:
            ended = 0
            async for line in stream.content:
                found.append(line.decode())
                ended += b'"target":"ended"' in line.replace(b'": "', b'":"')
                if ended == len(deploys):
                    break
    return "\n".join(found)


async def test_worker_output_needs_the_token_and_secrets_in_it_are_masked_even_then(
    tmp_path: Path,
) -> None:
    smoke, key = tmp_path / "smoke.toml", tmp_path / "llm.key"
    smoke.write_text("")
    key.write_text(f"{KEY}\n")
    settings: dict[str, Setting] = {
        "SMOKE_FILE": smoke,
        "LLM_API_KEY_FILE": key,
        "AFTER_FAILURE": "stay",
        "HEALTH_PROBES": 1,
    }
    async with scripted_daemon(
        tmp_path,
        settings,
        files={"behaviour.json": json.dumps({"health_body": says(REPORTED)})},
        worker_env={"DB_PASSWORD": PASSWORD, "DATABASE_URL": f"pg://app:{URL_PASSWORD}@db/app"},
    ) as daemon:
        answers = []
        release(daemon, "v2", say=TELLS_ALL, exit=3)
        answers.append(await daemon.deploy())
        release(daemon, "v3", say=TELLS_ALL, health=500, health_body=says(REPORTED, "fail"))
        answers.append(await daemon.deploy())
        smoke.write_text(SMOKE)
        release(daemon, "v4", say=TELLS_ALL, health_body=says(ANSWERED))
        answers.append(await daemon.deploy())
        deploys = [answer.json["deploy_id"] for answer in answers]
        assert [answer.json["steps"][-1]["name"] for answer in answers] == [
            "launch",
            "health",
            "smoke",
        ]
        for deploy_id in deploys:
            await daemon.ended(deploy_id)
        async with asyncio.timeout(10):
            anonymous = await all_that_is_read(daemon, *deploys, token=None)
            wrong = await all_that_is_read(daemon, *deploys, token="wrong")
            with_token = await all_that_is_read(daemon, *deploys, token=daemon.token)
        logged = [
            str((await daemon.request_tcp("GET", f"/deploy/logs/{slot}")).json)
            for slot in ("green", "supervisor")
        ]
    for word in (*WORDS, "⟦"):
        assert word not in anonymous
        assert word not in wrong
        assert (word in with_token) is (word in WORDS)
    assert PRINTED in logged[0]
    for secret in SECRETS:
        for text in (anonymous, with_token, str(answers), *logged):
            assert secret not in text
    # What the supervisor itself found is there for all.
    for text in (anonymous, with_token):
        for part in ("scheduler failed", "answered 500, expected 2xx", "'runs'", "exit 1"):
            assert part in text
