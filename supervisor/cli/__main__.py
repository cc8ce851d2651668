"""`python -m supervisor.cli`, which `scripts/atlasctl` runs: the table of verbs.

The client knows the daemon by its HTTP API only, so that it works from anywhere and against a
daemon of another version, and so that the API is known to suffice for everything shown here.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from supervisor.cli.audit import audit
from supervisor.cli.canary import canary
from supervisor.cli.decide import abort, rollback, switch
from supervisor.cli.deploy import deploy
from supervisor.cli.health import health
from supervisor.cli.history import history
from supervisor.cli.logs import logs
from supervisor.cli.mode import mode
from supervisor.cli.releases import releases
from supervisor.cli.session import Verbs
from supervisor.cli.show import show
from supervisor.cli.status import status

VERBS = (
    status,
    health,
    deploy,
    switch,
    abort,
    rollback,
    mode,
    history,
    show,
    releases,
    logs,
    canary,
    audit,
)


@click.group(
    cls=Verbs,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Control an ATLAS supervisor.

    The common options may stand before the verb or after it. Exit status: 0 done, 1 refused or
    failed, 2 wrong usage, 3 no daemon there, 130 interrupted.
    """


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # What the reader's encoding lacks is shown escaped; it must never end the program.
            stream.reconfigure(errors="backslashreplace")
    main(prog_name="atlasctl")
