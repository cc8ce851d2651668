"""Finds application objects, factories and routes in Python files, by parsing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FRAMEWORKS = {
    "fastapi.FastAPI": "FastAPI",
    "fastapi.applications.FastAPI": "FastAPI",
    "starlette.applications.Starlette": "Starlette",
    "quart.Quart": "Quart",
    "litestar.Litestar": "Litestar",
    "flask.Flask": "Flask",
    "flask.app.Flask": "Flask",
    "aiohttp.web.Application": "aiohttp",
}
_USUAL_NAMES = ("app", "application", "api", "server")
_USUAL_FILES = ("main", "app", "asgi", "wsgi", "server", "application", "api", "run", "__init__")
_ROUTES = {"get", "route", "api_route", "add_api_route", "add_get", "add_route", "add_url_rule"}
_PREFIXES = {"prefix", "url_prefix"}
_SKIPPED = {"node_modules", "site-packages", "__pycache__", "tests", "test", "migrations", "docs"}
_MOST_FILES, _MOST_BYTES, _DEEPEST = 500, 1 << 20, 4


@dataclass(frozen=True)
class Found:
    """An application object, or a function that makes one."""

    framework: str
    file: Path
    """Relative to the folder."""
    name: str
    line: int
    is_factory: bool = False
    is_async: bool = False
    options: frozenset[str] = frozenset()
    """The keywords that it is made with."""

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """How likely it is the one that is served: the smallest is."""
        names = [*_USUAL_NAMES, self.name]
        files = [*_USUAL_FILES, self.file.stem]
        depth = len(self.file.parts)
        return self.is_factory, depth, files.index(self.file.stem), names.index(self.name)


@dataclass
class Source:
    """One file: the names it imports, its functions that make applications, and its routes."""

    file: Path
    tree: ast.Module
    imported: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                for name in node.names:
                    self.imported[name.asname or name.name] = f"{module}.{name.name}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    top = name.name.partition(".")[0]
                    self.imported[name.asname or top] = name.name if name.asname else top
        self.paths = list(self._routes())

    def called(self, node: ast.AST | None) -> str:
        """Return the full name of what is called; empty if it is no call of a name."""
        return self._dotted(node.func) if isinstance(node, ast.Call) else ""

    def _dotted(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (before := self._dotted(node.value)):
            return f"{before}.{node.attr}"
        return ""

    def _routes(self) -> Iterator[str]:
        """Yield the paths of pages that answer GET, with the prefix of their router."""
        prefixes = {
            target.id: keyword.value.value
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            for target in node.targets
            for keyword in node.value.keywords
            if isinstance(target, ast.Name) and keyword.arg in _PREFIXES
            if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
        }
        for node in ast.walk(self.tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=owner, attr=attr),
                    args=[ast.Constant(value=str(path)), *_],
                ) if attr in _ROUTES and path[:1] in ("", "/") and _answers_get(node):
                    prefix = prefixes.get(owner.id, "") if isinstance(owner, ast.Name) else ""
                    yield prefix + path
                case ast.Call(
                    func=ast.Name(id="Route"), args=[ast.Constant(value=str(path)), *_]
                ) if _answers_get(node):
                    yield path


def _answers_get(call: ast.Call) -> bool:
    methods = next((each.value for each in call.keywords if each.arg == "methods"), None)
    return not isinstance(methods, ast.List) or any(
        isinstance(each, ast.Constant) and each.value == "GET" for each in methods.elts
    )


def read_sources(folder: Path) -> list[Source]:
    """Return the folder's Python files that can be parsed, those above the others first."""
    found = []
    for path in files_of(folder, ".py"):
        try:
            found.append(Source(path.relative_to(folder), ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
    return found


def unparsable(folder: Path) -> Iterator[str]:
    """Yield each Python file that can't be parsed, with the place and the reason.

    It may be one that a later Python than this one can parse.
    """
    for path in files_of(folder, ".py"):
        try:
            ast.parse(path.read_bytes())
        except SyntaxError as error:
            yield f"{path.relative_to(folder)}, line {error.lineno}: {error.msg}"
        except (ValueError, OSError, RecursionError) as error:
            yield f"{path.relative_to(folder)}: {error}"


def files_of(folder: Path, *suffixes: str, depth: int = _DEEPEST) -> Iterator[Path]:
    """Yield a folder's files of this kind, without tests and what was installed there."""
    level, count = [folder], 0
    for _ in range(depth):
        below: list[Path] = []
        for each in level:
            for path in _entries(each):
                if path.name.startswith(".") or path.name in _SKIPPED or path.is_symlink():
                    continue
                if path.is_dir() and not (path / "pyvenv.cfg").exists():
                    below.append(path)
                elif path.suffix in suffixes and path.is_file():
                    count += 1
                    if count <= _MOST_FILES and path.stat().st_size <= _MOST_BYTES:
                        yield path
        level = below


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # another user's data
        return []


def find_applications(sources: list[Source]) -> list[Found]:
    """Return the applications in these files, the likeliest first."""
    factories = [found for source in sources for found in _factories(source)]
    by_name = {each.name: each.framework for each in factories}
    objects = [found for source in sources for found in _objects(source, by_name)]
    importable = (each for each in objects or factories if each.file != Path("__init__.py"))
    return sorted(importable, key=lambda each: each.rank)


def _objects(source: Source, factories: dict[str, str]) -> Iterator[Found]:
    for node in source.tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call() as value)
            ):
                called = source.called(value)
                framework = FRAMEWORKS.get(called) or factories.get(called.rpartition(".")[2])
                if framework is not None:
                    options = frozenset(each.arg for each in value.keywords if each.arg)
                    yield Found(framework, source.file, name, node.lineno, options=options)


def _factories(source: Source) -> Iterator[Found]:
    """Yield functions that make an application and need no argument."""
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        required = len(node.args.args) - len(node.args.defaults)
        made = [
            FRAMEWORKS[name]
            for each in ast.walk(node)
            if (name := source.called(each)) in FRAMEWORKS
        ]
        returns = any(isinstance(each, ast.Return) and each.value for each in ast.walk(node))
        if made and returns and not required and "app" in node.name:
            is_async = isinstance(node, ast.AsyncFunctionDef)
            yield Found(
                made[0], source.file, node.name, node.lineno, is_factory=True, is_async=is_async
            )
