"""How the bundled worker starts: what it needs, what it refuses, what it leaves out."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_worker import contract
from atlas_worker.app.server import main
from atlas_worker.instance import Instance
from tests.unit.support import ADAPTERS
from tests.unit.worker.support import PLAIN, Client, listening_socket, port_of

ROOT = Path(__file__).parents[3]


def start(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlas_worker", *arguments],
        cwd=tmp_path, env={**PLAIN, **environ},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_bad_environment_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    ended = start(tmp_path, "--port", "0", ATLAS_PORT="http")
    assert ended.returncode == 2
    assert ended.stderr == "worker: ATLAS_PORT='http': expected a port from 1 to 65535\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATLAS_PORT", "70000"),
        ("ATLAS_PORT", "0"),
        ("ATLAS_DRAIN_TIMEOUT_SECONDS", "soon"),
        ("ATLAS_DRAIN_TIMEOUT_SECONDS", "nan"),
        ("ATLAS_IDLE_GRACE_SECONDS", "-1"),
        ("SCHEDULER_ENABLED", "maybe"),
        ("MEMORY_ENABLED", "2"),
    ],
)
def test_a_bad_variable_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["--port", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"worker: {name}={value!r}: ")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "x"], ["--port", "70000"], ["--nonsense"], ["--port", "1", "--fd", "3"]],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with listening_socket() as taken:
        port = str(port_of(taken))
        ended = start(tmp_path, "--port", port)
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr
    assert port in ended.stderr


def test_a_state_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = start(tmp_path, "--port", "0", ATLAS_STATE_DIR="file")
    assert ended.returncode == 1
    assert "file/worker" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_worker_runs_without_a_supervisor(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "atlas_worker", "--port", "0",
        cwd=tmp_path, env=PLAIN, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)):
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line
        async with Client.to(int(found[1])) as client:
            answer = await client.get("/health")
            assert answer.json()["status"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert (await client.get()).status == 200
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert (tmp_path / "state" / "worker" / "memory.db").is_file()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_the_kit_needs_nothing_but_the_standard_library() -> None:
    kit = sorted(path.stem for path in (ROOT / "worker" / "atlas_worker").glob("*.py"))
    modules = ["atlas_worker", "atlas_worker.contract"] + [
        f"atlas_worker.{name}" for name in kit if name not in ADAPTERS | {"__init__", "__main__"}
    ]
    # -I -S: neither site-packages nor the environment can help out.
    code = f"import sys; sys.path.append({str(ROOT / 'worker')!r})\nimport {', '.join(modules)}\n"
    code += "print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    tops = {name.partition(".")[0] for name in ended.stdout.split()}
    assert tops - set(sys.stdlib_module_names) == {"atlas_worker", "__main__"} - set(
        sys.stdlib_module_names
    )


def test_an_instance_is_read_from_its_environment(tmp_path: Path) -> None:
    instance = Instance.from_environment(
        {
            contract.ENV_SLOT: "blue",
            contract.ENV_PORT: "8791",
            contract.ENV_INSTANCE: "i-1",
            contract.ENV_VERSION: "2.0",
            contract.ENV_CHANNEL: "beta",
            contract.ENV_STATE_DIR: str(tmp_path),
            contract.ENV_DRAIN_TIMEOUT: "12.5",
            contract.ENV_IDLE_GRACE: "0",
        }
    )
    assert (instance.id, instance.slot, instance.port) == ("i-1", "blue", 8791)
    assert (instance.version, instance.channel) == ("2.0", "beta")
    assert instance.state_file == tmp_path / "deploy_state.json"
    assert (instance.drain_timeout, instance.idle_grace) == (12.5, 0)


def test_two_instances_without_a_supervisor_have_different_ids() -> None:
    first, second = Instance.from_environment({}), Instance.from_environment({})
    assert first.id != second.id
    assert (first.slot, first.port, first.idle_grace) == (None, None, 5)
