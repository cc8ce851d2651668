"""Schemathesis asks a daemon for all that its document has, well and badly, and judges the answers.

All operations are tried, those that change something included. What is found wrong is mended in
the code, or in the route table that the document is made of; never here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness import FUZZ_SECONDS, DaemonProcess, Setting
from tests.integration.fakes import ending_streams
from tests.integration.support import everything_agrees, releases, scripted_daemon

HOOKS = "tests.apps.fuzzing_hooks"
ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
EXAMPLES = 2
"""For each operation, besides the several dozen that follow from the document alone."""
CHOSEN = (  # scripts/fuzz wants more, of any seed
    (
        "--max-examples",
        str(EXAMPLES + int(FUZZ_SECONDS / 5)),
        "--seed",
        os.environ["ATLAS_FUZZ_SEED"],
    )
    if FUZZ_SECONDS
    else ("--max-examples", str(EXAMPLES), "--generation-deterministic")
)

# A deploy waits for its switch, so that there is something to switch and to abort.
QUICK: dict[str, Setting] = {"HEALTH_PROBES": 1, "AUTO_SWITCH_ON_HEALTH": "false"}


async def schemathesis(
    daemon: DaemonProcess, *arguments: str, hooks: Mapping[str, str]
) -> tuple[int, str]:
    """Run it to its end; return its exit status and what it printed."""
    async with ending_streams(daemon.control_port) as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"http://127.0.0.1:{port}/openapi.json",
            *("--header", "Host: localhost"),  # the port in ours is not the daemon's
            *("--checks", ",".join(CHECKS)),
            *CHOSEN,
            "--no-shrink",
            *("--request-timeout", "20"),
            *("--continue-on-failure", "--no-color"),
            *arguments,
            cwd=daemon.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                **hooks,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return process.returncode or 0, output.decode()


@pytest.mark.timeout(180 + 20 * FUZZ_SECONDS)  # 25 s alone, more with other tests beside it
@pytest.mark.fault(
    "Requests", "any input that the API's document does not allow", "a documented answer, never 500"
)
async def test_every_answer_is_one_that_is_documented(tmp_path: Path) -> None:
    # The documents' examples name a release: it is there.
    named: dict[str, Setting] = {"RELEASES_DIR": releases(tmp_path, "1.4.0")}
    async with scripted_daemon(tmp_path, QUICK | named) as daemon:
        code, output = await schemathesis(
            daemon,
            *("--phases", "coverage,fuzzing"),
            *("--header", f"Authorization: Bearer {daemon.token}"),
            hooks={
                "SCHEMATHESIS_HOOKS": HOOKS,
                "FUZZING_PORT": str(daemon.control_port),
                "FUZZING_TOKEN": daemon.token,
            },
        )
        assert code == 0, output
        # It was no idle talk.
        audit = (await daemon.request("GET", "/deploy/audit", params={"limit": "1000"})).json
        done = {(each["actor"], each["action"], each["outcome"]) for each in audit["entries"]}
        for action, outcome in (
            ("deploy", "begun"),
            ("dry_run", "begun"),
            ("rollback", "begun"),
            ("switch", "switched"),
            ("abort", "aborted"),
            ("mode", "single"),
        ):
            assert ("token", action, outcome) in done
        assert ("anonymous", "request", "refused") in done
        assert (await daemon.request("GET", "/deploy/audit/verify")).json["ok"]
        await everything_agrees(daemon)


@pytest.mark.timeout(90 + 20 * FUZZ_SECONDS)
async def test_without_the_token_every_answer_is_documented_and_nothing_is_changed(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, QUICK) as daemon:
        code, output = await schemathesis(
            daemon, "--phases", "coverage", "--mode", "positive", hooks={}
        )
        assert code == 0, output
        assert (await daemon.request("GET", "/deploy/history")).json == {"deploys": []}
        audit = (await daemon.request("GET", "/deploy/audit")).json["entries"]
        assert {(each["action"], each["outcome"]) for each in audit} == {
            ("daemon", "started"),
            ("request", "refused"),
        }
