"""`python -m atlas_supervisor`: imports the program quickly, and runs it.

Users wait for a start: after a crash of the daemon there are no deploys and no restarts until it
is back.
"""

from __future__ import annotations

import sys

from atlas_supervisor.output import unfailing_output
from atlas_supervisor.quick_import import without_certificates, without_collector, without_rich
from atlas_supervisor.system.program import is_reloaded
from atlas_supervisor.system.signals import ignore_signals


def main() -> int:
    """Run the daemon; return the exit status."""
    ignore_signals(reloaded=is_reloaded())
    with unfailing_output("atlas-supervisor"):
        with without_collector(), without_certificates(), without_rich():
            from atlas_supervisor import main as program  # noqa: PLC0415 - within these alone
        return program.main()


if __name__ == "__main__":
    sys.exit(main())
