"""A fleet behind a real HAProxy, with the configuration of docs/how-to/haproxy.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import fleet_demonstration
from tests import etcd, haproxy
from tests.integration.support import bash

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/haproxy.md").read_text()

pytestmark = [
    pytest.mark.skipif(haproxy.PROGRAM is None, reason=haproxy.MISSING),
    pytest.mark.skipif(etcd.PROGRAM is None, reason=etcd.MISSING),
]


@pytest.mark.timeout(180)
@pytest.mark.fault(
    "Fleet",
    "a supervisor killed, a host rebooted, etcd stopped, under load behind HAProxy",
    "no request is lost",
)
async def test_a_fleet_under_load_loses_no_request_and_halts_a_broken_release(
    tmp_path: Path,
) -> None:
    async with fleet_demonstration.stage(tmp_path, think=0.2) as demo:
        await fleet_demonstration.play(demo)
        report = await demo.acts.load.stop()
        assert not report.losses, report.describe()
        assert [act for act in demo.acts.done if not act.right] == []
        await by_hand(demo)


async def by_hand(demo: fleet_demonstration.Demo) -> None:
    """Set a machine's state with the page's own commands."""
    commands = re.findall(r"^echo .*socat.*", PAGE, re.MULTILINE)
    assert len(commands) == 3
    script = "\n".join(commands).replace("/run/haproxy/", "./")
    assert await bash(script, demo.proxy.folder) == (0, "\n\n\n")


def test_the_demo_names_the_package_of_a_program_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd, "PROGRAM", None)
    assert "apt-get install etcd-server\n" in fleet_demonstration.missing()
    monkeypatch.setattr(haproxy, "PROGRAM", None)
    assert "apt-get install etcd-server haproxy\n" in fleet_demonstration.missing()
