"""Runs a release's smoke tests against its staging port.

Every test is run, also after a failure: a repair needs the complete list.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp
from multidict import CIMultiDict

from atlas_supervisor.config.smoke_file import CommandCheck, HttpCheck, SmokePlan
from atlas_supervisor.model.probe import CheckResult
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes import expectation
from atlas_supervisor.probes.command import run_command
from atlas_supervisor.probes.http_client import (
    EXCERPT_LIMIT,
    HttpExchangeError,
    HttpResponse,
    exchange,
    explanation,
    open_session,
    printable,
)
from atlas_supervisor.system.account import Account
from atlas_worker.contract import ENV_STAGING_URL, SMOKE_HEADER

BODY_LIMIT = 1024 * 1024
"""Bytes of a response that are read."""

_EXPLAINING = ("Location", "WWW-Authenticate", "Allow", "Retry-After", "Content-Type")
"""Headers that may explain an unexpected response."""

_HEADER_LIMIT = 200

_OWN_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


async def run_smoke(
    plan: SmokePlan,
    *,
    base_url: str,
    headers: CIMultiDict[str],
    env: Mapping[str, str],
    directory: Path,
    deploy_id: str,
    account: Account | None = None,
) -> list[CheckResult]:
    """Run all tests in the file's order, requests first, and return a result for each.

    `base_url` is the staging instance's, without a path, and `headers` are those of every request,
    `Host` included. Programs run in `directory` with `env` as their whole environment, and the
    base URL added, and as the user of `account`.
    """
    environment = {**env, ENV_STAGING_URL: base_url}
    common = headers.copy()
    common[SMOKE_HEADER] = deploy_id
    async with open_session() as session:
        requests = [await _run_http(check, session, base_url, common) for check in plan.http]
    commands = [
        await _run_command(check, environment, directory, account) for check in plan.command
    ]
    return requests + commands


async def _run_http(
    check: HttpCheck, session: aiohttp.ClientSession, base_url: str, common: CIMultiDict[str]
) -> CheckResult:
    headers = common.copy()
    headers.update(check.headers)  # the test's own win
    headers[SMOKE_HEADER] = common[SMOKE_HEADER]
    started = time.perf_counter()
    shown: dict[str, str] = {}
    try:
        answer = await exchange(
            session,
            check.method,
            base_url + check.path,
            headers=headers,
            body=check.body,
            json=check.json_,
            timeout_seconds=check.timeout_seconds,
            limit=BODY_LIMIT,
        )
    except HttpExchangeError as error:
        verdict, got, found = error.verdict, "no complete answer", [str(error)]
        duration_ms = _since(started)
    else:
        duration_ms = _since(started)
        found = list(expectation.problems(check.expect, answer, duration_ms))
        unexpected = answer.status != check.expect.status
        if unexpected and (why := explanation(answer, base_url, headers["Host"])):
            found.append(why)
        verdict = Verdict.FAIL if found else Verdict.PASS
        got = f"status {answer.status} in {duration_ms:.0f} ms: {answer.excerpt}"
        shown = _explaining(answer) if found else {}
    return CheckResult(
        name=check.name,
        kind="http",
        ok=verdict is Verdict.PASS,
        verdict=verdict,
        expected=expectation.describe(check.expect),
        got=got,
        duration_ms=duration_ms,
        message=f"{check.method} {check.path}: {'; '.join(found) or 'as expected'}",
        problems=found,
        headers=shown,
    )


async def _run_command(
    check: CommandCheck, env: Mapping[str, str], directory: Path, account: Account | None
) -> CheckResult:
    program = check.run[0]
    started = time.perf_counter()
    try:
        finished = await run_command(
            check.run,
            env=env,
            directory=directory,
            timeout_seconds=check.timeout_seconds,
            account=account,
        )
    except OSError as error:
        verdict = Verdict.INCONCLUSIVE if error.errno in _OWN_ERRORS else Verdict.FAIL
        got, message = "not started", _not_started(error, program, directory)
    else:
        verdict = Verdict.PASS if finished.exit_code == 0 else Verdict.FAIL
        got = printable(finished.output.strip())[-EXCERPT_LIMIT:]
        message = f"{program}: {_ending(finished.exit_code, check.timeout_seconds)}"
    return CheckResult(
        name=check.name,
        kind="command",
        ok=verdict is Verdict.PASS,
        verdict=verdict,
        expected=f"exit 0 within {check.timeout_seconds:g} s",
        got=got,
        duration_ms=_since(started),
        message=message,
    )


def _explaining(answer: HttpResponse) -> dict[str, str]:
    return {
        name: printable(answer.headers[name])[:_HEADER_LIMIT]
        for name in _EXPLAINING
        if name in answer.headers
    }


def _not_started(error: OSError, program: str, directory: Path) -> str:
    if error.errno in _OWN_ERRORS:
        return f"{program}: the supervisor itself could not start it: {error.strerror}"
    if isinstance(error, FileNotFoundError) and not directory.is_dir():
        return f"{program}: not started, the folder {directory} does not exist"
    if isinstance(error, FileNotFoundError):
        return f"{program}: no such program (looked for in the worker's PATH)"
    return f"{program}: could not be started: {error.strerror}"


def _ending(exit_code: int | None, timeout_seconds: float) -> str:
    if exit_code is None:
        return f"not done within {timeout_seconds:g} s, and stopped"
    if exit_code < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-exit_code).name}"
        return f"ended by signal {-exit_code}"
    return f"exit {exit_code}"


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
