"""`./scripts/build-docs`: the documents as a site, from the files as they are in the repository.

The navigation is the index, `docs/README.md`: its sections and the links in them. So that every
link works in the site as on a git host, the site has the folders of the repository, and each file
that a document links to.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from scripts.doc_blocks import ROOT, documents, prose

INDEX = "docs/README.md"
DECISIONS = "docs/adr"
CONFIGURATION = Path(__file__).parent / "templates/site.yml"
LINK = re.compile(r"\]\(([^)\s]+)\)")

Nav = list[dict[str, Any]]
"""What a page's or a section's title leads to: a path, or the same again."""


class BuildError(Exception):
    """The site can't be built, or is not whole; the text says why, a line for each fault."""


# What goes in.


def linked_files(document: Path) -> Iterator[Path]:
    """Yield the files of the repository that a document links to."""
    for link in LINK.findall(prose(document.read_text(encoding="utf-8"))):
        path = urlsplit(link).path
        target = (document.parent / path).resolve()
        if not urlsplit(link).scheme and path and target.is_file():
            yield target


def navigation() -> Nav:
    """Return the sections of the index, with those within them and their links."""
    return _sections((ROOT / INDEX).read_text(encoding="utf-8"), "##")


def _sections(text: str, mark: str) -> Nav:
    """Return the links before the first heading of a level, then its sections."""
    before, *parts = re.split(rf"^{mark} (.+)$", text, flags=re.MULTILINE)
    nav: Nav = [{name: _page(link)} for name, link in _links(before)]
    for title, section in zip(parts[::2], parts[1::2], strict=True):
        nav.append({title: _sections(section, f"{mark}#")})
    return nav


def _links(section: str) -> Iterator[tuple[str, str]]:
    """Yield the links in the first column of a section's table."""
    for row in re.findall(r"^\| (.+?) \| ", section, re.MULTILINE):
        yield from re.findall(r"\[([^]]+)\]\(([^)#\s]+)\)", row)


def _page(link: str) -> str:
    """Return a link of the index as a path below the repository; a folder's page is its README."""
    path = (ROOT / "docs" / link).resolve()
    path = path / "README.md" if path.is_dir() else path
    return str(path.relative_to(ROOT))


def decisions() -> str:
    """Return the page that lists the decisions: a git host shows the folder instead."""
    rows = []
    for path in sorted((ROOT / DECISIONS).glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        rows.append(f"- [{title}]({path.name})")
    return "\n".join(["# Decisions", "", *rows, ""])


def stage(folder: Path) -> None:
    """Lay out in `folder` what the site is built from, and its configuration."""
    pages = documents()
    for file in {*pages, *(each for page in pages for each in linked_files(page))}:
        place = folder / "source" / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (folder / "source" / DECISIONS / "README.md").write_text(decisions(), encoding="utf-8")
    nav = [{"ATLAS Supervisor": "README.md"}, *navigation()]
    configuration = CONFIGURATION.read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(f"{configuration}nav: {json.dumps(nav)}\n", encoding="utf-8")


# What comes out.


class Page(HTMLParser):
    """The links of a page, the places in it, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        given = {name: value for name, value in attrs if value is not None}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag != "a" and not (
            tag == "link" and given.get("rel") in {"canonical", "prev", "next"}
        ):
            self.loaded += [given[name] for name in ("src", "href") if name in given]


def faults(site: Path) -> Iterator[str]:
    """Yield a line for each dead link, and for each thing that comes from another host."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for each in page.loaded:
            if urlsplit(each).netloc:
                yield f"{name} loads {each}"
        if path.name != "404.html":
            yield from (
                f"{name}: {link} leads nowhere" for link in dead_links(path, page.links, pages)
            )


def dead_links(path: Path, links: Iterable[str], pages: dict[Path, Page]) -> Iterator[str]:
    """Yield the links within the site that have no target."""
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        target = target / "index.html" if target.is_dir() else target
        page = pages.get(target)
        missing = page is not None and parts.fragment not in {"", *page.places}
        if missing or not target.is_file():
            yield link


def build(site: Path) -> int:
    """Build the site in a folder, replacing it; return its pages. Raises BuildError."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder)
        done = subprocess.run(
            (str(Path(sys.executable).parent / "zensical"), "build", "--strict"),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(done.stdout + done.stderr)
        if found := list(faults(folder / "site")):
            raise BuildError("\n".join(found))
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(folder / "site", site)
    return len(list(site.rglob("*.html")))


def main() -> None:
    site = Path(sys.argv[1])
    try:
        pages = build(site)
    except BuildError as error:
        sys.exit(str(error))
    print(f"{pages} pages in {site}")


if __name__ == "__main__":
    main()
