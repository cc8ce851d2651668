"""`atlasctl init`: folders and the settings that are written for them; nothing of them is run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.cli import program
from atlas_supervisor.cli.init import files
from atlas_supervisor.cli.init.detect import detect, missing
from tests.unit.supervisor.cli.support import Call

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
HEALTH = '@app.get("/health")\ndef health():\n    return {}\n'
RUNNER = "python -m atlas_worker.asgi"
GUNICORN = "gunicorn --config python:atlas_worker.gunicorn"
MANAGE = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_.settings")\n'
URLS = 'urlpatterns = [path("admin/", admin.site.urls), path("api/", include("api.urls"))]\n'

FOLDERS: dict[str, tuple[dict[str, str], str, str]] = {
    "FastAPI": ({"main.py": FASTAPI + HEALTH}, f"{RUNNER} main:app", "/health"),
    "FastAPI without a page at /": (
        {"main.py": FASTAPI + '@app.post("/")\ndef f(): pass\n@app.get("/x/{y}")\ndef g(): pass\n'},
        f"{RUNNER} main:app",
        "/openapi.json",
    ),
    "FastAPI without documents": (
        {
            "main.py": "import fastapi\napp: fastapi.FastAPI = fastapi.FastAPI(openapi_url=None)\n"
            '@app.get("/things")\ndef f(): pass\n'
        },
        f"{RUNNER} main:app",
        "/things",
    ),
    "a package with routers": (
        {
            "app/__init__.py": "",
            "app/main.py": FASTAPI,
            "app/ops.py": 'r = APIRouter(prefix="/ops")\n@r.get("/healthz")\ndef f(): pass\n',
        },
        f"{RUNNER} app.main:app",
        "/ops/healthz",
    ),
    "a namespace package by its imports": (
        {"app/main.py": "from app.routes import r\n" + FASTAPI},
        f"{RUNNER} app.main:app",
        "/openapi.json",
    ),
    "a folder that is no package": (
        {"backend/main.py": "from routes import r\n" + FASTAPI},
        f"{RUNNER} --app-dir backend main:app",
        "/openapi.json",
    ),
    "the src layout": (
        {"src/shop/__init__.py": "", "src/shop/web.py": FASTAPI},
        f"{RUNNER} --app-dir src shop.web:app",
        "/openapi.json",
    ),
    "a factory": (
        {"main.py": "from fastapi import FastAPI as F\ndef make_app():\n    return F()\n"},
        f"{RUNNER} --factory main:make_app",
        "/openapi.json",
    ),
    "Starlette": (
        {
            "app.py": "from starlette.applications import Starlette\n"
            'app = Starlette(routes=[Route("/", home), Route("/up", up)])\n'
        },
        f"{RUNNER} app:app",
        "/up",
    ),
    "tests and installed packages are no application": (
        {
            "tests/main.py": FASTAPI,
            "lib/pyvenv.cfg": "",
            "lib/site.py": FASTAPI,
            "bad.py": "def (",
            "service.py": FASTAPI.replace("app =", "service ="),
        },
        f"{RUNNER} service:service",
        "/openapi.json",
    ),
    "Flask": (
        {"app.py": "from flask import Flask\napp = Flask(__name__)\n"},
        f"{GUNICORN} app:app",
        "/",
    ),
    "Flask by a factory": (
        {
            "shop/__init__.py": "from flask import Flask\ndef create_app(test=None):\n"
            '    app = Flask("")\n    @app.route("/ping")\n    def f(): pass\n    return app\n'
        },
        f"{GUNICORN} 'shop:create_app()'",
        "/ping",
    ),
    "Flask by a factory and a module that calls it": (
        {
            "shop/__init__.py": "import flask\ndef create_app():\n    return flask.Flask('')\n",
            "wsgi.py": "from shop import create_app\napp = create_app()\n",
        },
        f"{GUNICORN} wsgi:app",
        "/",
    ),
    "Django": (
        {
            "manage.py": MANAGE,
            "site_/settings.py": 'WSGI_APPLICATION = "site_.wsgi.application"\n',
            "site_/urls.py": URLS,
        },
        f"{GUNICORN} site_.wsgi:application",
        "/admin/login/",
    ),
    "Django in a folder of its own": (
        {
            "web/manage.py": MANAGE,
            "web/site_/settings.py": "",
            "web/site_/urls.py": URLS + 'urlpatterns += [path("health/", health)]\n',
        },
        f"{GUNICORN} --pythonpath web site_.wsgi:application",
        "/health/",
    ),
    "aiohttp": (
        {
            "srv.py": "from aiohttp import web\ndef make_app():\n    app = web.Application()\n"
            '    app.add_routes([web.get("/health", f)])\n    return app\n'
            'if __name__ == "__main__":\n    web.run_app(make_app())\n'
        },
        "python -c 'import srv; from atlas_worker.aiohttp import run_app; run_app(srv.make_app())'",
        "/health",
    ),
    "aiohttp on the kit": (
        {
            "srv.py": "from aiohttp import web\nfrom atlas_worker.aiohttp import run_app\n"
            "app = web.Application()\nrun_app(app)\n"
        },
        "python srv.py",
        "/",
    ),
    "Node by a port": (
        {
            "package.json": '{"scripts": {"start": "node server.js"}}',
            "server.js": 'if (url === "/healthz") listen(process.env.PORT)',
        },
        "env PORT={port} node server.js",
        "/healthz",
    ),
    "Node that inherits its sockets": (
        {"package.json": '{"main": "index.js"}', "index.js": "process.env.LISTEN_FDS"},
        "node index.js",
        "/",
    ),
    "Node by a framework": (
        {"package.json": '{"scripts": {"start": "next start"}}', "node_modules/.bin/next": ""},
        "env PORT={port} node_modules/.bin/next start",
        "/",
    ),
    "Go": (
        {
            "go.mod": "module example.org/shop/v2\n",
            "cmd/shopd/main.go": 'package main\nhandle("GET /up") // PORT\n',
        },
        "env PORT={port} ./shopd",
        "/up",
    ),
    "Go that inherits its sockets": (
        {"go.mod": "module shop\n", "main.go": 'package main\nos.Getenv("LISTEN_FDS")\n'},
        "./shop",
        "/",
    ),
    "a Procfile with uvicorn": (
        {
            "Procfile": "web: uvicorn api.main:app --host 0.0.0.0 --port=$PORT --log-level info\n",
            "other.py": FASTAPI + HEALTH,
        },
        f"{RUNNER} api.main:app --log-level info",
        "/health",
    ),
    "a Procfile with gunicorn": (
        {"Procfile": "release: true\nweb: poetry run gunicorn -b :$PORT --workers 3 shop.wsgi\n"},
        f"{GUNICORN} --workers 3 shop.wsgi",
        "/",
    ),
    "a Procfile with gunicorn for ASGI": (
        {"Procfile": "web: gunicorn -w 4 -k uvicorn.workers.UvicornWorker main:app\n"},
        f"{RUNNER} main:app",
        "/",
    ),
    "a Procfile with another program": (
        {"Procfile": "web: python -m http.server $PORT\n"},
        "env PORT={port} python -m http.server {port}",
        "/",
    ),
    "a Procfile that needs a shell": (
        {"Procfile": 'web: ./migrate && ./serve --url "$URL" -p ${PORT:-80}\n'},
        "env PORT={port} sh -c './migrate && ./serve --url \"$URL\" -p {port}'",
        "/",
    ),
    "a Dockerfile": (
        {"Dockerfile": 'FROM a\nCMD ["x"]\nFROM b\nENTRYPOINT ["./serve"]\nCMD ["-p", "$PORT"]\n'},
        "env PORT={port} ./serve -p {port}",
        "/",
    ),
    "a Dockerfile says less than its source": (
        {"Dockerfile": 'CMD ["fastapi", "run", "main.py"]\n', "main.py": FASTAPI + HEALTH},
        f"{RUNNER} main:app",
        "/health",
    ),
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_shows_how_its_application_is_run(name: str, tmp_path: Path) -> None:
    files, command, page = FOLDERS[name]

    found = detect(make(tmp_path, files))[0]

    assert (found.command, found.path) == (command, page)


def test_nothing_is_found_in_a_folder_without_an_application(tmp_path: Path) -> None:
    files = {"package.json": "[", "readme.txt": "", "lib.py": "def app(x): pass\n", "go/x.go": ""}

    assert detect(make(tmp_path, files)) == []


def test_requests_that_django_refuses_get_the_settings_that_it_accepts(tmp_path: Path) -> None:
    hosts = 'ALLOWED_HOSTS = [".example.org"]\nSECURE_SSL_REDIRECT = True\n'

    (found,) = detect(make(tmp_path, {"manage.py": MANAGE, "site_/settings.py": hosts}))

    assert found.settings == {
        "HEALTH_HOST": "example.org",
        "HEALTH_HEADERS": "X-Forwarded-Proto: https",
    }


def test_an_environment_of_another_name_is_used_and_its_gaps_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path, {"main.py": FASTAPI, "venv/bin/python": "", "venv/pyvenv.cfg": ""})

    (found,) = detect(folder)
    gaps = list(missing(folder, found))

    assert found.command == "venv/bin/python -m atlas_worker.asgi main:app"
    assert [gap.partition(":")[0] for gap in gaps] == [
        "The worker kit is not in venv",
        "uvicorn is not installed in venv",
    ]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The daemon's check, which passes; one test of the README runs the real one."""
    calls: list[Any] = []

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        printed = "STATE_DIR=/no/such/folder\nPUBLIC_PORT=8800\nCONTROL_PORT=8803\nOK\n"
        return subprocess.CompletedProcess([], 0, printed, "")

    monkeypatch.setattr(program, "run_program", run)
    monkeypatch.setattr(files, "_is_free", lambda port: port >= 8800)
    return calls


async def test_settings_and_a_smoke_test_are_written_and_checked(
    call: Call, tmp_path: Path, checked: list[Any]
) -> None:
    make(tmp_path, {"main.py": FASTAPI + HEALTH.replace("health", "up")})

    outcome = await call("init", tmp_path, "--yes")

    assert outcome.code == 0, outcome.err
    assert checked[0][-1] == tmp_path / "atlas.env"
    settings = (tmp_path / "atlas.env").read_text().splitlines()
    assert settings[2:] == [
        "DEPLOY_MODE=bluegreen",
        f"WORKER_COMMAND={RUNNER} main:app",
        "HEALTH_PATH=/up",
        "PUBLIC_PORT=8800",
        "ACTIVE_PORT=8801",
        "STAGING_PORT=8802",
        "CONTROL_PORT=8803",
    ]
    assert 'path = "/up"' in (tmp_path / "smoke.toml").read_text()
    assert f"atlas-supervisor --env-file {tmp_path}/atlas.env" in outcome.out
    assert "clients: port 8800, dashboard: port 8803" in outcome.out
    assert names(tmp_path) == {"main.py", "atlas.env", "smoke.toml"}


async def test_a_file_that_is_there_is_kept_unless_it_is_forced(
    call: Call, tmp_path: Path, checked: list[Any]
) -> None:
    make(tmp_path, {"main.py": FASTAPI, "smoke.toml": "# mine\n"})
    make(tmp_path, {"atlas.env": "PUBLIC_PORT=9000\n"})

    refused = await call("init", tmp_path, "--yes")
    assert (refused.code, checked) == (1, [])
    assert "atlas.env and smoke.toml are in " in refused.err
    assert (tmp_path / "smoke.toml").read_text() == "# mine\n"

    assert (await call("init", tmp_path, "--yes", "--force")).code == 0
    assert "[[http]]" in (tmp_path / "smoke.toml").read_text()
    # A daemon may run on them, and a reload can't change them.
    assert (
        (tmp_path / "atlas.env")
        .read_text()
        .endswith("main:app\nHEALTH_PATH=/openapi.json\nPUBLIC_PORT=9000\n")
    )


async def test_a_file_that_is_no_settings_at_all_can_be_replaced(
    call: Call, tmp_path: Path, checked: list[Any]
) -> None:
    make(tmp_path, {"main.py": FASTAPI})
    (tmp_path / "atlas.env").write_bytes(b"\xff\xfe PUBLIC_PORT=1")
    (tmp_path / "smoke.toml").symlink_to("/no/such/file")

    outcome = await call("init", tmp_path, "--yes", "--force")

    assert outcome.code == 0, outcome.err
    assert "DEPLOY_MODE=bluegreen" in (tmp_path / "atlas.env").read_text()
    assert not (tmp_path / "smoke.toml").is_symlink()
    assert checked


async def test_faults_of_the_written_settings_are_shown(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = subprocess.CompletedProcess([], 2, "", "A=1: accepted: 2\nB=1: accepted: 2\n")
    monkeypatch.setattr(program, "run_program", lambda *_: refused)

    outcome = await call("init", make(tmp_path, {"main.py": FASTAPI}), "--yes")

    assert outcome.code == 1
    assert "✗ A=1: accepted: 2\n✗ B=1: accepted: 2\n" in outcome.err


async def test_a_choice_between_applications_is_not_made_without_asking(
    call: Call, tmp_path: Path, checked: list[Any]
) -> None:
    folder = make(tmp_path, {"a/main.py": FASTAPI, "b/main.py": FASTAPI})

    asked = await call("init", folder)
    assert asked.code == 2
    assert "--yes takes the likeliest" in asked.err

    taken = await call("init", folder, "--yes")
    assert "also there: FastAPI in b/main.py, line 2" in taken.out
    assert checked


async def test_a_file_that_cannot_be_parsed_is_named_where_nothing_is_found(
    call: Call, tmp_path: Path
) -> None:
    folder = make(tmp_path, {"main.py": "from fastapi import FastAPI\napp = FastAPI(\n"})

    outcome = await call("init", folder)

    assert outcome.code == 1
    assert "can't parse main.py, line 2: '(' was never closed" in outcome.err


async def test_an_empty_folder_is_refused_with_what_was_looked_for(
    call: Call, tmp_path: Path
) -> None:
    outcome = await call("init", tmp_path)

    assert outcome.code == 1
    assert "No application was found" in outcome.err
    assert "go.mod" in outcome.err
