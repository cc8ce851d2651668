"""The table of verbs, and the command that has them all."""

from __future__ import annotations

import click

from atlas_supervisor.cli.audit import audit
from atlas_supervisor.cli.canary import canary
from atlas_supervisor.cli.completion import completion
from atlas_supervisor.cli.deploy import deploy
from atlas_supervisor.cli.doctor import doctor
from atlas_supervisor.cli.fleet import fleet
from atlas_supervisor.cli.health import health
from atlas_supervisor.cli.history import history, releases
from atlas_supervisor.cli.hold import hold
from atlas_supervisor.cli.init.verb import init
from atlas_supervisor.cli.logs import logs
from atlas_supervisor.cli.prune import prune
from atlas_supervisor.cli.ramp import ramp
from atlas_supervisor.cli.reload import reload
from atlas_supervisor.cli.rollback import rollback
from atlas_supervisor.cli.session import Verbs
from atlas_supervisor.cli.show import show
from atlas_supervisor.cli.status import status
from atlas_supervisor.cli.steer import abort, mode, switch
from atlas_supervisor.cli.top.verb import top
from atlas_supervisor.cli.traffic import traffic

VERBS = (
    status,
    top,
    health,
    deploy,
    switch,
    abort,
    rollback,
    mode,
    history,
    show,
    traffic,
    ramp,
    hold,
    releases,
    prune,
    logs,
    canary,
    fleet,
    audit,
    reload,
    doctor,
    init,
    completion,
)

ELSEWHERE = {
    "start": "`atlas-supervisor` starts the daemon (of a service, `systemctl start`), and it the "
    "worker.",
    "stop": "Ctrl-C or SIGTERM (of a service, `systemctl stop`) ends the daemon with all workers.",
    "restart": "`atlasctl deploy` starts a fresh worker through the gates, and `atlasctl reload` "
    "replaces the daemon.",
    "release": "`atlasctl hold --release` ends a hold; `atlasctl deploy NAME` deploys a release.",
    "kill": "`atlasctl fleet kill FEATURE` switches a feature off.",
}


@click.group(
    cls=Verbs,
    verbs=VERBS,
    elsewhere=ELSEWHERE,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="atlas-supervisor", prog_name="atlasctl")
def main() -> None:
    """Control an ATLAS supervisor.

    The common options can be given before or after the verb. Exit status: 0 done, 1 refused or
    failed, 2 wrong usage, 3 no daemon there, 130 interrupted.
    """
