"""The pages about Go, Node and Django, run to their end with the real programs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest

from scripts.doc_blocks import blocks
from tests.harness import processes_with
from tests.terminal import Terminal, copy_checkout, write_programs

PAGES = Path(__file__).parents[2] / "docs/how-to"
COMMIT = "git add . && git -c user.name=a -c user.email=a@b commit -qm change"

WEBSOCKETS = """\
exports.WebSocketServer = class { clients = new Set(); on() {} handleUpgrade() {} };
"""
"""In place of the npm package."""

DJANGO = {
    "ALLOWED_HOSTS = []": 'ALLOWED_HOSTS = ["shop.example.org"]\nSTATIC_ROOT = BASE_DIR / "public"',
    "INSTALLED_APPS = [": 'INSTALLED_APPS = [\n    "goods",',
}
"""What a project has changed in the settings that Django writes."""
MODEL = """
from django.db import models


class Article(models.Model):
    name = models.CharField(max_length=40)
"""


def parts(page: str, *where: str) -> list[str]:
    """Return the parts of a page; each of the texts begins another one."""
    text = (PAGES / f"{page}.md").read_text()
    found = []
    for each in where:
        before, begin, after = text.partition(each)
        assert begin, each
        found.append(before)
        text = begin + after
    return [*found, text]


def code(text: str, language: str, containing: str = "") -> str:
    """Return the first code block of a text in a language that contains another text."""
    every = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return next(str(each) for each in every if containing in each)


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


async def answered(terminal: Terminal, path: str) -> str:
    """Return the answer to a client on the public port."""
    async with aiohttp.ClientSession() as session, session.get(terminal.address + path) as got:
        return await got.text()


async def released(terminal: Terminal, folder: Path, text: str, version: str) -> None:
    """Commit what is in the folder, and follow the part of a page that makes a release of it."""
    status, printed = await terminal.run(f"{COMMIT} && git tag {version}")
    assert status == 0, printed
    await terminal.follow(text)
    assert (folder / "releases" / version / "VERSION").read_text() == f"{version}\n"


@pytest.mark.timeout(240)  # it installs what a newcomer does
@pytest.mark.skipif(not shutil.which("go") or not shutil.which("node"), reason="needs Go and Node")
async def test_go_and_node_programs_are_deployed_and_rolled_back_as_their_pages_say(
    tmp_path: Path,
) -> None:
    copy_checkout(tmp_path / "home/atlas-supervisor")
    install, go, go_releases = parts("go", "## 1. ", "The program that runs is not disturbed")
    same, node, node_releases, _ = parts("node", "## 1. ", "A deploy of the folder", "## 3. ")
    assert [block.text for block in blocks(same)] == [block.text for block in blocks(install)]

    shop = tmp_path / "shop"
    write(shop, {"main.go": code(go, "go"), ".gitignore": "/shop\n/state\n/releases\n"})
    async with Terminal(tmp_path, shop) as terminal:
        await terminal.follow(install)
        status, printed = await terminal.run("git init -q . && go mod init shop")
        assert status == 0, printed
        await terminal.follow(go)
        assert "WORKER_COMMAND=./shop\n" in (shop / "atlas.env").read_text()
        assert await answered(terminal, "health") == "ok dev\n"
        append(shop / "atlas.env", code(go_releases, "ini"))
        await released(terminal, shop, go_releases, "v2.0")
        assert await answered(terminal, "health") == "ok v2.0\n"
        await terminal.stop_daemon()
    assert not processes_with("ATLAS_STATE_DIR", str(shop / "state"))

    blog = tmp_path / "blog"
    files = {"server.js": code(node, "js"), "node_modules/ws/index.js": WEBSOCKETS}
    write(blog, {**files, "package.json": "{}", ".gitignore": "/state\n/releases\n"})
    async with Terminal(tmp_path, blog) as terminal:
        assert await terminal.run("git init -q . && . ~/atlas/bin/activate") == (0, "")
        await terminal.follow(node)
        assert "WORKER_COMMAND=node server.js\n" in (blog / "atlas.env").read_text()
        append(blog / "atlas.env", code(node_releases, "ini"))
        for version in ("v2.0", "v3.0"):
            write(blog, {"server.js": files["server.js"].replace("hello", f"hello from {version}")})
            await released(terminal, blog, node_releases, version)
            assert await answered(terminal, "") == f"hello from {version}\n"
        assert (await terminal.run("atlasctl rollback"))[0] == 0
        assert await answered(terminal, "") == "hello from v2.0\n"
        await terminal.stop_daemon()
    assert not processes_with("ATLAS_STATE_DIR", str(blog / "state"))


@pytest.mark.timeout(240)  # it installs what a newcomer does
@pytest.mark.skipif(find_spec("django") is None, reason="needs Django")
async def test_a_django_project_is_deployed_with_a_migration_as_its_page_says(
    tmp_path: Path,
) -> None:
    copy_checkout(tmp_path / "home/atlas-supervisor")
    install, gate, change, _ = parts("django", "## 3. ", "## 4. ", "## 5. ")
    shop = tmp_path / "shop"
    shop.mkdir()
    async with Terminal(tmp_path, shop) as terminal:
        assert (await terminal.run("python3 -m venv .venv"))[0] == 0
        write_programs(shop / ".venv", shop / ".venv", ["gunicorn"])
        begun = ".venv/bin/python -m django startproject shop . && .venv/bin/python manage.py"
        status, printed = await terminal.run(f"{begun} startapp goods")
        assert status == 0, printed
        settings = (shop / "shop/settings.py").read_text()
        for default, own in DJANGO.items():
            settings = settings.replace(default, own)
        write(shop, {"shop/settings.py": settings})

        await terminal.follow(install)
        written = (shop / "atlas.env").read_text()
        for setting in code(install, "console", "atlasctl init").splitlines()[4:7]:
            assert f"{setting.strip()}\n" in written
        append(shop / "smoke.toml", code(gate, "toml"))
        write(shop, {"goods/models.py": MODEL})
        assert (await terminal.run("python manage.py makemigrations goods"))[0] == 0
        await terminal.follow(gate)
        await terminal.follow(change)
        await terminal.stop_daemon()
    assert (shop / "public/admin").is_dir()
    assert not processes_with("ATLAS_STATE_DIR", str(shop / "state"))
