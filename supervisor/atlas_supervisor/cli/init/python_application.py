"""How an application in Python is run so that a deploy loses no request: on the kit's adapters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from atlas_supervisor.cli.init.application import (
    Application,
    best_path,
    command_line,
    is_installed,
    program,
)
from atlas_supervisor.cli.init.python_source import Found, Source, find_applications, read_sources

ASGI_RUNNER, GUNICORN_CONFIG = "atlas_worker.asgi", "python:atlas_worker.gunicorn"
_ASGI = {"FastAPI", "Starlette", "Quart", "Litestar"}
_OPENAPI = {"FastAPI": "/openapi.json", "Litestar": "/schema/openapi.json"}
"""A page that such an application has by itself."""


def python_applications(folder: Path) -> Iterator[Application]:
    """Yield the applications in a folder's Python files, the likeliest first."""
    sources = read_sources(folder)
    yield from django(folder, sources)
    for found in find_applications(sources):
        own = [path for source in sources if source.file == found.file for path in source.paths]
        paths = [*own, *(path for source in sources for path in source.paths)]
        default = "/" if "openapi_url" in found.options else _OPENAPI.get(found.framework, "/")
        page = best_path(paths, default)
        source = f"{found.file}, line {found.line}"
        if found.framework == "aiohttp":
            yield _aiohttp(folder, found, sources, page)
        elif found.framework in _ASGI:
            command = asgi_command(folder, [*_asgi_target(folder, found, sources)])
            yield Application(found.framework, source, command, page, needs=("uvicorn",))
        else:
            base, module = _importable(folder, found, sources)
            made = f"{module}:{found.name}" + ("()" if found.is_factory else "")
            words = [*([] if base == Path() else ["--pythonpath", str(base)]), made]
            command = gunicorn_command(folder, words)
            yield Application(found.framework, source, command, page, needs=("gunicorn",))


def asgi_command(folder: Path, words: list[str]) -> str:
    """Return the command of the ASGI runner with these arguments."""
    return command_line([program(folder, "python"), "-m", ASGI_RUNNER, *words])


def gunicorn_command(folder: Path, words: list[str]) -> str:
    """Return the command of gunicorn with the kit and these arguments."""
    return command_line([program(folder, "gunicorn"), "--config", GUNICORN_CONFIG, *words])


def _asgi_target(folder: Path, found: Found, sources: list[Source]) -> Iterator[str]:
    base, module = _importable(folder, found, sources)
    if found.is_factory:
        yield "--factory"
    if base != Path():
        yield from ("--app-dir", str(base))
    yield f"{module}:{found.name}"


def _importable(folder: Path, found: Found, sources: list[Source]) -> tuple[Path, str]:
    """Return the folder that a file's imports start from, and the file's name as a module."""
    parent = found.file.parent
    base = parent
    while base != Path() and (folder / base / "__init__.py").exists():
        base = base.parent
    if base == parent and base != Path():
        # No package by its files; its own imports show if it is used as one.
        source = next(each for each in sources if each.file == found.file)
        if any(name.startswith((".", f"{parent.parts[0]}.")) for name in source.imported.values()):
            base = Path()
    parts = found.file.relative_to(base).with_suffix("").parts
    return base, ".".join(part for part in parts if part != "__init__")


def _aiohttp(folder: Path, found: Found, sources: list[Source], page: str) -> Application:
    """Return the application on the kit's `run_app`, which needs no change of it where it can."""
    source = next(each for each in sources if each.file == found.file)
    where = f"{found.file}, line {found.line}"
    python = program(folder, "python")
    calls = [source.called(node.value) for node in source.tree.body if isinstance(node, ast.Expr)]
    if "atlas_worker.aiohttp.run_app" in source.imported.values():
        return Application("aiohttp", where, command_line([python, str(found.file)]), page)
    if "aiohttp.web.run_app" in calls:
        note = (
            f"{found.file} serves when it is imported: put `from atlas_worker.aiohttp import "
            "run_app` into it, and run_app(…) in place of web.run_app(…)."
        )
        command = command_line([python, str(found.file)])
        return Application("aiohttp", where, command, page, notes=(note,))
    base, module = _importable(folder, found, sources)
    made = f"{module}.{found.name}" + ("()" if found.is_factory else "")
    path = "" if base == Path() else f"import sys; sys.path.insert(0, {str(base)!r}); "
    code = f"{path}import {module}; from atlas_worker.aiohttp import run_app; run_app({made})"
    return Application("aiohttp", where, command_line([python, "-c", code]), page)


# Django.


def django(folder: Path, sources: list[Source]) -> Iterator[Application]:
    """Yield the Django project of a `manage.py`: on gunicorn, or on ASGI if uvicorn is there."""
    manage = next((each for each in sources if each.file.name == "manage.py"), None)
    if manage is None:
        return
    text = (folder / manage.file).read_text(errors="replace")
    found = re.search(r"DJANGO_SETTINGS_MODULE[\"'],\s*[\"']([\w.]+)", text)
    if found is None:
        return
    base, settings = manage.file.parent, _constants(folder, manage.file.parent, found[1])
    package = found[1].split(".")[0]
    wsgi = str(settings.get("WSGI_APPLICATION") or f"{package}.wsgi.application")
    asgi = any(each.file == base / package / "asgi.py" for each in sources)
    module = f"{wsgi.rpartition('.')[0]}:{wsgi.rpartition('.')[2]}"
    by_asgi = asgi and is_installed(folder, "uvicorn") and not is_installed(folder, "gunicorn")
    if by_asgi:
        words = ["--lifespan", "off", *([] if base == Path() else ["--app-dir", str(base)])]
        command = asgi_command(folder, [*words, f"{package}.asgi:application"])
    else:
        words = [] if base == Path() else ["--pythonpath", str(base)]
        command = gunicorn_command(folder, [*words, module])
    yield Application(
        "Django",
        str(manage.file),
        command,
        _django_page(folder, base, str(settings.get("ROOT_URLCONF") or f"{package}.urls")),
        settings=_accepted_requests(settings),
        needs=("uvicorn" if by_asgi else "gunicorn",),
    )


def _constants(folder: Path, base: Path, module: str) -> dict[str, object]:
    """Return the settings that are written as constants."""
    path = folder / base / f"{module.replace('.', '/')}.py"
    found: dict[str, object] = {}
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return found
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _accepted_requests(settings: dict[str, object]) -> dict[str, str]:
    """Return the settings that make probes pass its checks of `Host` and of TLS."""
    found: dict[str, str] = {}
    hosts = settings.get("ALLOWED_HOSTS")
    if isinstance(hosts, list | tuple) and hosts and not {"*", "127.0.0.1"} & {*hosts}:
        found["HEALTH_HOST"] = str(hosts[0]).removeprefix(".")
    if settings.get("SECURE_SSL_REDIRECT") is True:
        found["HEALTH_HEADERS"] = "X-Forwarded-Proto: https"
    return found


def _django_page(folder: Path, base: Path, urls: str) -> str:
    """Return a page of the root URLconf; those of an `include` are not looked up."""
    path = folder / base / f"{urls.replace('.', '/')}.py"
    pages, default = [], "/"
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return default
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="path"), args=[ast.Constant(value=str(route)), view, *_]
            ):
                if ast.unparse(view) == "admin.site.urls":
                    default = f"/{route}login/"
                elif not ast.unparse(view).startswith("include("):
                    pages.append(f"/{route}")
    return best_path(pages, default)
