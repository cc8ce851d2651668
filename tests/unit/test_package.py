"""The wheel in an environment of its own, beside an application and PyPI's supervisor."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from importlib.metadata import distribution, packages_distributions, requires
from pathlib import Path

import grimp
import pytest
from poetry.core.masonry import api as backend

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def distribution_in(requirement: str) -> str:
    """Return the name in a requirement as a project states it."""
    return canonical(re.split(r"[<>=!~ ;\[(]", requirement)[0])


def with_dependencies(*names: str) -> set[str]:
    """Return these distributions and what they always need, as this environment has it."""
    found, left = set(), list(names)
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += [
                distribution_in(one)
                for one in requires(name) or ()
                if "extra ==" not in one and "python_version <" not in one
            ]
    return found


def link(names: Iterable[str], folder: Path) -> None:
    """Put these distributions, as this environment has them, into another `site-packages`."""
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Return what a command prints; modules are looked for in `path` too."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environ["PYTHONPATH"] = str(path)
    return subprocess.run(
        command, cwd=cwd, env=environ, check=True, capture_output=True, text=True, timeout=50
    ).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project that has more than the packages in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("worker", "supervisor", "scripts"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE", "atlas.env"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    run(*pip, *offline, "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment that has the wheel and PyPI's supervisor."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    interpreter = place / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    run(*pip, "--python", interpreter, "install", *offline, wheel, cwd=place)
    link(["supervisor"], next(place.glob("lib/python3*/site-packages")))
    return interpreter


@pytest.fixture(scope="module")
def uvicorn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for `PYTHONPATH` with uvicorn and what it needs."""
    folder = tmp_path_factory.mktemp("uvicorn")
    link(with_dependencies("uvicorn"), folder)
    return folder


def extra(name: str = "daemon") -> set[str]:
    """Return the distributions that an extra names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {distribution_in(one) for one in project["optional-dependencies"][name]}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for `PYTHONPATH` with what the extra `daemon` brings, and nothing else."""
    folder = tmp_path_factory.mktemp("daemon")
    link(with_dependencies(*extra()), folder)
    return folder


def test_the_plain_distribution_brings_no_other(python: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import distributions as d; print(*sorted(x.name for x in d()))"

    assert run(python, "-I", "-c", code, cwd=tmp_path).split() == ["atlas-supervisor", "supervisor"]
    assert [one for one in requires("atlas-supervisor") or () if "extra ==" not in one] == []


def test_the_wheel_has_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}

    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert tops == {"atlas_supervisor", "atlas_worker", info}


def test_the_source_distribution_has_the_packages_and_their_documents_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}

    documents = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert tops == {"supervisor", "worker"} | documents


def test_the_editable_install_adds_the_two_source_roots_and_no_import_hook() -> None:
    path, hooks = run(
        sys.executable, "-c", "import sys; print(sys.path, sys.meta_path, sep='\\n')", cwd=ROOT
    ).splitlines()

    assert {str(ROOT / "supervisor"), str(ROOT / "worker")} <= set(eval(path))  # noqa: S307 - a list that Python itself has printed
    assert "editable" not in hooks.lower()


WALK = """
import importlib, json, pkgutil, atlas_worker
missing = {}
for module in pkgutil.walk_packages(atlas_worker.__path__, "atlas_worker."):
    if module.name.startswith(("atlas_worker.app", "atlas_worker.__main__")):
        continue  # the bundled worker, which needs aiohttp
    try:
        importlib.import_module(module.name)
        missing[module.name] = None
    except ImportError as error:
        missing[module.name] = (error.__cause__ or error).name.partition(".")[0]
print(json.dumps(missing))
"""
SERVERS = {
    "atlas_worker.aiohttp": "aiohttp",
    "atlas_worker.aiohttp_streams": "aiohttp",
    "atlas_worker.gunicorn": "gunicorn",
    "atlas_worker.asgi.command": "click",  # comes with uvicorn
    "atlas_worker.asgi.protocols": "h11",  # the same
    "atlas_worker.asgi.runner": "uvicorn",
}


def test_every_module_of_the_kit_is_importable_but_for_the_servers_of_the_adapters(
    python: Path, tmp_path: Path
) -> None:
    missing = json.loads(run(python, "-I", "-W", "error", "-c", WALK, cwd=tmp_path))

    assert len(missing) > 10
    assert {name: package for name, package in missing.items() if package} == SERVERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "import atlas_worker.aiohttp"), "atlas_worker.aiohttp needs aiohttp"),
        (("-c", "import atlas_worker.gunicorn"), "atlas_worker.gunicorn needs gunicorn"),
        (("-m", "atlas_worker.asgi", "main:app"), "-m pip install 'uvicorn[standard]'"),
    ],
    ids=["aiohttp", "gunicorn", "asgi"],
)
def test_an_adapter_without_its_server_names_what_to_install(
    python: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = subprocess.run(
        [python, "-I", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


APPLICATION = """
import json
import supervisor, worker
from atlas_worker import canary, is_canary_enabled, record_canary_call, use_canary_version


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    async with canary.call("vision") as call:
        arm = call.is_canary
    record_canary_call("vision", use_canary_version("vision", key="7"), True, 1.5)
    found = [worker.OWN, supervisor.OWN, arm, is_canary_enabled()]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """Return a folder with an application whose modules have the names of packages."""
    (tmp_path / "main.py").write_text(APPLICATION)
    for name in ("worker", "supervisor"):
        (tmp_path / f"{name}.py").write_text("OWN = __name__\n")
    return tmp_path


def test_an_application_with_a_worker_and_a_supervisor_module_of_its_own_is_served(
    python: Path, uvicorn: Path, application: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = listening.fileno()
        command = [str(python), "-m", "atlas_worker.asgi", "main:app", "--fd", str(descriptor)]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(uvicorn)}
        process = subprocess.Popen(command, cwd=application, env=environ, pass_fds=[descriptor])
        connection = HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=20)
        try:
            connection.request("GET", "/")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
            process.terminate()
            ended = process.wait(20)

    assert answer == ["worker", "supervisor", False, False]
    assert ended == 0


@pytest.fixture
def supervisord(python: Path, tmp_path: Path) -> Iterator[Path]:
    """Run PyPI's supervisor in the same environment; yields its configuration."""
    configuration, address = tmp_path / "supervisord.conf", tmp_path / "control"
    configuration.write_text(
        f"[unix_http_server]\nfile={address}\n[supervisord]\nnodaemon=true\n"
        f"logfile={tmp_path}/log\npidfile={tmp_path}/pid\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl=unix://{address}\n"
    )
    command = [str(python), "-c", program("supervisord"), "--configuration", str(configuration)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "supervisord started" in line:
                break
        yield configuration
    finally:
        process.terminate()
        process.communicate(timeout=20)


def program(name: str) -> str:
    """Return the code of a console program."""
    return (
        "from importlib.metadata import entry_points as e;"
        f"e(group='console_scripts', name={name!r})[{name!r}].load()()"
    )


def test_supervisor_of_the_package_index_works_beside_it(
    python: Path, supervisord: Path, application: Path
) -> None:
    start: list[str | Path] = [
        python,
        "-P",
        "-c",
    ]  # a console program does not look into the working folder
    control = [*start, program("supervisorctl"), "--configuration", supervisord, "version"]

    for command in (control, [*start, program("supervisord"), "--version"]):
        assert run(*command, cwd=application).strip() == distribution("supervisor").version


@pytest.mark.parametrize("command", ["atlas-supervisor", "atlasctl"])
def test_the_extra_gives_programs_that_run_from_any_folder(
    python: Path, daemon: Path, application: Path, command: str
) -> None:
    assert run(python.with_name(command), "--help", cwd=application, path=daemon)

    module = {"atlas-supervisor": "atlas_supervisor", "atlasctl": "atlas_supervisor.cli"}[command]
    printed = run(python.with_name(command), "--version", cwd=application, path=daemon)
    assert printed.split()[-1] == distribution("atlas-supervisor").version
    assert run(python, "-m", module, "--version", cwd=application, path=daemon) == printed


def test_the_daemon_of_the_wheel_accepts_a_configuration(
    python: Path, daemon: Path, tmp_path: Path
) -> None:
    (tmp_path / "atlas.env").write_text(f"STATE_DIR={tmp_path}/state\n")
    printed = run(python.with_name("atlas-supervisor"), "--check", cwd=tmp_path, path=daemon)

    assert f"STATE_DIR={tmp_path}/state" in printed.splitlines()
    assert printed.splitlines()[-1] == "OK"


def test_the_daemons_extra_brings_what_the_daemon_and_the_bundled_worker_import() -> None:
    graph = grimp.build_graph(
        "atlas_supervisor", "atlas_worker", include_external_packages=True, cache_dir=None
    )
    ours = {"atlas_supervisor", "atlas_worker.app"}
    modules = ours.union(*(graph.find_descendants(package) for package in ours))
    screen = {"atlas_supervisor.cli.top.app", "atlas_supervisor.cli.top.dialogs"}
    imported = {
        name.partition(".")[0]
        for module in modules - screen
        for name in graph.find_modules_directly_imported_by(module)
    }
    distributions = packages_distributions()
    needed = {
        canonical(distributions[name][0])
        for name in imported - set(sys.stdlib_module_names) - {"atlas_supervisor", "atlas_worker"}
    }
    # A package that another one always brings may be imported with it: pydantic and its core.
    brought = {
        distribution_in(one)
        for name in extra()
        for one in requires(name) or []
        if "extra ==" not in one
    }

    assert len(needed & extra()) > 8
    assert needed - extra() <= brought
    assert extra("tui") == {"textual"}
    assert screen == {
        module for module in modules if "textual" in graph.find_modules_directly_imported_by(module)
    }
