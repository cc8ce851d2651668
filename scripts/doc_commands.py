"""The commands of the documents, held against the code.

`tests/unit/test_doc_commands.py` checks all of them so. `tests/integration/test_doc_commands.py`
and the tests in `RUN_BY` run them. `./scripts/check-docs` does all of it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import click

from atlas_supervisor.api.server import table
from atlas_supervisor.cli.verbs import main
from scripts.doc_blocks import prose

ROOT = Path(__file__).resolve().parents[1]

CLIENTS = ("atlasctl", "./scripts/atlasctl", "/opt/atlas/bin/atlasctl")
DAEMONS = ("atlas-supervisor", "./scripts/start")

NOT_HERE = {
    "./scripts/check-docs": "runs this test",
    "./scripts/lint": "is run beside the tests",
    "./scripts/renew-locks": "needs a package index",
    "./scripts/screenshots": "its pictures are for people; tests/browser looks at the same pages",
    "./scripts/simulate": "tests/simulation plays the same stories",
    "./scripts/test": "runs this test",
    "./scripts/trace": "tests/integration/test_tracing.py does the same",
    "./scripts/start": "does not end; tests/acceptance/test_readme.py runs it",
    "atlas-supervisor": "does not end; tests/acceptance/test_readme.py runs it",
    "docker": "needs a container runtime",
    "ssh": "needs a second machine",
}
"""Programs that no test can run, and why; a command with one of them is only checked."""

ON_A_SERVER = {"apt-get", "du", "journalctl", "man", "promtool", "sudo", "systemctl"}
"""Programs that are run on a machine of their own, which a real systemd runs."""

SERVER = "tests/systemd/test_documents.py"
"""It runs the calls of these programs, in the pages that are not in RUN_BY."""

RUNNER = "tests/integration/test_doc_commands.py"
"""It runs every call of the client and the API in the pages that are not in RUN_BY."""

RUN_BY = {
    "README.md": "tests/acceptance/test_readme.py",
    "README.es.md": "tests/acceptance/test_readme.py",
    "docs/fleet.md": "tests/integration/test_fleet_page.py",
    "docs/how-to/backup.md": "tests/integration/test_how_to.py",
    "docs/how-to/ci-pipeline.md": "tests/integration/test_how_to.py",
    "docs/how-to/django.md": "tests/acceptance/test_pages.py",
    "docs/how-to/go.md": "tests/acceptance/test_pages.py",
    "docs/how-to/haproxy.md": "tests/integration/test_haproxy.py",
    "docs/how-to/migrations.md": "tests/integration/test_how_to.py",
    "docs/how-to/node.md": "tests/acceptance/test_pages.py",
    "docs/how-to/reverse-proxy.md": "tests/integration/test_how_to.py",
    "docs/how-to/static-files.md": "tests/integration/test_how_to.py",
    "docs/commands.md": SERVER,
    "docs/how-to/several-applications.md": SERVER,
    "docs/how-to/systemd.md": SERVER,
    "docs/tutorial-server.md": SERVER,
    "docs/tutorial.md": SERVER,
}
"""The test that runs a page's blocks, as they stand."""

VERBS_ELSEWHERE = {
    "completion": "tests/unit/supervisor/cli/test_completion.py",
    "doctor": "tests/unit/supervisor/cli/test_doctor.py",
    "init": "tests/unit/supervisor/cli/test_init.py",
    "prune": "tests/integration/test_local_verbs.py",
    "reload": "tests/integration/test_reload.py",
}
"""Verbs that change more than a daemon, and the tests that run them."""

SHELL = {
    *(".", "awk", "cat", "cd", "chmod", "chown", "cp", "curl", "date", "echo", "etcdctl"),
    *("eval", "exit", "export", "find", "git", "go", "grep", "gunicorn", "head", "id"),
    *("install", "jq", "kill", "ln", "ls", "mkdir", "mv", "node", "openssl", "pip", "printf"),
    *("python", "python3", "rm", "rsync", "sed", "set", "sh", "socat", "sort", "tail", "tar"),
    *("tee", "test", "touch", "umask", "useradd", "uvicorn", "xargs"),
}
"""Other programs that a document may use."""

KEYWORDS = {"do", "done", "else", "fi", "if", "then", "while", "!", "{", "}", "time", "exec"}
PREFIXES = {"sudo", "env"}


# What a command calls.


def calls(command: str) -> Iterator[list[str]]:
    """Yield the words of each program that a command line calls, without redirections.

    What stands in quotes or `$(...)` within a word is a part of that word.
    """
    line = re.sub(r"<<'\w+'.*", "", command.replace("\\\n", " "), flags=re.DOTALL)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if set(token) <= set("<>&") and set(token) & set("<>"):
            next(tokens, None)
        elif set(token) <= set(";&|()"):
            yield from _called(words)
            words = []
        else:
            words.append(token)
    yield from _called(words)


def _called(words: list[str]) -> Iterator[list[str]]:
    """Yield a call, without what stands before its program; nothing for assignments alone."""
    if words[:1] == ["for"]:
        return
    rest = list(words)
    while rest and (rest[0] in KEYWORDS | PREFIXES or re.match(r"[A-Za-z_]\w*=", rest[0])):
        rest.pop(0)
    if rest:
        yield rest


def programs(command: str) -> list[str]:
    """Return the programs that a command line calls; `sudo` is one."""
    sudo = ["sudo"] if re.search(r"\bsudo\b", command) else []
    return sudo + [words[0] for words in calls(command)]


def run_by(name: str, command: str) -> str | None:
    """Return the test that runs a command of a document; None if none does."""
    if name in RUN_BY:
        return RUN_BY[name]
    if only_checked(command):
        return None
    for words in calls(command):
        if words[0] in CLIENTS and words[1:] and words[1] in VERBS_ELSEWHERE:
            return VERBS_ELSEWHERE[words[1]]
    if ON_A_SERVER & {*programs(command)}:
        return SERVER
    asks = any(each in {*CLIENTS, "curl", "cat", "tail"} for each in programs(command))
    return RUNNER if asks else None


def only_checked(command: str) -> str | None:
    """Return why no test runs a command of a document; None if there is no reason."""
    reasons = [NOT_HERE[each] for each in programs(command) if each in NOT_HERE]
    return next(iter(reasons), None)


def does_not_end(command: str) -> bool:
    """Return whether a command goes on until it is ended."""
    return bool(re.search(r"logs .*-f\b|show .*-f\b|curl .*-s?N\b|tail -F", command))


# What is wrong with a command.


def faults(command: str) -> Iterator[str]:
    """Yield a line for each thing in a command line that does not exist."""
    for words in calls(command):
        program, *arguments = words
        if program in CLIENTS:
            fault = client_fault(arguments)
        elif program in DAEMONS:
            fault = unknown_option(arguments, {"--env-file", "--check", "--version"})
        elif program.removeprefix("./").startswith("scripts/"):
            fault = script_fault(program.removeprefix("./"), arguments)
        elif program == "curl":
            fault = request_fault(arguments)
        elif (
            program in SHELL
            or program in NOT_HERE
            or program in ON_A_SERVER
            or program.startswith(("./", "/", ".venv/", "$"))
        ):
            fault = None
        else:
            fault = f"{program}: unknown program"
        if fault:
            yield fault


def client_fault(arguments: list[str]) -> str | None:
    """Return the usage error of a call of `atlasctl`; None if the call is right."""
    context = click.Context(main, info_name="atlasctl")
    command: click.Command = main
    rest = arguments
    try:
        while isinstance(command, click.Group):
            with command.make_context(command.name or "", rest, parent=context) as context:
                rest = [*context._protected_args, *context.args]  # noqa: SLF001 - click has no other
            name, found, rest = command.resolve_command(context, rest)
            command = found or command
        command.make_context(name, rest, parent=context)
    except click.exceptions.Exit:
        return None  # it printed a help
    except click.BadParameter as error:
        if isinstance(error.param and error.param.type, click.Path):
            return None  # the file is on the reader's machine
        return error.format_message()
    except click.UsageError as error:
        return error.format_message()
    return None


def unknown_option(arguments: list[str], known: set[str]) -> str | None:
    given = {each.split("=")[0] for each in arguments if each.startswith("--")}
    return f"unknown options: {sorted(given - known)}" if given - known else None


def script_fault(script: str, arguments: list[str]) -> str | None:
    """Return which script does not exist, or which of its options; None if all do."""
    if not (ROOT / script).is_file():
        return f"{script} does not exist"
    if script == "scripts/test":
        return None  # pytest's
    return unknown_option(arguments, _options_of(script))


@cache
def _options_of(script: str) -> set[str]:
    """Return the options that a script's text names, or that of the module which it runs."""
    text = (ROOT / script).read_text(encoding="utf-8")
    modules = re.findall(r"-m (scripts[.\w]+)", text)
    modules += [f"scripts.{name}" for name in re.findall(r"scripts/(\w+)\.py", text)]
    for module in modules:
        path = ROOT / module.replace(".", "/")
        files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
        text += "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return set(re.findall(r"--[a-z][a-z-]+", text))


CONTROL = re.compile(r"localhost|127\.0\.0\.1:8793|\$ATLAS_URL|https://app\.example\.org/atlas")


def request_fault(arguments: list[str]) -> str | None:
    """Return which request of curl the API does not know; None if it does."""
    url = next((each for each in arguments if re.match(r"https?:|\$ATLAS_URL", each)), "")
    if not CONTROL.search(url) or ":8790" in url:
        return None
    method = "POST" if any(each in {"--json", "-d", "--data"} for each in arguments) else "GET"
    for option, value in pairwise(arguments):
        method = value if option in {"-X", "--request"} else method
    path = urlsplit(CONTROL.sub("", url)).path.removeprefix("http://") or "/"
    return endpoint_fault(method, path)


def endpoint_fault(method: str, path: str) -> str | None:
    """Return a text if the API has no such request; a part of the path may be a placeholder."""
    for route in table("1"):
        pattern = re.sub(
            r"\{\w+\}", "[^/]+", re.escape(route.path).replace(r"\{", "{").replace(r"\}", "}")
        )
        if route.method == method and re.fullmatch(pattern, path):
            return None
    return f"the API has no {method} {path}"


# What the prose names.

_PLACEHOLDERS = {"FEATURE": "vision", "PERCENTAGE": "10%", "GENERATION": "1", "KEYS": "300"}
_FILLED = re.compile(r"\b(?:" + "|".join(_PLACEHOLDERS) + r")\b")


def named_calls(text: str) -> list[str]:
    """Return the calls of atlasctl in a document's prose, but not how a verb may be called."""
    found = re.findall(r"`((?:\./scripts/)?atlasctl [^`]+)`", prose(text))
    called = [" ".join(each.split()) for each in found if not re.search(r"[\[{…|]|\.\.\.", each)]
    return [_FILLED.sub(lambda found: _PLACEHOLDERS[found[0]], each) for each in called]


def named_requests(text: str) -> list[tuple[str, str]]:
    """Return method and path of each request that a document's prose names."""
    return re.findall(r"`(GET|POST|PUT|DELETE) (/[^\s?`]*)", prose(text))
