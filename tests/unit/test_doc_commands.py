"""Every command of every document exists as it stands, and is run by a test or says why not."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from atlas_supervisor.config import load_settings
from atlas_supervisor.errors import SettingsError
from scripts import doc_commands
from scripts.doc_blocks import Command, blocks, documents
from scripts.doc_commands import faults

ROOT = Path(__file__).parents[2]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text() for path in documents()}
OF_OTHER_PROGRAMS = {"CHANGELOG.md", "docs/bundled-worker.md"}
"""They name requests to the bundled worker."""
MISSING = re.compile(r"a folder that exists|No such file")
"""A fault that the reader's machine does not have."""


def commands() -> Iterator[tuple[str, Command]]:
    """Yield every command of a block, with its document."""
    for name, text in DOCUMENTS.items():
        for block in blocks(text):
            yield from ((name, command) for command in block.commands())


def bare(name: str) -> list[str]:
    return [command.bare for document, command in commands() if document == name]


def test_every_command_in_a_block_exists_with_its_options() -> None:
    found = [
        f"{name}: {each.text}\n    {at}" for name, each in commands() for at in faults(each.text)
    ]

    assert not found, "\n".join(found)


def test_every_command_in_a_block_is_run_by_a_test_or_has_a_reason() -> None:
    found = [
        f"{name}: {command.text}"
        for name, command in commands()
        if not doc_commands.run_by(name, command.text)
        and not doc_commands.only_checked(command.text)
    ]

    assert not found, "\n".join(found)
    for name, test in doc_commands.RUN_BY.items():
        assert (ROOT / name).exists()
        assert Path(name).stem.removesuffix(".es") in (ROOT / test).read_text(), name


def test_every_call_of_the_client_in_prose_exists() -> None:
    named = [
        (name, call) for name, text in DOCUMENTS.items() for call in doc_commands.named_calls(text)
    ]
    found = [
        f"{name}: {call}: {fault}"
        for name, call in named
        for fault in faults(call)
        if not fault.startswith("Missing argument")  # the verb is named, not called
    ]

    assert len(named) > 100
    assert not found, "\n".join(found)


def test_every_request_in_prose_exists() -> None:
    named = [
        (name, *each)
        for name, text in DOCUMENTS.items()
        if name not in OF_OTHER_PROGRAMS
        for each in doc_commands.named_requests(text)
    ]
    found = [
        f"{name}: {fault}" for name, *each in named if (fault := doc_commands.endpoint_fault(*each))
    ]

    assert len(named) > 50
    assert not found, "\n".join(found)


def test_the_settings_in_blocks_are_valid(tmp_path: Path) -> None:
    shown = [(name, block) for name, text in DOCUMENTS.items() for block in blocks(text)]
    settings = [(name, block) for name, block in shown if block.settings]
    not_settings = [name for name, block in shown if block.language == "ini" and not block.settings]

    assert len(settings) > 8
    assert not not_settings
    for name, block in settings:
        (tmp_path / "atlas.env").write_text(block.text)
        try:
            load_settings(tmp_path / "atlas.env", {})
        except SettingsError as error:
            wrong = [fault for fault in error.faults if not MISSING.search(fault)]
            assert not wrong, f"{name}: {wrong}"


def test_every_block_of_data_or_python_can_be_read() -> None:
    readers = {
        "json": json.loads,
        "python": ast.parse,
        "toml": tomllib.loads,
        "yaml": yaml.safe_load,
    }
    fenced = re.compile(rf"^```({'|'.join(readers)})\n(.*?)^```", re.MULTILINE | re.DOTALL)
    found = [(name, *block) for name, text in DOCUMENTS.items() for block in fenced.findall(text)]

    assert len(found) > 20
    for name, language, text in found:
        try:
            readers[language](text)
        except (SyntaxError, ValueError, yaml.YAMLError) as error:
            pytest.fail(f"{name}: {error}\n{text}")


def test_the_spanish_readme_has_the_commands_of_the_english_one() -> None:
    assert bare("README.es.md") == bare("README.md")


def test_the_spanish_guide_has_no_command_of_its_own() -> None:
    english = {
        command.bare
        for name, command in commands()
        if name != "README.es.md" and not name.startswith("docs/es/")
    }
    spanish = bare("docs/es/operador.md")

    assert len(spanish) > 30
    assert not [command for command in spanish if command not in english]


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("altasctl status", "altasctl: unknown program"),
        ("atlasctl statsu", "No such command"),
        ("cd /srv && sudo ./scripts/atlasctl deploy --dryrun", "No such option"),
        ("atlasctl mode green | cat", "Invalid value"),
        ("x=1 atlasctl canary show", "No such command"),
        ("./scripts/begin", "scripts/begin does not exist"),
        ("./scripts/install-systemd --nwo", "unknown options: ['--nwo']"),
        ("atlas-supervisor --chekc", "unknown options: ['--chekc']"),
        ("curl -s http://127.0.0.1:8793/deploi/status", "the API has no GET /deploi/status"),
        ("curl -X POST http://localhost/deploy/status", "the API has no POST /deploy/status"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, fault: str) -> None:
    (found,) = faults(command)

    assert fault in found
