"""The ASGI runner's command line, and its messages when it can't start."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from atlas_worker.asgi import command
from atlas_worker.asgi.__main__ import main
from tests.unit.worker.asgi_support import APPS, RUNNER, running, wrong
from tests.unit.worker.support import Client, listening_socket, port_of


@pytest.mark.parametrize(
    "case",
    [
        ([], 2, "Missing argument 'APP'"),
        (["asgi_apps"], 2, 'must be in format "<module>:<attribute>"'),
        (["no_such_module:app"], 2, 'Could not import module "no_such_module"'),
        (["asgi_apps:nothing"], 2, 'Attribute "nothing" not found in module "asgi_apps"'),
        (["asgi_apps:not_callable"], 2, "an ASGI application is callable"),
        (["broken_app:app"], 1, "importing broken_app:app failed: RuntimeError('no settings')"),
        (["needy_app:app"], 1, "No module named 'not_installed'"),
        (["asgi_apps:plain", "--fd", "777"], 2, "descriptor 777 (public) is not a socket"),
        (["asgi_apps:plain", "--fd", "-1"], 2, "expected a number from 0"),
        (["asgi_apps:plain", "--port", "99999"], 2, "99999 is not in the range"),
        (["asgi_apps:plain", "--port", "1", "--fd", "3"], 2, "exclude each other"),
        (["asgi_apps:plain", "--header", "shop"], 2, "'shop' is not NAME:VALUE"),
        (["asgi_apps:plain", "--http", "zttp"], 2, "'zttp' is not one of"),
        (["asgi_apps:plain", "--nonsense"], 2, "No such option '--nonsense'"),
    ],
)
def test_the_last_line_of_a_failed_start_names_the_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[list[str], int, str],
) -> None:
    arguments, code, message = case
    (tmp_path / "broken_app.py").write_text("raise RuntimeError('no settings')\n")
    (tmp_path / "needy_app.py").write_text("import not_installed\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(APPS), *sys.path])
    monkeypatch.setattr(os, "environ", {})
    importlib.invalidate_caches()
    if "--fd" not in arguments:
        monkeypatch.setattr("atlas_worker.asgi.__main__.find_listeners", lambda *_, **__: [])
    ended = main(arguments)
    printed = capsys.readouterr().err
    last = printed.strip().splitlines()[-1]
    assert (ended, last.startswith("python -m atlas_worker.asgi: ")) == (code, True), printed
    assert message in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["asgi_apps:cannot_start"], "no database"),
        (["asgi_apps:needs_an_argument", "--factory"], "can't use the application"),
    ],
)
async def test_an_application_that_fails_to_start_is_reported_in_the_last_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended, printed = await wrong(tmp_path, *arguments, "--port", "0")
    last = printed.strip().splitlines()[-1]
    assert (ended, last.startswith("python -m atlas_worker.asgi: ")) == (1, True), printed
    assert message in printed


def test_a_port_in_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    with listening_socket() as taken:
        port = str(port_of(taken))
        assert main(["asgi_apps:plain", "--port", port]) == 1
    printed = capsys.readouterr().err
    assert "Address already in use" in printed
    assert port in printed


async def test_without_uvicorn_it_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("import no_uvicorn\n")
    ended, printed = await wrong(tmp_path, "asgi_apps:plain", PYTHONPATH=str(tmp_path))
    assert ended == 1
    assert "uvicorn can't be imported (No module named 'no_uvicorn')" in printed
    assert "pip install 'uvicorn[standard]'" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "refused",
    [
        *("--workers=4", "--reload", "--reload-delay=1", "--uds=x", "--backlog=5"),
        *("--ssl-keyfile=key", "--limit-max-requests=9", "--http2", "--env-file=."),
    ],
)
def test_options_of_uvicorn_that_the_drain_cannot_keep_are_refused_by_name(
    refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["main:app", refused]) == 2
    printed = capsys.readouterr().err
    option = refused.partition("=")[0]
    assert printed.startswith(f"python -m atlas_worker.asgi: {option} is not supported: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_printed_and_nothing_is_served(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option]) == 0
    printed = capsys.readouterr().out
    assert ("--root-path" if option == "--help" else "uvicorn") in printed
    assert "--workers" not in printed


def test_variables_of_uvicorn_do_not_change_which_socket_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UVICORN_PORT", "1")
    monkeypatch.setenv("UVICORN_APP", "other:app")
    settings = command.parse("program", ["main:app"])
    assert (settings["app"], settings["port"]) == ("main:app", None)


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


async def test_the_middleware_passes_everything_through_under_the_runner(tmp_path: Path) -> None:
    arguments = [*RUNNER, "asgi_apps:wrapped"]
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "0.1"}
    async with (
        running(tmp_path, arguments, environ=environ) as (worker, reports),
        Client.to(worker.port) as client,
    ):
        answer = await client.get(headers={"X-Atlas-Probe": "1"})
        assert answer.headers["x-atlas-instance"] == "the-instance"
        worker.terminate()
        assert await client.is_closed()
        assert await worker.exit_code() == 0
        assert not reports.has("X_ATLAS_CUT")
        assert [line for line in reports.lines if "LEFT" not in line] == [
            "READY=1",
            "X_ATLAS_KIT=1",
            "STOPPING=1",
            "X_ATLAS_ACCEPTING=0",
        ]


async def test_the_middleware_does_not_hide_a_failed_startup(tmp_path: Path) -> None:
    uvicorn = ["-m", "uvicorn", "--app-dir", str(APPS), "--port", "0"]
    code, printed = await wrong(tmp_path, "asgi_apps:wrapped_cannot_start", program=uvicorn)
    assert code != 0
    assert "no database" in printed
