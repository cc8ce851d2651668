"""Failures of the connection: exit 3 without a daemon."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from atlas_supervisor.cli import client
from tests.unit.supervisor.cli.fakes import Played, problem, serve
from tests.unit.supervisor.cli.support import Call, Outcome, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncIterator[str]:
    """Serve something else on a free port: read a little, say `answer`, hang up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextmanager
def public_folder() -> Iterator[Path]:
    """Make a folder with an env file that every user can read, unlike pytest's own."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "state").mkdir()
        (root / "atlas.env").touch()
        yield root


def assert_no_daemon(outcome: Outcome, where: str) -> None:
    assert outcome.code == 3
    assert outcome.out == ""
    assert f"No daemon at {where}" in outcome.err


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_a_missing_socket_is_named_with_the_command_to_start_the_daemon(
    atlasctl: Call, env_file: Path, options: list[str]
) -> None:
    outcome = await atlasctl("status", *options)
    assert_no_daemon(outcome, str(env_file.parent / "state" / "supervisor.sock"))
    assert "./scripts/start" in outcome.err


async def test_a_daemon_whose_socket_was_removed_is_named_with_what_makes_it_anew(
    atlasctl: Call, env_file: Path
) -> None:
    path = env_file.parent / "state" / "supervisor.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as held:
        held.write(f"{os.getpid()}\n")
        held.flush()
        outcome = await atlasctl("status")
        assert (outcome.code, outcome.out) == (3, "")
        assert f"The daemon runs (pid {os.getpid()})" in outcome.err
        assert f"kill -HUP {os.getpid()}" in outcome.err
    assert_no_daemon(await atlasctl("status"), str(path.with_name("supervisor.sock")))


async def test_a_missing_state_folder_means_no_daemon(call: Call, tmp_path: Path) -> None:
    env_file = tmp_path / "atlas.env"
    env_file.touch()
    outcome = await call("status", "--env-file", env_file)
    assert_no_daemon(outcome, str(tmp_path / "state" / "supervisor.sock"))


async def test_a_stale_socket_means_no_daemon(atlasctl: Call, env_file: Path) -> None:
    path = env_file.parent / "state" / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert_no_daemon(await atlasctl("deploy"), str(path))


async def test_a_closed_port_means_no_daemon(call: Call) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: no other program can take it meanwhile
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        outcome = await call("status", "--url", url)
    assert_no_daemon(outcome, url)
    assert f"{url}: Connection refused." in outcome.err


async def test_an_unknown_host_means_no_daemon(call: Call) -> None:
    outcome = await call("status", "--url", "http://missing.invalid:8793")
    assert_no_daemon(outcome, "http://missing.invalid:8793")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_another_server_on_the_port_means_no_daemon(
    call: Call, answer: bytes, options: list[str]
) -> None:
    async with stranger(answer) as url:
        assert_no_daemon(await call("status", "--url", url, *options), url)


async def test_an_answer_that_is_far_too_long_is_not_waited_for(
    daemon: Played, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MOST_BYTES", client.MIB)
    daemon.play("GET", "/deploy/status", b" " * (client.MIB + 1))
    done = await call("status", "--url", daemon.url)
    assert done.code == 3
    assert "its answer has more than 1 MiB" in done.err


async def test_an_answer_of_another_server_is_escaped(call: Call) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Type: \x9b2Jtext\r\nContent-Length: 0\r\n\r\n"
    async with stranger(evil) as url:
        outcome = await call("status", "--url", url)
    assert outcome.code == 3
    assert outcome.err.replace("\n", "").isprintable()


async def test_a_hanging_daemon_times_out(
    daemon: Played, atlasctl: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.2)
    daemon.stall("GET", "/deploy/status")
    outcome = await atlasctl("status")
    assert outcome.code == 3
    assert "no answer within 0.2 s" in outcome.err


async def test_a_lost_answer_says_that_the_change_may_have_been_made(
    call: Call,
) -> None:
    async with stranger(b"") as url:
        outcome = await call("rollback", "--url", url)
    assert outcome.code == 3
    assert "may have been executed all the same" in outcome.err


@pytest.mark.needs_root
async def test_a_socket_without_permission_is_reported_as_a_refusal() -> None:
    # The first call, as root, imports all that the second one needs: the repository may lie in a
    # folder that only root can enter.
    become_nobody = (
        "import contextlib, os, sys\n"
        "from atlas_supervisor.cli.verbs import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['status', '--env-file', sys.argv[1]])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "main(['status', '--env-file', sys.argv[1]])\n"
    )
    with public_folder() as root:
        async with serve(Played(), root / "state" / "supervisor.sock"):
            (root / "state" / "supervisor.sock").chmod(0o600)
            outcome = await run([sys.executable, "-c", become_nobody, str(root / "atlas.env")])
    assert outcome.code == 1
    assert "can't be opened" in outcome.err
    assert "--token-file" in outcome.err


async def test_a_missing_token_shows_the_daemons_hint(daemon: Played, call: Call) -> None:
    refused = problem("unauthorized", "This needs the token.", "Give --token-file.")
    daemon.play("POST", "/deploy/mode", refused, status=401)
    outcome = await call("mode", "single", "--url", daemon.url)
    assert outcome.code == 1
    assert outcome.err == "✗ This needs the token.\n  Give --token-file.\n"
