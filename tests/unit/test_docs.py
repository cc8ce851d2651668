"""What the documents say is held against the code: routes, codes, settings, links, commands."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import pytest

from atlas_supervisor.api.responses import _BY_STATUS
from atlas_supervisor.api.server import table
from atlas_supervisor.cli.__main__ import VERBS
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.health.score import DEGRADED_BELOW, UNHEALTHY_BELOW, WEIGHTS, Weight
from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.step import StepName
from atlas_worker import contract
from scripts.documentation import GENERATED

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
API = (ROOT / "docs/api.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
COMMANDS = (ROOT / "docs/commands.md").read_text()
README = (ROOT / "README.md").read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# Generated documents.


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_document_is_up_to_date(name: str) -> None:
    write: Callable[[], str] = GENERATED[name]

    assert (ROOT / name).read_text() == write(), "run ./scripts/generate-docs"


# The control API.


def test_every_route_is_documented_and_no_other() -> None:
    documented = re.findall(r"^### `([A-Z]+) (\S+)`$", API, re.MULTILINE)

    assert sorted(documented) == sorted((route.method, route.path) for route in table("1"))


def test_every_result_and_step_of_a_deploy_is_documented() -> None:
    assert not [word for word in (*Result, *StepName) if f"`{word}`" not in API]


def raised_codes() -> Iterator[tuple[str, str]]:
    """Yield where a RefusedError is made and its code; `{…}` stands for what is filled in."""
    for path in sorted((ROOT / "supervisor").rglob("*.py")):
        module = ast.parse(path.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "RefusedError":
                where = f"{name_of(path)}:{node.lineno}"
                for code in codes_in(node.args[0], module):
                    yield where, code


def codes_in(node: ast.expr, module: ast.Module) -> set[str]:
    """Return the texts that an expression can stand for, names looked up in its module."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.JoinedStr):
        parts = (str(p.value) if isinstance(p, ast.Constant) else "{…}" for p in node.values)
        return {"".join(parts)}
    assert isinstance(node, ast.Name), ast.unparse(node)
    found: set[str] = set()
    for other in ast.walk(module):
        if isinstance(other, ast.Assign):
            found |= assigned(node.id, other)
        elif isinstance(other, ast.FunctionDef):
            names = [argument.arg for argument in other.args.args if argument.arg != "self"]
            if node.id in names:
                found |= passed(other.name, names.index(node.id), module)
    return found


def assigned(name: str, node: ast.Assign) -> set[str]:
    """Return the text that the assignment gives to the name, if it is one."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = list(zip(target.elts, value.elts, strict=True))
    else:
        pairs = [(target, value)]
    return {
        str(given.value)
        for taken, given in pairs
        if isinstance(taken, ast.Name) and taken.id == name and isinstance(given, ast.Constant)
    }


def passed(function: str, position: int, module: ast.Module) -> set[str]:
    """Return the texts that calls of the function in its own module give for a parameter."""
    calls = (node for node in ast.walk(module) if isinstance(node, ast.Call))
    given = (
        call.args[position]
        for call in calls
        if ast.unparse(call.func).removeprefix("self.") == function and len(call.args) > position
    )
    return {str(value.value) for value in given if isinstance(value, ast.Constant)}


def test_every_code_of_a_refusal_is_documented() -> None:
    codes = [*raised_codes(), *(("aiohttp's own", code) for code, _ in _BY_STATUS.values())]
    undocumented = [
        (where, code)
        for where, code in codes
        if not re.search(f"`{re.escape(code).replace(re.escape('{…}'), '[a-z_]+')}`", API)
    ]

    assert len(codes) > 25
    assert undocumented == []


def test_no_code_is_documented_that_nobody_raises() -> None:
    known = {code for _, code in raised_codes()} | {code for code, _ in _BY_STATUS.values()}
    patterns = [re.escape(code).replace(re.escape("{…}"), "[a-z_]+") for code in known]
    errors = API.partition("## Errors")[2]
    documented = {
        code
        for cell in re.findall(r"^\| (`.+?) \| (?:\d|other)", errors, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", cell)
    }
    assert documented

    unknown = {code for code in documented if not any(re.fullmatch(p, code) for p in patterns)}
    assert unknown == {"refused"}  # for any other status that aiohttp may refuse with


# The worker contract.


def test_every_word_to_the_supervisor_is_documented() -> None:
    text = (ROOT / "docs/worker-contract.md").read_text()
    words = [value for name, value in vars(contract).items() if name.startswith("NOTIFY_")]

    assert len(words) > 5
    assert not [word for word in (*words, *contract.LEFT_KINDS) if word not in text]


def test_every_adapters_page_is_in_the_adapters_index() -> None:
    pages = {path.name for path in (ROOT / "docs/adapters").glob("*.md")} - {"README.md"}
    index = (ROOT / "docs/adapters/README.md").read_text()

    assert pages
    assert not [page for page in pages if f"({page})" not in index]


# Health.


def test_every_checks_weight_is_documented_as_it_is() -> None:
    text = (ROOT / "docs/health.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) % \| (\d+) % \|", text, re.MULTILINE)

    assert {name: Weight(int(fail) / 100, int(warn) / 100) for name, warn, fail in rows} == WEIGHTS
    assert f"| {DEGRADED_BELOW} to 100 | `healthy`" in text
    assert f"| {UNHEALTHY_BELOW} to {DEGRADED_BELOW - 1} | `degraded`" in text
    assert set(re.findall(r"^\| `(\w+)` \| the (?:worker|daemon)", text, re.MULTILINE)) == set(
        WEIGHTS
    )


# Settings and commands.


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    known = {
        *FIELD_OF_KEY,
        *re.findall(
            r'= "([A-Z_]+)"', (ROOT / "worker/atlas_worker/contract/__init__.py").read_text()
        ),
    }
    families = ("ACTIVE_", "CANARY_", "CONTROL_", "HEALTH_", "KEEP_", "LLM_", "PUBLIC_", "WORKER_")
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", path.read_text()))

    assert not {name for name in named if name.startswith(families)} - known


def test_the_settings_that_take_only_their_defaults_are_named_as_limits() -> None:
    text = (ROOT / "docs/limits.md").read_text()

    assert "`TRAFFIC_RAMP` and `TRAFFIC_STICKY` accept only their defaults" in text


def command_lines(verbs: Iterable[click.Command], word: str = "atlasctl") -> Iterator[str]:
    """Yield how each verb is called; of a group, each of its own verbs."""
    for verb in verbs:
        line = f"{word} {verb.name}"
        if isinstance(verb, click.Group):
            yield from command_lines(verb.commands.values(), line)
        else:
            yield line


def test_every_verb_of_the_client_is_documented() -> None:
    lines = list(command_lines(VERBS))

    assert "atlasctl canary set" in lines
    assert not [line for line in lines if not re.search(rf"{line}(?![\w-])", COMMANDS)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_of_ours_that_is_named_exists(path: Path) -> None:
    named = set(
        re.findall(r"(?<![\w/])(?:\./)?(scripts/[a-z_-]+(?:\.py)?|\.ci/run)", path.read_text())
    )

    assert not {name for name in named if not (ROOT / name).exists()}


# What a reader has time for.


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1400


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    pages |= {f"{path.parent.name}/README.md" for path in (ROOT / "docs").glob("*/README.md")}

    assert not [page for page in pages if f"({page})" not in index]


# Links and places.


def anchors(path: Path) -> set[str]:
    """Return the names that a forge gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    text = prose(path.read_text())
    named = re.findall(r"`((?:supervisor|worker|tests|docs|scripts)/[\w./-]+)`", text)

    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_module_that_the_architecture_names_exists() -> None:
    roots = (ROOT, ROOT / "supervisor/atlas_supervisor", ROOT / "worker")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", ARCHITECTURE)

    assert len(named) > 40
    assert not [name for name in named if not any((root / name).exists() for root in roots)]


def test_the_layers_are_documented_as_the_linter_holds_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(
        each["layers"] for each in contracts if each["containers"] == ["atlas_supervisor"]
    )
    shown = re.search(r"^__main__ → .*?^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)

    assert shown is not None
    assert shown[0].removesuffix("```").split() == " → ".join(layers).split()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_path_of_the_writers_machine_is_left_in(path: Path) -> None:
    assert not re.findall(r"/(?:work|root|home|tmp)/\S+", path.read_text())
