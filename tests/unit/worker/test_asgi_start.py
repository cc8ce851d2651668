"""What the ASGI runner takes, and what it says when it can't start."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from atlas_worker.asgi import options
from atlas_worker.asgi.__main__ import main
from tests.unit.worker.asgi_support import APPS, RUNNER, running, wrong
from tests.unit.worker.support import Client, listening_socket, port_of


@pytest.mark.parametrize(
    "case",
    [
        (["asgi_apps"], 2, "module:attribute is taken, as main:app"),
        (["no_such_module:app"], 2, "no module 'no_such_module' in"),
        (["asgi_apps:nothing"], 2, "has no 'nothing'"),
        (["asgi_apps:not_callable"], 2, "an ASGI application is callable"),
        (
            ["broken_app:app"],
            1,
            "importing module 'broken_app' failed: RuntimeError('no settings')",
        ),
        (["needy_app:app"], 1, "module 'needy_app' needs 'not_installed', which is missing"),
        (["asgi_apps:plain", "--fd", "777"], 2, "descriptor 777 (public) is no socket"),
        (["asgi_apps:plain", "--fd", "-1"], 2, "a number from 0 is taken"),
        (["asgi_apps:plain", "--port", "99999"], 2, "a port from 0 to 65535 is taken"),
    ],
)
def test_what_is_wrong_is_said_in_the_last_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[list[str], int, str],
) -> None:
    arguments, code, said = case
    (tmp_path / "broken_app.py").write_text("raise RuntimeError('no settings')\n")
    (tmp_path / "needy_app.py").write_text("import not_installed\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(APPS), *sys.path])
    monkeypatch.setattr(os, "environ", {})
    importlib.invalidate_caches()
    if "--fd" not in arguments:
        monkeypatch.setattr("atlas_worker.asgi.__main__.find_listeners", lambda *_, **__: [])
    try:
        ended = main(arguments)
    except SystemExit as error:
        ended = int(error.code or 0)
    printed = capsys.readouterr().err
    last = printed.strip().splitlines()[-1]
    assert (ended, last.startswith("python -m atlas_worker.asgi: ")) == (code, True), printed
    assert said in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["asgi_apps:cannot_start"], "no database"),
        (["asgi_apps:needs_an_argument", "--factory"], "can't use the application"),
    ],
)
async def test_a_start_that_fails_says_so_in_the_last_line(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    ended, printed = await wrong(tmp_path, *arguments, "--port", "0")
    last = printed.strip().splitlines()[-1]
    assert (ended, last.startswith("python -m atlas_worker.asgi: ")) == (1, True), printed
    assert said in printed


def test_a_port_that_is_taken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    with listening_socket() as taken:
        port = str(port_of(taken))
        assert main(["asgi_apps:plain", "--port", port]) == 1
    printed = capsys.readouterr().err
    assert "Address already in use" in printed
    assert port in printed


async def test_without_uvicorn_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')\n")
    ended, printed = await wrong(tmp_path, "asgi_apps:plain", PYTHONPATH=str(tmp_path))
    assert ended == 1
    assert "uvicorn is missing" in printed
    assert "pip install 'uvicorn[standard]'" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "refused",
    ["--workers=4", "--reload", "--reload-dir=.", "--uds=x", "--backlog=5", "--ssl-keyfile=key"],
)
def test_options_of_uvicorn_that_the_drain_cannot_keep_are_refused_by_name(
    refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["main:app", refused])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(
        f"python -m atlas_worker.asgi: {refused.partition('=')[0]} is not taken"
    )
    assert printed.count("\n") == 1


async def test_a_factory_is_called_and_options_reach_uvicorn(tmp_path: Path) -> None:
    arguments = [*RUNNER, "asgi_apps:make", "--factory", "--root-path", "/shop", "--lifespan", "on"]
    arguments += ["--header", "X-Site:shop", "--no-server-header"]
    async with running(tmp_path, arguments) as (worker, _), Client.to(worker.port) as client:
        answer = await client.get("/scope", {"X-Forwarded-Proto": "https"})
        assert answer.json()["root_path"] == "/shop"
        assert answer.json()["scheme"] == "https"
        assert answer.headers["x-site"] == "shop"
        assert "server" not in answer.headers
        assert "date" in answer.headers


async def test_an_application_without_a_lifespan_is_served(tmp_path: Path) -> None:
    async with (
        running(tmp_path, [*RUNNER, "asgi_apps:without_lifespan"]) as (worker, _),
        Client.to(worker.port) as client,
    ):
        assert (await client.get()).body == b"plain"


async def test_the_middleware_steps_aside_under_the_runner(tmp_path: Path) -> None:
    arguments = [*RUNNER, "asgi_apps:wrapped"]
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "0.1"}
    async with (
        running(tmp_path, arguments, environ=environ) as (worker, told),
        Client.to(worker.port) as client,
    ):
        answer = await client.get(headers={"X-Atlas-Probe": "1"})
        assert answer.headers["x-atlas-instance"] == "the-instance"
        worker.terminate()
        assert await client.is_closed()
        assert await worker.exit_code() == 0
        assert not told.has("X_ATLAS_CUT")
        assert [line for line in told.lines if "LEFT" not in line] == [
            "READY=1",
            "X_ATLAS_KIT=1",
            "STOPPING=1",
            "X_ATLAS_ACCEPTING=0",
        ]


async def test_the_middleware_hides_no_start_that_failed(tmp_path: Path) -> None:
    uvicorn = ["-m", "uvicorn", "--app-dir", str(APPS), "--port", "0"]
    code, printed = await wrong(tmp_path, "asgi_apps:wrapped_cannot_start", program=uvicorn)
    assert code != 0
    assert "no database" in printed
