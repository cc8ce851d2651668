"""The wheel, in an environment of an application's own: the kit, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def distribution_in(requirement: str) -> str:
    """Return the name in a requirement as a project states it."""
    return canonical(re.split(r"[<>=!~ ;\[]", requirement)[0])


def run(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environ, check=True, capture_output=True, text=True, timeout=50
    ).stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment that has the wheel alone."""
    place = tmp_path_factory.mktemp("package")
    source = place / "source"  # a build writes into its source tree
    source.mkdir()
    for name in ("worker", "supervisor"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    run(*pip, "wheel", *offline, "--no-build-isolation", "-w", place, source, cwd=place)
    run(sys.executable, "-m", "venv", "--without-pip", place / "env", cwd=place)
    interpreter = place / "env/bin/python"
    wheel = next(place.glob("*.whl"))
    run(*pip, "--python", interpreter, "install", *offline, wheel, cwd=place)
    return interpreter


def test_the_environment_has_no_other_distribution(python: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import distributions as d; print(*[x.name for x in d()])"

    assert run(python, "-I", "-c", code, cwd=tmp_path).split() == ["atlas-supervisor"]


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
    "atlas_worker.asgi.protocols": "h11",  # comes with uvicorn
    "atlas_worker.asgi.runner": "uvicorn",
    "atlas_worker.asgi.settings": "uvicorn",
}


def test_every_module_of_the_kit_is_importable_but_for_the_servers_of_the_adapters(
    python: Path, tmp_path: Path
) -> None:
    missing = json.loads(run(python, "-I", "-W", "error", "-c", WALK, cwd=tmp_path))

    assert len(missing) > 10
    assert {name: package for name, package in missing.items() if package} == SERVERS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-c", "import atlas_worker.aiohttp"), "atlas_worker.aiohttp needs aiohttp"),
        (("-c", "import atlas_worker.gunicorn"), "atlas_worker.gunicorn needs gunicorn"),
        (("-m", "atlas_worker.asgi", "main:app"), "-m pip install 'uvicorn[standard]'"),
    ],
    ids=["aiohttp", "gunicorn", "asgi"],
)
def test_an_adapter_without_its_server_says_what_to_install(
    python: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
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
    assert says in done.stderr.splitlines()[-1]


def test_the_daemons_extra_brings_what_the_daemon_and_the_bundled_worker_import() -> None:
    graph = grimp.build_graph(
        "atlas_supervisor", "atlas_worker", include_external_packages=True, cache_dir=None
    )
    ours = {"atlas_supervisor", "atlas_worker.app"}
    modules = ours.union(*(graph.find_descendants(package) for package in ours))
    imported = {
        name.partition(".")[0]
        for module in modules
        for name in graph.find_modules_directly_imported_by(module)
    }
    distributions = packages_distributions()
    needed = {
        canonical(distributions[name][0])
        for name in imported - set(sys.stdlib_module_names) - {"atlas_supervisor", "atlas_worker"}
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {distribution_in(one) for one in project["optional-dependencies"]["daemon"]}
    # What a named one always brings may be imported with it: pydantic and its own core.
    brought = {
        distribution_in(one)
        for name in extra
        for one in requires(name) or []
        if "extra ==" not in one
    }

    assert len(needed & extra) > 8
    assert needed - extra <= brought
