"""The console program `atlasctl`, also `python -m atlas_supervisor.cli`.

The client imports nothing of the daemon. It uses the HTTP API, so it works from anywhere and with
a daemon of another version. Verbs about this machine (doctor, init, prune) run the daemon's program
as well (`program`).
"""

from __future__ import annotations

from atlas_supervisor.output import unfailing_output
from atlas_supervisor.quick_import import without_certificates, without_collector


def run() -> None:
    """Run `atlasctl`: the console program of the distribution."""
    with unfailing_output("atlasctl"):
        with without_collector(), without_certificates():
            from atlas_supervisor.cli.verbs import main  # noqa: PLC0415 - within these alone
        main(prog_name="atlasctl")


if __name__ == "__main__":
    run()
