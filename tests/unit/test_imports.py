"""Holds the tree to its import contracts; they stand in pyproject.toml, each with its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.unit.support import ADAPTERS

ROOT = Path(__file__).parents[2]

SOURCE = ROOT / "worker"
PROGRAMS = {"atlas_worker.__main__", "atlas_worker.app"}
"""The bundled worker, which may import what it needs."""
KIT = sorted(
    {path.stem for path in (SOURCE / "atlas_worker").glob("*.py")}
    - ADAPTERS
    - {"__init__", "__main__"}
)


def test_every_import_contract_is_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kit_imports_nothing_but_itself_the_contract_and_the_standard_library() -> None:
    graph = grimp.build_graph("atlas_worker", include_external_packages=True, cache_dir=None)
    adapters = {f"atlas_worker.{name}" for name in ADAPTERS}
    kit = {"atlas_worker"} | graph.find_descendants("atlas_worker")
    kit -= PROGRAMS | graph.find_descendants("atlas_worker.app")

    foreign = {
        (module, imported)
        for module in kit - adapters
        for imported in graph.find_modules_directly_imported_by(module)
        if imported not in kit - adapters and imported not in sys.stdlib_module_names
    }

    assert not foreign


@pytest.mark.parametrize(
    "module",
    [
        "atlas_worker",
        "atlas_worker.contract.ring",
        "atlas_worker.asgi",
        "atlas_worker.canary",
        *(f"atlas_worker.{m}" for m in KIT),
    ],
)
def test_the_kit_is_there_without_any_package_installed(module: str) -> None:
    subprocess.run(  # -S: no site-packages, as in an application that installed nothing else
        [sys.executable, "-S", "-W", "error", "-c", f"import {module}"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=True,
        timeout=30,
    )


def test_no_test_module_imports_another_one() -> None:
    shared = re.compile(r"^from tests\.\S*\.(?:test_\w+|conftest) import", re.MULTILINE)
    found = [path for path in (ROOT / "tests").rglob("*.py") if shared.search(path.read_text())]

    assert not found
