#!/usr/bin/env python3
"""Starts one plain worker without the supervisor.

On `active_port` of the state file if DEPLOY_MODE=bluegreen, else on ACTIVE_PORT. Sets the
project's environment up first if there is none.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-file", type=Path, default=ROOT / "atlas.env")
    options = parser.parse_args()
    if Path(sys.prefix) != ROOT / ".venv":
        subprocess.run(
            ["bash", "-c", 'source "$0" && setup', str(ROOT / "scripts" / "_setup")],
            check=True,
            stdout=sys.stderr,
        )
        os.execv(PYTHON, [str(PYTHON), __file__, *sys.argv[1:]])  # noqa: S606  # no shell is wanted
    return start(options.env_file.absolute())


def start(env_file: Path) -> int:
    # Only the project's own environment has these, and this may be any Python until now.
    from atlas_supervisor import quick_import as quick  # noqa: PLC0415

    with quick.without_collector(), quick.without_certificates(), quick.without_rich():
        from atlas_supervisor.config import load_settings  # noqa: PLC0415
        from atlas_supervisor.errors import SettingsError, StartRefusedError  # noqa: PLC0415
        from atlas_supervisor.output import unfailing_output  # noqa: PLC0415
        from atlas_supervisor.workers.standalone import (  # noqa: PLC0415
            become_worker,
            nothing_recorded,
        )

    with unfailing_output("service_launcher"):
        try:
            become_worker(load_settings(env_file, os.environ, nothing_recorded), os.environ)
        except SettingsError as error:
            print("\n".join(error.faults), file=sys.stderr)
            return 2
        except StartRefusedError as error:
            print(f"service_launcher can't start: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
