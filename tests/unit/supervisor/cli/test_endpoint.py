"""How the daemon is found: by env file, current folder, checkout or URL."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas_supervisor.cli import endpoint
from tests.unit.supervisor.cli.fakes import Played, serve, status
from tests.unit.supervisor.cli.support import Call


@pytest.fixture(autouse=True)
def everywhere_a_status(request: pytest.FixtureRequest) -> None:
    if "daemon" in request.fixturenames:
        request.getfixturevalue("daemon").play("GET", "/deploy/status", status())


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An env file whose daemon is not there."""
    path = tmp_path / "elsewhere.env"
    path.write_text("STATE_DIR=elsewhere\n")
    return path


async def test_the_env_file_can_be_named_after_the_verb(
    daemon: Played, call: Call, env_file: Path
) -> None:
    assert (await call("status", "--env-file", env_file)).code == 0


async def test_the_later_option_wins(
    daemon: Played, call: Call, env_file: Path, elsewhere: Path
) -> None:
    assert (await call("--env-file", elsewhere, "status", "--env-file", env_file)).code == 0
    assert (await call("--env-file", env_file, "status", "--env-file", elsewhere)).code == 3


async def test_the_environment_names_the_env_file(
    daemon: Played, call: Call, env_file: Path
) -> None:
    assert (await call("status", env={"ATLAS_ENV_FILE": str(env_file)})).code == 0


async def test_the_env_file_of_the_current_folder_is_the_default(
    daemon: Played, call: Call, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(env_file.parent)
    assert (await call("status")).code == 0


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def import_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the client's package is taken to be in."""
    folder = tmp_path / "somewhere" / "packages"
    folder.mkdir(parents=True)
    monkeypatch.setattr(endpoint, "_IMPORT_ROOT", folder)
    return folder


async def test_the_checkout_s_env_file_is_the_last_resort(
    daemon: Played, call: Call, env_file: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (env_file.parent / "pyproject.toml").touch()
    monkeypatch.setattr(endpoint, "_IMPORT_ROOT", env_file.parent / "supervisor")
    assert (await call("status")).code == 0


async def test_without_an_env_file_the_current_folder_and_the_checkout_are_named(
    call: Call, empty_folder: Path, import_root: Path
) -> None:
    (import_root.parent / "pyproject.toml").touch()
    outcome = await call("status")
    assert outcome.code == 2
    assert f"There is no atlas.env in {empty_folder} or in {import_root.parent}." in outcome.err
    assert "with --env-file or ATLAS_ENV_FILE, or its API with --url." in outcome.err


async def test_an_installed_client_neither_searches_nor_names_the_folder_of_its_packages(
    call: Call, empty_folder: Path, import_root: Path
) -> None:
    (import_root.parent / "atlas.env").write_text("STATE_DIR=elsewhere\n")
    outcome = await call("status")
    assert outcome.code == 2
    assert f"There is no atlas.env in {empty_folder}. Name" in outcome.err
    assert str(import_root.parent) not in outcome.err


@pytest.mark.parametrize(
    "line", ["STATE_DIR=data", "export STATE_DIR='data'  # here", 'STATE_DIR="./data/"']
)
async def test_state_dir_is_relative_to_the_env_file_s_folder(
    call: Call, tmp_path: Path, line: str
) -> None:
    (tmp_path / "data").mkdir()
    env_file = tmp_path / "my.env"
    env_file.write_text(line + "\n")
    played = Played()
    played.play("GET", "/deploy/status", status())
    async with serve(played, tmp_path / "data" / "supervisor.sock"):
        assert (await call("status", "--env-file", env_file)).code == 0


async def test_the_process_environment_wins_over_the_file(
    daemon: Played, call: Call, env_file: Path, elsewhere: Path
) -> None:
    assert (await call("status", "--env-file", elsewhere)).code == 3
    outcome = await call("status", "--env-file", elsewhere, env={"STATE_DIR": "state"})
    assert outcome.code == 0


async def test_a_socket_path_over_107_bytes_works(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("longer-" * 20)
    folder.mkdir(parents=True)
    env_file = tmp_path / "atlas.env"
    env_file.write_text(f"STATE_DIR={folder}\n")
    played = Played()
    played.play("GET", "/deploy/status", status())
    descriptor = os.open(folder, os.O_PATH)
    try:
        async with serve(played, Path(f"/proc/self/fd/{descriptor}/supervisor.sock")):
            assert (await call("status", "--env-file", env_file)).code == 0
    finally:
        os.close(descriptor)


async def test_a_url_needs_no_env_file_and_keeps_its_path(daemon: Played, call: Call) -> None:
    daemon.play("GET", "/behind/deploy/status", status())
    outcome = await call("status", "--url", f"{daemon.url}/behind/")
    assert outcome.code == 0
    assert daemon.asked[0].path == "/behind/deploy/status"
    assert "authorization" not in daemon.asked[0].headers


async def test_the_token_comes_from_the_environment_or_from_a_file_that_wins(
    daemon: Played, call: Call, tmp_path: Path
) -> None:
    token = tmp_path / "control.token"
    token.write_text("from-the-file\n")
    environment = {"ATLAS_TOKEN": "from-the-environment"}
    await call("status", "--url", daemon.url, env=environment)
    await call("status", "--url", daemon.url, "--token-file", token, env=environment)
    assert [asked.headers["authorization"] for asked in daemon.asked] == [
        "Bearer from-the-environment",
        "Bearer from-the-file",
    ]


async def test_the_unix_socket_is_never_sent_a_token(
    daemon: Played, call: Call, env_file: Path
) -> None:
    await call("status", "--env-file", env_file, env={"ATLAS_TOKEN": "secret"})
    assert "authorization" not in daemon.asked[0].headers


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two words", b"two\nlines", b"\xc3\xbcber", b"\xff\xfe"]
)
async def test_a_token_file_without_a_token_is_wrong_usage(
    call: Call, tmp_path: Path, content: bytes
) -> None:
    token = tmp_path / "control.token"
    token.write_bytes(content)
    outcome = await call("status", "--url", "http://127.0.0.1:1", "--token-file", token)
    assert outcome.code == 2
    assert "words" not in outcome.err  # the token itself is not repeated


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8793",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://u:secret@h",
        "http://h?a",
    ],
)
async def test_an_invalid_url_is_wrong_usage(call: Call, url: str) -> None:
    outcome = await call("status", "--url", url)
    assert outcome.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--env-file", "{env}", "--url", "http://127.0.0.1:1"],
        ["status", "--env-file", "{env}", "--token-file", "{env}"],
        ["status", "--env-file", "{env}.missing"],
        ["status", "extra"],
        ["show", "d-1", "d-2"],
        ["mode"],
        ["stats"],
        ["--bad"],
    ],
)
async def test_wrong_usage_is_exit_2_without_standard_output(
    call: Call, env_file: Path, arguments: list[str]
) -> None:
    outcome = await call(*(argument.format(env=env_file) for argument in arguments))
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err


async def test_a_missing_named_env_file_is_never_replaced_by_another(
    daemon: Played, call: Call, env_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(env_file.parent)
    outcome = await call("status", env={"ATLAS_ENV_FILE": "missing.env"})
    assert outcome.code == 2
    assert "missing.env" in outcome.err
    assert daemon.asked == []


async def test_an_env_file_that_is_not_text_is_wrong_usage(call: Call, tmp_path: Path) -> None:
    env_file = tmp_path / "atlas.env"
    env_file.write_bytes(b"STATE_DIR=\xff\xfe\n")
    assert (await call("status", "--env-file", env_file)).code == 2
