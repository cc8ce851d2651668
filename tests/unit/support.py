"""What several tests know of the packages."""

from __future__ import annotations

ADAPTERS = {
    "aiohttp",
    "aiohttp_streams",
    "gunicorn",
    "asgi.__main__",
    "asgi.command",
    "asgi.protocols",
    "asgi.runner",
}
"""Modules of the kit for applications that have the framework installed themselves."""
