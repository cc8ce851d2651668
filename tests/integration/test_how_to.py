"""The how-to documents, run as they stand: only names of folders, hosts and ports are replaced."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import pytest

from atlas_supervisor.config import Settings, load_settings
from atlas_supervisor.system import procfs
from tests.harness import DaemonProcess, Setting, free_ports, write_release
from tests.integration.nginx import PROGRAM, nginx
from tests.integration.support import SCRIPTED, bash, public_version, scripted_daemon

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/how-to"
FAKE_MANAGE = "import pathlib\npathlib.Path('migrated').touch()\n"


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language, in order."""
    text = (PAGES / f"{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def block(page: str, language: str, containing: str) -> str:
    (found,) = (each for each in blocks(page, language) if containing in each)
    return found


def replaced(text: str, *pairs: tuple[str, object]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, str(new))
    return text


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in PAGES.glob("*.md") if f"(how-to/{page.name})" not in index] == []


# Behind a proxy.


def make_certificate(folder: Path) -> Path:
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", "app.key", "-out", "app.pem"),
        ),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "app.pem"


@pytest.mark.skipif(PROGRAM is None or shutil.which("openssl") is None, reason="needs nginx")
async def test_nginx_serves_application_static_files_and_api_with_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    (tmp_path / "static").mkdir()
    (tmp_path / "static/app.3f9c2a.js").write_text("1\n")
    (port,) = free_ports(1)
    async with scripted_daemon(tmp_path) as daemon:
        static = replaced(
            block("static-files", "nginx", "location"), ("/srv/app/static/", f"{tmp_path}/static/")
        )
        config = replaced(
            block("reverse-proxy", "nginx", "upstream"),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/app.example.org", tmp_path / "app"),
            ("127.0.0.1:8790", f"127.0.0.1:{daemon.public_port}"),
            ("127.0.0.1:8793", f"127.0.0.1:{daemon.control_port}"),
            ("    location / {", f"{static}    location / {{"),
        )
        site = f"https://localhost:{port}"
        trusted = ssl.create_default_context(cafile=str(certificate))
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with (
            nginx(tmp_path / "nginx", config, port=port),
            aiohttp.ClientSession(connector=connector) as client,
        ):
            async with client.get(f"{site}/") as answer:
                assert (await answer.json())["version"] == "v1"
            async with client.get(f"{site}/static/app.3f9c2a.js") as answer:
                assert answer.headers["Cache-Control"].endswith("immutable")
            await api_works(client, f"{site}/atlas", daemon)
            by_client = replaced(
                block("reverse-proxy", "sh", "atlasctl"),
                ("https://app.example.org", site),
                ("atlas.token", "state/control.token --cacert app.pem"),
            )
            status, printed = await bash(by_client, tmp_path)
            assert (status, "bluegreen" in printed) == (0, True), printed


async def api_works(client: aiohttp.ClientSession, base: str, daemon: DaemonProcess) -> None:
    """Use the API by its relative links, as a page and a program do."""
    async with client.get(f"{base}/docs") as page:
        links = re.findall(r'(?:src|href)="([^"]+)"', await page.text())
        assert len(links) >= 3
    for link in links:
        async with client.get(urljoin(f"{base}/docs", link)) as answer:
            assert answer.status == 200, link
    token = {"Authorization": f"Bearer {daemon.token}"}
    own = {"Origin": "https://app.example.org", "Sec-Fetch-Site": "same-origin"}
    started = f"{base}/deploy/bluegreen?dry_run=true&wait=false"
    async with client.post(started, headers={**token, **own}) as answer:
        assert answer.status == 202
        location = urljoin(started, answer.headers["Location"])
    assert location.startswith(f"{base}/deploy/")
    async with client.get(location) as answer:
        assert answer.status == 200
        await daemon.ended((await answer.json())["deploy_id"])
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    async with client.post(started, headers={**token, **foreign}) as answer:
        assert answer.status == 403
    async with client.post(started) as answer:
        assert answer.status == 401


@pytest.mark.skipif(shutil.which("caddy") is None, reason="needs Caddy")
def test_the_configuration_of_caddy_is_valid(tmp_path: Path) -> None:
    config = tmp_path / "Caddyfile"
    config.write_text(block("reverse-proxy", "caddyfile", "reverse_proxy"))
    subprocess.run(
        ("caddy", "validate", "--adapter", "caddyfile", "--config", str(config)), check=True
    )


# A job, its migrations and its static files; then a backup of what it left.


@asynccontextmanager
async def with_releases(folder: Path) -> AsyncIterator[DaemonProcess]:
    (folder / "releases").mkdir()
    settings: dict[str, Setting] = {"RELEASES_DIR": folder / "releases"}
    async with scripted_daemon(folder, settings) as daemon:
        yield daemon


async def test_a_pipeline_deploys_with_migrations_and_static_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_release(source, "unused", {"manage.py": FAKE_MANAGE})
    (source / "static").mkdir()
    (source / "static/app.3f9c2a.js").write_text("1\n")
    made = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm first"
    assert (await bash(made, source)) == (0, "")
    async with with_releases(tmp_path) as daemon:
        job = {
            "RELEASES": tmp_path / "releases",
            "STATIC": tmp_path / "static",
            "ATLAS_URL": f"http://127.0.0.1:{daemon.control_port}",
            "ATLAS_TOKEN": daemon.token,
            "ATLAS_ENV_FILE": daemon.env_file,
        }
        deploy = block("ci-pipeline", "sh", "git archive")
        status, printed = await bash(deploy, source, **job)
        assert status == 0, printed
        (release,) = (tmp_path / "releases").iterdir()
        assert await public_version(daemon) == release.name

        migrate = replaced(block("migrations", "sh", "migrate"), (".venv/bin/python", "python"))
        for script in (migrate, *blocks("static-files", "sh")):
            without = script.replace('atlasctl deploy "$name"', "")  # the job has done that
            status, printed = await bash(without, source, name=release.name, **job)
            assert (status, printed) == (0, "")
        assert (release / "migrated").exists()
        assert (tmp_path / "static/app.3f9c2a.js").read_text() == "1\n"

        by_curl = f"name={release.name}\n{block('ci-pipeline', 'sh', 'curl')}"
        for _ in range(2):  # the second one is a repetition
            status, printed = await bash(by_curl, source, **job)
            assert status == 0, printed
        history = await daemon.request("GET", "/deploy/history")
        assert len(history.json["deploys"]) == 2

        (source / "behaviour.json").write_text('{"health": 500}')
        await bash(made, source)
        status, printed = await bash(deploy, source, **job)
        assert (status, "failed" in printed) == (1, True), printed


async def test_a_backup_is_made_of_a_running_daemon_and_restored(tmp_path: Path) -> None:
    write_release(tmp_path / "releases/r1", "r1")
    async with scripted_daemon(tmp_path, {"RELEASES_DIR": tmp_path / "releases"}) as daemon:
        assert (await daemon.deploy("r1")).status == 200
        head = (await daemon.request("GET", "/deploy/audit/verify")).json["head"]
        save, restore = blocks("backup", "sh")
        places = {"STATE_DIR": daemon.state_dir, "BACKUP": tmp_path / "backup"}
        status, printed = await bash(save, tmp_path, **places)
        assert (status, printed) == (0, "")
        token = daemon.token
        await daemon.stop()
        shutil.rmtree(daemon.state_dir)
        assert (await bash(restore, tmp_path, **places)) == (0, "")
        await daemon.start()
        assert daemon.token == token
        assert await public_version(daemon) == "r1"
        (known,) = (await daemon.request("GET", "/deploy/history")).json["deploys"]
        assert known["result"] == "switched"
        verified = (await daemon.request("GET", "/deploy/audit/verify")).json
        assert verified["ok"]
        entries = (await daemon.request("GET", "/deploy/audit")).json["entries"]
        assert head in {entry["hash"] for entry in entries}


# Node.

WEBSOCKETS = """\
exports.WebSocketServer = class { clients = new Set(); on() {} handleUpgrade() {} };
"""
"""In place of the npm package."""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
async def test_the_node_server_is_deployed_on_inherited_sockets(tmp_path: Path) -> None:
    server = block("node", "js", "createServer")
    files = {"server.js": server, "node_modules/ws/index.js": WEBSOCKETS}
    settings: dict[str, Setting] = {"WORKER_COMMAND": "node server.js", "HEALTH_PATH": "/health"}
    async with DaemonProcess.running(tmp_path, settings, files=files) as daemon:
        assert (await daemon.status())["traffic"]["plane"] == "kernel"
        assert (await daemon.deploy()).json["result"] == "switched"
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{daemon.public_port}/") as answer,
        ):
            assert await answer.text() == "hello\n"


# Settings.


def loaded(text: str, folder: Path) -> Settings:
    env_file = folder / "atlas.env"
    env_file.write_text(text)
    return load_settings(env_file, {})


def test_several_applications_share_nothing(tmp_path: Path) -> None:
    for name in ("etc", "shop", "blog"):
        (tmp_path / name / "releases/first").mkdir(parents=True)
    (tmp_path / "etc/shop.smoke.toml").touch()
    both = [
        loaded(
            re.sub(r"=/(?:srv|etc/atlas)", "=etc", text)
            .replace("=etc/shop/", "=shop/")
            .replace("=etc/blog/", "=blog/"),
            tmp_path,
        )
        for text in blocks("several-applications", "ini")
    ]
    ports = [
        port
        for each in both
        for port in (each.public_port, each.active_port, each.staging_port, each.control_port)
    ]
    assert len(both) == 2
    assert len(set(ports)) == len(ports)
    assert both[0].state_dir != both[1].state_dir


# A container.


def test_the_settings_for_a_container_are_valid(tmp_path: Path) -> None:
    (tmp_path / "releases/first").mkdir(parents=True)
    (tmp_path / "smoke.toml").touch()
    settings = loaded(block("container", "ini", "PUBLIC_HOST"), tmp_path)
    assert settings.public_host.is_unspecified


@pytest.mark.needs_root
async def test_the_daemon_serves_as_the_first_process_and_stops_in_order(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, {"WORKER_COMMAND": SCRIPTED})
    daemon.write_settings()
    command = (sys.executable, "-m", "atlas_supervisor", "--env-file", str(daemon.env_file))
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        daemon.process = process
        await daemon.until_ready()
        assert (await daemon.deploy()).status == 200
        first = (await daemon.request("GET", "/deploy/status")).json["slots"][0]["pid"]
        assert first is None or first < 100  # numbers of the namespace
        await daemon.stop_clients()
        (inner,) = procfs.children(process.pid)
        os.kill(inner, signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert daemon.leftovers() == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
