"""Commands that an application brings along: its Procfile, its Dockerfile, its package.json.

They bind a port. One that starts uvicorn or gunicorn is turned into that of the kit's adapter,
which inherits its sockets; any other one gets a port from the daemon, as `PORT` and for `$PORT`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atlas_supervisor.cli.init.application import (
    RELAYED,
    Application,
    best_path,
    command_line,
    mentioned_paths,
)
from atlas_supervisor.cli.init.python_application import (
    asgi_command,
    gunicorn_command,
    python_applications,
)
from atlas_supervisor.cli.init.python_source import files_of

_RUNNERS = (("poetry", "run"), ("uv", "run"), ("pipenv", "run"), ("exec",))
_SERVERS = {"uvicorn", "gunicorn", "fastapi"}
_SHELL = re.compile(r"&&|\|\||[;|<>`]|\$\(|\$\{?(?!PORT\b)\w")
_LIST = re.compile(r"&&|\|\||;")
_PORT = re.compile(r"\$\{?PORT(?::-\d+)?\}?")
_SOCKET = {"--host", "--port", "--uds", "--fd", "-b", "--bind"}
"""Options that the inherited sockets take over."""
_OF_A_PARENT = {
    "--workers", "--reload", "--reload-dir", "--backlog", "--limit-max-requests",
    "--timeout-graceful-shutdown",
}  # fmt: skip
"""Options of uvicorn that its runner refuses: one process serves a slot, drained by the daemon."""
_OWN_CONFIG = "Include the kit in gunicorn's own configuration: docs/adapters/wsgi.md, settings."
_FLAGS = {"--reload"}
_INSTRUCTION = re.compile(r"^\s*(CMD|ENTRYPOINT|FROM)\s+(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_SCRIPTS = (".js", ".mjs", ".cjs", ".ts")
_MAIN = re.compile(rb"^package main\b", re.MULTILINE)
_UVICORN_CLASS = re.compile(r"uvicorn(_worker)?\.")


def procfile(folder: Path) -> Iterator[Application]:
    """Yield the `web` process of a Procfile."""
    path = folder / "Procfile"
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            if found := re.match(r"\s*web\s*:\s*(.+)", line):
                yield from _application(folder, "Procfile", "Procfile, web", found[1].strip())


def dockerfile(folder: Path) -> Iterator[Application]:
    """Yield the command of a Dockerfile, with its entry point."""
    path = folder / "Dockerfile"
    if not path.is_file():
        return
    text = re.sub(r"\\\n\s*", " ", path.read_text(errors="replace"))
    parts: dict[str, str] = {}
    for name, rest in _INSTRUCTION.findall(text):
        if name.upper() == "FROM":
            parts.clear()
        else:
            parts[name.upper()] = _docker_words(rest)
    if command := " ".join(parts[name] for name in ("ENTRYPOINT", "CMD") if name in parts):
        yield from _application(folder, "Dockerfile", f"Dockerfile, {' and '.join(parts)}", command)


def _docker_words(text: str) -> str:
    """Return an instruction's command as a shell has it; it may be a list in JSON."""
    try:
        words = json.loads(text)
    except ValueError:
        return text
    return shlex.join(map(str, words)) if isinstance(words, list) else text


def node(folder: Path) -> Iterator[Application]:
    """Yield the application of a package.json: its `start` script, or its main file."""
    path = folder / "package.json"
    if not path.is_file():
        return
    try:
        package = json.loads(path.read_text())
    except ValueError:
        return
    package = package if isinstance(package, dict) else {}
    scripts = package.get("scripts")
    start = scripts.get("start") if isinstance(scripts, dict) else None
    names = (package.get("main"), "server.js", "index.js", "app.js")
    files = (name for name in names if isinstance(name, str) and (folder / name).is_file())
    if isinstance(start, str) and start.strip():
        # npm itself would stay between the daemon and the program.
        words = _words(start)
        if words and (folder / "node_modules/.bin" / words[0]).exists():
            words[0] = f"node_modules/.bin/{words[0]}"
        elif words[:1] != ["node"]:
            words = ["npm", "start"]
        yield _program(folder, "Node", "package.json, scripts.start", words, _SCRIPTS)
    elif (main := next(files, None)) is not None:
        yield _program(folder, "Node", main, ["node", main], _SCRIPTS)


def go(folder: Path) -> Iterator[Application]:
    """Yield the program of a Go module; it has to be built before a deploy."""
    path = folder / "go.mod"
    if not path.is_file():
        return
    found = re.search(r"^module\s+(\S+)", path.read_text(errors="replace"), re.MULTILINE)
    name = re.sub(r"/v\d+$", "", found[1]).rpartition("/")[2] if found else folder.name
    mains = [each.parent for each in files_of(folder, ".go") if _MAIN.search(each.read_bytes())]
    package = "."
    if mains and mains[0] != folder:
        name, package = mains[0].name, f"./{mains[0].relative_to(folder)}"
    application = _program(folder, "Go", "go.mod", [f"./{name}"], (".go",))
    note = f"Build it before each deploy: go build -o {name} {package}"
    yield replace(application, notes=(note, *application.notes))


def _program(
    folder: Path, kind: str, source: str, words: list[str], suffixes: tuple[str, ...]
) -> Application:
    """Return a program that inherits its sockets if its source shows that, else one with a port."""
    texts = [path.read_text(errors="replace") for path in files_of(folder, *suffixes)]
    page = best_path(mentioned_paths(texts))
    if any("LISTEN_FDS" in text or "go-systemd" in text for text in texts):
        return Application(kind, source, command_line(words), page)
    notes = [RELAYED]
    if words[0] == "node" and not any(re.search(r"\bPORT\b", text) for text in texts):
        notes.insert(0, "Its source does not read PORT: let it listen on that port, on 127.0.0.1.")
    command = command_line(["env", "PORT={port}", *words])
    return Application(kind, source, command, page, notes=tuple(notes))


def _application(folder: Path, kind: str, source: str, command: str) -> Iterator[Application]:
    """Yield the application that a shell's command starts; none if its source says it better."""
    known = next(python_applications(folder), None)
    texts = (path.read_text(errors="replace") for path in files_of(folder, ".js", ".ts", ".go"))
    page = best_path(mentioned_paths(texts)) if known is None else known.path
    settings = {} if known is None else known.settings
    words = _words(command)
    for before in _RUNNERS:
        if tuple(words[: len(before)]) == before:
            words = words[len(before) :]
    if len(words) > 2 and words[1] == "-m" and words[2] in _SERVERS:
        words = words[2:]
    name = Path(words[0]).name if words else ""
    if name == "fastapi" and known is not None:
        return
    if name == "uvicorn" or _UVICORN_CLASS.search(command):
        kept = _without(words[1:], _SOCKET | _OF_A_PARENT)
        if name == "gunicorn":
            kept = [word for word in kept if re.fullmatch(r"[\w.]+:[\w.]+", word)][:1]
        made = asgi_command(folder, kept)
        yield Application(kind, source, made, page, settings, needs=("uvicorn",))
    elif name == "gunicorn":
        kept = _without(words[1:], _SOCKET)
        own = any(word.partition("=")[0] in {"-c", "--config"} for word in kept)
        made = command_line(["gunicorn", *kept]) if own else gunicorn_command(folder, kept)
        notes = (_OWN_CONFIG,) if own else ()
        yield Application(kind, source, made, page, settings, needs=("gunicorn",), notes=notes)
    else:
        words = words or ["sh", "-c", command if _LIST.search(command) else f"exec {command}"]
        words = [_PORT.sub("{port}", word) for word in words]
        made = command_line(["env", "PORT={port}", *words])
        yield Application(kind, source, made, page, settings, notes=(RELAYED,))


def _words(command: str) -> list[str]:
    """Return a command's words; none if it needs a shell."""
    try:
        return [] if _SHELL.search(command) else shlex.split(command)
    except ValueError:
        return []


def _without(words: list[str], dropped: set[str]) -> list[str]:
    """Return arguments without these options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        name = word.partition("=")[0]
        if not skip and name not in dropped:
            kept.append(word)
        skip = not skip and word in dropped - _FLAGS
    return kept
