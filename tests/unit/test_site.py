"""The site of the documents: what goes in, and what would fail its build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import site_builder
from scripts.doc_blocks import documents
from scripts.site_builder import Nav, faults, navigation, stage

ROOT = Path(__file__).parents[2]
BEGINNING = "README.md"
NOT_IN_THE_INDEX = {"CHANGELOG.md", "SECURITY.md", "docs/README.md"}
"""Other pages link to them."""


def pages_of(nav: Nav) -> Iterator[str]:
    for entry in nav:
        for place in entry.values():
            yield from [place] if isinstance(place, str) else pages_of(place)


def test_the_navigation_has_every_document_once() -> None:
    pages = list(pages_of(navigation()))
    decisions = site_builder.DECISIONS
    expected = {str(path.relative_to(ROOT)) for path in documents()} - NOT_IN_THE_INDEX
    expected = {page for page in expected if not page.startswith(f"{decisions}/")}

    assert sorted(pages) == sorted({*expected, f"{decisions}/README.md"} - {BEGINNING})


def test_the_four_kinds_of_documents_are_the_first_sections() -> None:
    sections = [title for section in navigation() for title in section]

    assert sections[:4] == ["Learn", "Do", "Look up", "Understand"]


def test_every_linked_file_is_a_part_of_the_site(tmp_path: Path) -> None:
    stage(tmp_path)

    source = tmp_path / "source"
    assert (source / "atlas.env").is_file()
    assert (source / "docs/monitoring/alerts.yml").is_file()
    assert "0001-the-kernel-is-the-router.md" in (source / "docs/adr/README.md").read_text()
    assert '"Learn": [{"First steps": "docs/tutorial.md"}' in (tmp_path / "mkdocs.yml").read_text()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="folder/">', None),
        ('<a href="https://example.org/">', None),
        ('<link rel="canonical" href="https://example.org/">', None),
        ('<a href="c.html">', "a.html: c.html leads nowhere"),
        ('<a href="b.html#gone">', "a.html: b.html#gone leads nowhere"),
        ('<a href="#gone">', "a.html: #gone leads nowhere"),
        ('<script src="https://example.org/x.js">', "a.html loads https://example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "a.html loads //example.org/x.css"),
    ],
)
def test_dead_links_and_foreign_assets_are_faults(
    tmp_path: Path, body: str, fault: str | None
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/index.html").touch()
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<h2 id="there">')

    assert list(faults(tmp_path)) == ([fault] if fault else [])
