"""The documents about a server, from the first command to the last, by a person who uses `sudo`."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from scripts.doc_blocks import blocks, documents
from scripts.doc_commands import SERVER, run_by
from tests.harness import write_release
from tests.systemd.login import Login, make_environment, prepare
from tests.systemd.support import ROOT, Machine, machine, missing
from tests.terminal import commands

MISSING = missing("sudo", "ip", "apt-get", "dbus-daemon", "promtool", "man")

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
    pytest.mark.timeout(240),  # a person's whole afternoon
]

RELEASES = """
DEPLOY_MODE=bluegreen
STATE_DIR=state/releases
WORKER_DIRECTORY=releases/1.0
RELEASES_DIR=releases
WORKER_COMMAND=python app.py
SMOKE_FILE=
CANARY_ENABLED=true
CANARY_RAMP=0.02,0.1,0.5,1
"""
"""What the first steps end with: the page's settings, and the one that its last part names."""
KIT_APP = """
import json, os
from aiohttp import web
from atlas_worker.aiohttp import run_app

async def answer(request):
    return web.json_response({"version": os.environ["ATLAS_VERSION"]})

app = web.Application()
app.router.add_get("/{path:.*}", answer)
run_app(app)
"""
ASGI_APP = """
from fastapi import FastAPI

app = FastAPI()


@app.get("/health")
def health():
    return {"status": "ok"}
"""
WSGI_APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"blog"]
"""
STATUS_BY_NAME = "sudo ./scripts/atlasctl --env-file /etc/atlas/shop.env status"
PROMETHEUS = "global: {scrape_interval: 10s}\nrule_files: [alerts.yml]\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that the daemon is not yet on, with a clone of it in a person's home."""
    with machine(tmp_path_factory.mktemp("server"), a_persons=True) as booted:
        prepare(booted)
        yield booted


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


async def test_the_first_steps_go_from_a_clone_to_a_canary(server: Machine) -> None:
    first, _, releases = page("tutorial.md").partition("## A folder of releases")
    clone = server.disk / "home/ops/atlas"
    async with Login(server, "~/atlas") as terminal:
        ran = await terminal.follow(first)
        assert ran["echo $?"] == "1"
        assert json.loads(ran["curl http://127.0.0.1:8790/"].splitlines()[-1])["slot"] == "green"
        for version in ("1.0", "1.1"):
            write_release(clone / "releases" / version, version, {"app.py": KIT_APP})
        (clone / "atlas.env").write_text(RELEASES)
        ran = await terminal.follow(releases)
        assert all(line in RELEASES for line in ran["cat atlas.env"].splitlines())
        assert "ramping" in ran["./scripts/atlasctl canary status"]
        await terminal.stop_daemon()
        status, printed = await terminal.run("git checkout -q . && sudo rm -r releases state")
        assert status == 0, printed


async def test_the_tutorial_for_a_server_leads_from_an_empty_machine_to_a_safe_deploy(
    server: Machine,
) -> None:
    text = page("tutorial-server.md")
    environment = partial(asyncio.to_thread, make_environment, server, Path("/opt/atlas"))
    status = "sudo ./scripts/atlasctl --env-file /srv/shop/atlas.env status"
    async with Login(server, "~/atlas") as terminal:
        next_daemon = partial(terminal.until_answered, "http://127.0.0.1:8793/livez")
        before = {"sudo ./scripts/start --check": environment, status: next_daemon}
        ran = await terminal.follow(text, before=before)

    assert ran["sudo ./scripts/start --check"].endswith("OK")
    for command in commands(text):
        if command.text.startswith("curl"):
            assert ran[command.text] == "".join(command.shown).strip()


async def test_an_operator_s_commands_run_on_a_server(server: Machine) -> None:
    """After the tutorial, whose service runs."""
    etc = server.disk / "etc"
    (etc / "atlas").mkdir()
    for name in ("atlas", "shop"):
        settings = (server.disk / "srv/shop/atlas.env").read_text()
        (etc / f"atlas/{name}.env").write_text(f"{settings}STATE_DIR=/srv/shop/state\n")
    (etc / "prometheus").mkdir(exist_ok=True)
    (etc / "prometheus/prometheus.yml").write_text(PROMETHEUS)
    server.run("install", "-d", "-o", "prometheus", "/var/lib/prometheus")
    server.run("systemctl", "start", "prometheus")
    seen = set()
    async with Login(server, "/opt/atlas") as terminal:
        await terminal.run("mkdir -p ~/.config/fish/completions; PATH=/opt/atlas/.venv/bin:$PATH")
        for path in documents():
            name = str(path.relative_to(ROOT))
            if "tutorial" in name or "several-applications" in name or "systemd" in name:
                continue
            for command in commands(path.read_text()):
                text = command.bare
                if run_by(name, command.text) == SERVER and text not in seen:
                    seen.add(text)
                    status, printed = await terminal.run(text)
                    nothing_found = " --grep " in text
                    assert status == 0 or (nothing_found and status == 1), f"{text}\n{printed}"
        completed = await terminal.run("bash -ic 'complete -p atlasctl' 2>/dev/null")
        assert "atlasctl" in completed[1]
    assert len(seen) > 12
    assert "ATLASCTL(1)" in server.run("man", "-l", "/usr/local/share/man/man1/atlasctl.1")


async def without_service(server: Machine) -> None:
    """Remove the service of the part before, and its state."""
    await asyncio.to_thread(server.run, "systemctl", "disable", "--now", "atlas-supervisor")
    shutil.rmtree(server.disk / "opt/atlas/state", ignore_errors=True)
    (server.disk / "etc/systemd/system/atlas-supervisor.service").unlink()
    await asyncio.to_thread(server.run, "systemctl", "daemon-reload")


async def test_a_checkout_becomes_a_service_whose_workers_are_another_user_s(
    server: Machine,
) -> None:
    first, _, other_user = page("how-to/systemd.md").partition("## Workers as another user")
    await without_service(server)
    async with Login(server, "/opt/atlas") as terminal:
        await terminal.follow(first)
        await without_service(server)
        await terminal.follow(other_user)
    workers = server.run("pgrep", "--euid", "shop", "--full", "atlas_worker")
    assert workers.strip()


async def test_several_applications_are_services_of_their_own(server: Machine) -> None:
    await without_service(server)
    text = page("how-to/several-applications.md")
    etc = server.disk / "etc/atlas"
    (etc / "shop.env").unlink()
    (etc / "shop.smoke.toml").touch()
    for block in blocks(text):
        if block.settings:
            (etc / block.text.split()[1].removeprefix("/etc/atlas/")).write_text(block.text)
    applications = {"shop": ASGI_APP, "blog": WSGI_APP}
    for name, source in applications.items():
        for version in ("first", "2.1"):
            folder = server.disk / "srv" / name / "releases" / version
            write_release(folder, version, {f"{name}.py": source})
    async with Login(server, "/opt/atlas") as terminal:
        ran = await terminal.follow(text)
    assert "active       port 8791  first" in ran[STATUS_BY_NAME]
