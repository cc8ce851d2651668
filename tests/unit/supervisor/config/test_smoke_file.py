from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_supervisor.config.smoke_file import SmokePlan, load_smoke_file
from atlas_supervisor.errors import SettingsError

HTTP = "[[http]]\nname = 'home'\npath = '/'\n"
COMMAND = "[[command]]\nname = 'suite'\nrun = ['pytest']\n"

Load = Callable[[str], SmokePlan]
Faults = Callable[[str], list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> SmokePlan:
        (tmp_path / "smoke.toml").write_text(text)
        return load_smoke_file(tmp_path / "smoke.toml")

    return load


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Faults:
    def faults(text: str) -> list[str]:
        with pytest.raises(SettingsError) as refused:
            load(text)
        found = refused.value.faults
        assert all(fault.startswith(f"{tmp_path}/smoke.toml: ") for fault in found)
        return found

    return faults


def test_the_example_of_the_contract_is_taken(load: Load) -> None:
    plan = load(
        """
        [[http]]
        name = "home answers"
        path = "/"
        expect = { status = 200, contains = "atlas", json = { "status" = "ok" }, max_ms = 500 }

        [[command]]
        name = "suite"
        run = ["pytest", "-q", "smoke"]
        timeout_seconds = 60
        """
    )
    (request,), (command,) = plan.http, plan.command
    assert (request.method, request.body, request.json_) == ("GET", None, None)
    assert (request.expect.status, request.expect.contains) == (200, "atlas")
    assert (request.expect.json_, request.expect.max_ms) == ({"status": "ok"}, 500)
    assert (command.run, command.timeout_seconds) == (["pytest", "-q", "smoke"], 60)


def test_an_empty_file_is_a_plan_without_tests(load: Load) -> None:
    assert load("") == SmokePlan()


def test_the_expected_status_is_200_by_default(load: Load) -> None:
    assert load(HTTP).http[0].expect.status == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HTTP + "timeout = 3", "[[http]] 'home': timeout is not an accepted field"),
        (HTTP + "expect = { code = 200 }", "[[http]] 'home': expect.code is not an accepted field"),
        (HTTP + "expect = { status = '200' }", "[[http]] 'home': expect.status = '200'"),
        (HTTP + "expect = { status = 99 }", "expect.status = 99"),
        (HTTP + "expect = { status = true }", "expect.status = True"),
        (HTTP + "expect = { contains = '' }", "expect.contains = ''"),
        (HTTP + "expect = { max_ms = 0 }", "expect.max_ms = 0: input should be greater than 0"),
        (HTTP + "expect = { json = { day = 2020-01-01 } }", "expect.json"),
        (HTTP + "method = 'get'", "method = 'get': accepted is a method in capitals, as GET"),
        (HTTP + "body = 'a'\njson = {}", "body and json: accepted is one of them"),
        (HTTP + "headers = { 'a b' = 'c' }", "'a b' is not a valid header"),
        (HTTP + 'headers = { a = "b\\r\\nc: d" }', "'a' is not a valid header"),
        (HTTP + "headers = { a = 1 }", "headers.a = 1"),
        (HTTP + "timeout_seconds = nan", "timeout_seconds = nan"),
        (HTTP + "timeout_seconds = 0", "timeout_seconds = 0"),
        (HTTP + HTTP, "'home' is the name of two tests"),
        (HTTP + COMMAND.replace("suite", "home"), "'home' is the name of two tests"),
        ("[[http]]\npath = '/'", "[[http]] 1: name is missing"),
        ("[[http]]\nname = ' '\npath = '/'", "name = ' ': accepted is a text without space"),
        ("[[http]]\nname = ''\npath = '/'", "[[http]] 1: name = ''"),
        (
            "[[http]]\nname = 'a'\npath = 'http://host/'",
            "'http://host/': accepted is a path",
        ),
        ("[http]\nname = 'a'\npath = '/'", "[http]: accepted is [[http]]"),
        ("http = ['/']", "[[http]] 1"),
        ("[[https]]\nname = 'a'", "'https': accepted are tables [[http]] and [[command]]"),
        ("[[command]]\nname = 'a'\nrun = 'pytest'", "[[command]] 'a': run = 'pytest'"),
        ("[[command]]\nname = 'a'\nrun = []", "run = []"),
        ("[[command]]\nname = 'a'\nrun = ['']", "run: accepted is a program"),
        ('[[command]]\nname = "a"\nrun = ["a\\u0000b"]', "run: accepted is a program"),
        ("[[http]", "a TOML file is accepted"),
        ("http = " + "[" * 10_000, "nested too deeply; a TOML file is accepted"),
    ],
)
def test_a_fault_names_the_test_and_the_field(faults: Faults, text: str, words: str) -> None:
    found = faults(text)
    assert any(words in fault for fault in found), found


def test_all_faults_are_reported_at_once(faults: Faults) -> None:
    found = faults(HTTP + "x = 1\n" + HTTP + "y = 1\n" + COMMAND + "z = 1\n")
    assert len(found) == 4


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "smoke.toml"
    path.write_text(HTTP, encoding="utf-8-sig")
    assert len(load_smoke_file(path).http) == 1


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "smoke.toml"
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="accepted"):
        load_smoke_file(path)
