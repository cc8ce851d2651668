"""Swagger UI is served by the daemon alone, under a strict content security policy."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.unit.supervisor.api.support import running


async def test_the_page_and_all_its_files_are_served_by_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        page = await server.tcp("GET", "/docs")
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
        assert len(parts) >= 3
        for part in parts:
            assert not part.startswith("/")  # relative: the page may be behind a path prefix
            answer = await server.tcp("GET", urljoin("/docs", part))
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            kind = {"js": "text/javascript", "css": "text/css", "png": "image/png"}
            assert answer.headers["Content-Type"].startswith(kind[part.rpartition(".")[2]])


async def test_the_page_finds_its_document_behind_a_path_prefix(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        script = (await server.tcp("GET", "/docs/init.js")).body.decode()
        found = re.search(r'url: "([^"]+)"', script)
        assert found is not None
        assert urljoin("https://ops.example/atlas/docs", found[1]) == (
            "https://ops.example/atlas/openapi.json"
        )
        (base,) = (await server.tcp("GET", "/openapi.json")).json["servers"]
    assert urljoin("https://ops.example/atlas/openapi.json", base["url"]) == (
        "https://ops.example/atlas/"
    )


async def test_the_page_allows_only_its_own_scripts_and_styles(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        page = await server.tcp("GET", "/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in policy
    text = page.body.decode()
    assert re.findall(r"<script[^>]*>([^<]+)</script>", text) == []
    assert "<style" not in text
    assert " on" + "load" not in text
    assert "http" not in text


async def test_every_answer_has_the_security_headers(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        for path in ("/deploy/status", "/nope", "/deploy/switch"):
            headers = (await server.tcp("GET", path)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Frame-Options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert "aiohttp" not in headers["Server"]


@pytest.mark.parametrize(
    "target",
    [
        "/docs/../../../../etc/passwd",
        "/docs/..%2f..%2f..%2fetc%2fpasswd",
        "/docs/%2e%2e/%2e%2e/etc/passwd",
        "/docs/....//....//etc/passwd",
        "/docs//etc/passwd",
        "/docs/%2fetc%2fpasswd",
        "/docs/..%5c..%5cetc%5cpasswd",
        "/docs/swagger-ui.css%00.png",
        "/docs/swagger-ui.css/../index.html",
        "/docs/index.html",
        "/docs/__init__.py",
        "/docs/swagger-ui-bundle.js.map",
        "/docs/.",
        "/docs/..",
        "/docs/",
        "/docs/init.js/",
        "/docs/SWAGGER-UI.CSS",
        "/docs/" + "a/" * 2000,
    ],
)
async def test_no_path_escapes_the_files_of_the_page(tmp_path: Path, target: str) -> None:
    async with running(tmp_path) as server:
        answer = await server.head(f"GET {target} HTTP/1.1", f"Host: {server.authority}")
    assert (answer.status, answer.code) == (404, "not_found")
