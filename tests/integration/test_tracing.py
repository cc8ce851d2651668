"""How many files a reader must follow: measured by `./scripts/trace`, and only ever fewer."""

from __future__ import annotations

from scripts import tracing

DEPLOY_FILES = 46
LOOK_FILES = 27
"""Measured: 45 and 26; one more may be a matter of timing. More files need a reason, as
`canary/stats/totals.py` has: what a host's fleet adds up is counted where events are read; and
`system/threads.py`: all work in threads goes through it, for the day when none can be started."""


async def test_a_deploy_and_a_canary_look_enter_few_files() -> None:
    deploy, look = await tracing.measure(tracing.arguments([]))

    assert len(deploy.files) <= DEPLOY_FILES, deploy.files
    assert len(look.files) <= LOOK_FILES, look.files
