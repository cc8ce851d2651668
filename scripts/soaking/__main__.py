"""`./scripts/soak`: runs faults under load, and prints what was violated."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from random import Random

from atlas_supervisor.output import unfailing_output
from scripts.soaking import all_failpoints, application, soak
from scripts.soaking.report import NOTHING_LEFT, Findings
from scripts.soaking.wrk_load import WrkLoad
from tests.failpoints import CanaryCaller
from tests.harness import DaemonProcess, missing
from tests.loadclient import Load, Report

INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Runs deploys, kills and faults under load on throw-away state; ends with a "
        "table of the invariants, and exits 1 if one was violated.",
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="random faults for so long")
    parser.add_argument(
        "--times",
        type=times,
        metavar="ACTION=N",
        action="append",
        help="instead of that: this action so many times, in a random order with the others that "
        "are named (kills=100)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="their seed; random if not given")
    parser.add_argument(
        "--all-failpoints",
        action="store_true",
        help="kill the daemon before and after every durable step and every effect",
    )
    parser.add_argument(
        "--passings",
        type=int,
        default=sys.maxsize,
        metavar="N",
        help="kill at the first N passings of each failpoint only",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="failpoints with it in the name")
    parser.add_argument(
        "--wrk", action="store_true", help="with wrk beside the load (not with --all-failpoints)"
    )
    parser.add_argument("--verbose", action="store_true", help="print every action")
    parsed = parser.parse_args()
    if parsed.wrk and missing("wrk"):
        parser.error("wrk is not installed")
    ways = (parsed.minutes, parsed.times, parsed.all_failpoints or None)
    if sum(each is not None for each in ways) != 1:
        parser.error("one of --minutes, --times and --all-failpoints is needed")
    return parsed


def times(text: str) -> tuple[str, int]:
    """Parse an action and how often it is to be done."""
    name, _, count = text.rpartition("=")
    if name not in soak.ACTIONS or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {'=N, '.join(soak.ACTIONS)}=N")
    return name, int(count)


async def run(chosen: argparse.Namespace) -> int:
    """Run what was asked for; return the exit status."""
    if task := asyncio.current_task():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    findings, report, extra, interrupted = Findings(chosen.verbose), Report({}), 0, False
    settings = all_failpoints.SETTINGS if chosen.all_failpoints else soak.SETTINGS
    with tempfile.TemporaryDirectory(prefix="atlas-soak-") as name:
        (Path(name) / application.RELEASES).mkdir()
        try:
            async with (
                DaemonProcess.running(Path(name), settings, files=application.FILES) as daemon,
                Load("127.0.0.1", daemon.public_port, application.MIX) as load,
                CanaryCaller.running(daemon) as caller,
            ):
                report = load.report
                if chosen.all_failpoints:
                    await all_failpoints.kill_everywhere(
                        *(daemon, load, caller, findings),
                        passings=chosen.passings,
                        only=chosen.only,
                    )
                else:
                    random = Random(chosen.seed)  # noqa: S311  # faults are no secret
                    soaked = soak.Soak(daemon, load, caller, random, findings)
                    url = f"http://127.0.0.1:{daemon.public_port}/"
                    more = WrkLoad(Path(name), url, findings, lambda: soaked.killed)
                    async with more.running(chosen.wrk):
                        await soaked.run(
                            soaked.shuffled(dict(chosen.times))
                            if chosen.times
                            else soaked.drawn_for(chosen.minutes * 60)
                        )
                    extra = soaked.allowed
                    if chosen.wrk:
                        findings.print(f"{more.requests:,} requests of wrk")
                await load.stop()
            findings.check((NOTHING_LEFT,), {}, "the stop")
        except asyncio.CancelledError:
            findings.print("interrupted; everything is stopped")
            interrupted = True
        except AssertionError as error:  # the daemon's start or end was not as it should be
            findings.check((NOTHING_LEFT,), {NOTHING_LEFT: [str(error)]}, "the stop")
            print("\n".join(getattr(error, "__notes__", ())), file=sys.stderr)
    status = findings.show(report, extra)
    return status or (INTERRUPTED if interrupted else 0)


def main() -> int:
    chosen = arguments()
    if chosen.seed is None:
        chosen.seed = secrets.randbelow(1 << 32)
    if not chosen.all_failpoints:
        print(f"the seed is {chosen.seed}", flush=True)
    return asyncio.run(run(chosen))


with unfailing_output("scripts/soak"):
    sys.exit(main())
