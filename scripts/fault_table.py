"""The table of faults in `docs/reliability.md`, read from the marks of the tests that inject them.

A test says what it injects and what is promised: `@pytest.mark.fault(KIND, FAULT, PROMISE)`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KINDS = (
    "The daemon",
    "Workers",
    "Ports and connections",
    "Disk and files",
    "Database",
    "Clock and machine",
    "Requests",
    "Logs",
    "Fleet",
)
"""The sections of the document, in order."""

DOCUMENT = """\
# Faults and what is promised

<!-- Generated from the marks of the tests by ./scripts/generate-docs; do not edit. -->

Every fault here is injected by the test beside it. After each test in `tests/faults/` the same
invariants are checked, from outside:

{invariants}

`./scripts/soak --minutes N` draws faults at random and checks the same after each of them.
`./scripts/soak --all-failpoints` kills the daemon before and after every durable step and effect
([ADR 0068](adr/0068-a-failpoint-is-a-seam.md)). What is not promised is in
[guarantees and limits](limits.md).
{sections}"""


class Fault(NamedTuple):
    """One fault, and where it is injected."""

    kind: str
    fault: str
    promise: str
    path: str
    test: str


def faults() -> Iterator[Fault]:
    """Yield every marked fault, by file and in the order of the tests."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "mark.fault(" in text else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for words in map(_words, reversed(node.decorator_list)):
                    if words:
                        kind, fault, promise = words
                        yield Fault(kind, fault, promise, str(path.relative_to(ROOT)), node.name)


def _words(decorator: ast.expr) -> list[str]:
    """Return the words of a mark; none if it is another decorator."""
    match decorator:
        case ast.Call(func=ast.Attribute(attr="fault"), args=arguments):
            return [str(ast.literal_eval(argument)) for argument in arguments]
    return []


def invariants() -> Iterator[str]:
    """Yield the name of each invariant, as `tests/invariants.py` has them."""
    for node in ast.parse((ROOT / "tests/invariants.py").read_text(encoding="utf-8")).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id="INVARIANTS"), value=ast.Dict(keys=names)):
                yield from (str(ast.literal_eval(name)) for name in names if name)


def reliability() -> str:
    """Return the text of `docs/reliability.md`."""
    found = list(faults())
    sections = []
    for kind in KINDS:
        sections += ["", f"## {kind}", "", "| fault | promise | test |", "| --- | --- | --- |"]
        sections += [
            f"| {each.fault} | {each.promise} | [`{each.test}`](../{each.path}) |"
            for each in found
            if each.kind == kind
        ]
    return DOCUMENT.format(
        invariants="\n".join(f"- {name}" for name in invariants()),
        sections="\n".join(sections) + "\n",
    )
