"""What the documents say is held against the code: routes, codes, settings, links, commands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from atlas_supervisor.api.server import table
from atlas_supervisor.cli.verbs import VERBS
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.errors import CATALOGUE
from atlas_supervisor.health.score import DEGRADED_BELOW, UNHEALTHY_BELOW, WEIGHTS, Weight
from atlas_supervisor.model.deploy import Result, StepName
from atlas_worker import contract
from scripts.doc_blocks import documents, prose
from scripts.documentation import GENERATED
from scripts.runbook import alert_rules

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
COMMANDS = (ROOT / "docs/commands.md").read_text()
README = (ROOT / "README.md").read_text()
RUNBOOK = (ROOT / "docs/runbook.md").read_text()


TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in documents()}


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


def test_every_error_of_the_catalogue_is_documented_and_no_other() -> None:
    table_of_errors = API.partition("## Errors")[2]
    documented = re.findall(r"^\| `(\w+)` \| (\d+|other)(?: \*)? \|", table_of_errors, re.MULTILINE)

    assert sorted(documented) == sorted((row.code, str(row.status or "other")) for row in CATALOGUE)


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


def test_every_setting_that_is_named_exists() -> None:
    known = {
        *FIELD_OF_KEY,
        *re.findall(
            r'= "([A-Z_]+)"', (ROOT / "worker/atlas_worker/contract/__init__.py").read_text()
        ),
    }
    families = ("ACTIVE_", "CANARY_", "CONTROL_", "HEALTH_", "KEEP_", "LLM_", "PUBLIC_", "WORKER_")
    named = {
        (document, name)
        for document, text in TEXTS.items()
        for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)
        if name.startswith(families)
    }

    assert len(named) > 100
    assert not [each for each in named if each[1] not in known]


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


def test_every_command_of_ours_that_is_named_exists() -> None:
    ours = re.compile(r"(?<![\w/])(?:\./)?(scripts/[a-z_-]+(?:\.py|@?\.service)?|\.ci/run)")
    named = {(name, found) for name, text in TEXTS.items() for found in ours.findall(text)}

    assert not {each for each in named if not (ROOT / each[1]).exists()}


# What a reader has time for.


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1400


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    pages |= {f"{path.parent.name}/README.md" for path in (ROOT / "docs").glob("*/README.md")}

    assert not [page for page in pages if f"({page})" not in index]


# Links and places.


@cache
def anchors(path: Path) -> set[str]:
    """Return the names that a forge gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(path: Path, link: str) -> bool:
    """Return whether a link of a document within the repository has no target."""
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    return not target.exists() or bool(anchor and anchor not in anchors(target))


def test_every_link_within_the_repository_leads_somewhere() -> None:
    links = [
        (name, link)
        for name, text in TEXTS.items()
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(text))
        if "://" not in link
    ]

    assert len(links) > 500
    assert not [(name, link) for name, link in links if dead(ROOT / name, link)]


def test_every_file_that_is_named_exists() -> None:
    files = re.compile(r"`((?:supervisor|worker|tests|docs|scripts)/[\w./-]+)`")
    named = {(name, found) for name, text in TEXTS.items() for found in files.findall(prose(text))}

    assert not {each for each in named if not (ROOT / each[1]).exists()}


def promises() -> list[tuple[str, str]]:
    """Return the rows of docs/security.md that name a test: promise, and its tests."""
    text = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (`tests/.+`) \|$", text, re.MULTILINE)
    assert len(rows) == text.count("| `tests/"), "a row is not of the form: promise, tests"
    return rows


@pytest.mark.parametrize(("promise", "tests"), promises())
def test_every_promise_about_security_has_its_test(promise: str, tests: str) -> None:
    for named in re.findall(r"`(.+?)`", tests):
        path, _, name = named.partition("::")
        assert (ROOT / path).is_file(), promise
        pattern = rf"^(async )?def {name}\(" if name else r"^(async )?def test_"
        assert re.search(pattern, (ROOT / path).read_text(), re.MULTILINE), f"{promise}: {named}"


def test_every_pinned_package_has_its_reason_and_no_other() -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) == sorted(pinned)


@pytest.mark.parametrize(
    "name",
    [
        *("requirements.lock", "requirements-dev.lock"),
        *("requirements-docs.lock", "requirements-sbom.lock"),
    ],
)
def test_every_pinned_version_has_hashes_and_no_index_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    for pin in re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in pin, pin
    assert "://" not in text


def test_packages_are_installed_from_wheels_with_hashes() -> None:
    for name in ("_setup", "build-docs", "sbom"):
        text = (ROOT / "scripts" / name).read_text().replace("\\\n", " ")
        calls = [line for line in text.splitlines() if "--requirement" in line]
        assert calls
        for call in calls:
            assert "--require-hashes" in call
            assert "--only-binary :all:" in call


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


def test_no_path_of_the_writers_machine_is_left_in() -> None:
    found = [
        (name, re.findall(r"/(?:work|root|home|tmp)/\S+", text)) for name, text in TEXTS.items()
    ]

    assert not [each for each in found if each[1]]


# The runbook.


def test_every_alert_error_and_suggestion_is_in_the_runbook() -> None:
    headings = {*re.findall(r"^#+ `?(\w+)`?$", RUNBOOK, re.MULTILINE)}
    rows = {*re.findall(r"^\| `(\w+)` \|", RUNBOOK, re.MULTILINE)}
    source = "".join(path.read_text() for path in (ROOT / "supervisor").rglob("*.py"))
    suggested = re.findall(r"Suggestion\(\s*code=\"(\w+)\"", source)
    remedies = re.search(r"^_REMEDIES = \{(.+?)^\}", source, re.MULTILINE | re.DOTALL)

    assert remedies is not None
    assert {rule["alert"] for rule in alert_rules()} <= headings
    assert {row.code for row in CATALOGUE} <= headings
    assert {*suggested, *re.findall(r"^    \"(\w+)\":", remedies[1], re.MULTILINE)} == rows
    assert len(suggested) > 8
