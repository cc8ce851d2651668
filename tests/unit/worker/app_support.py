"""The bundled worker's application inside the test's own loop, on a real port."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestClient, TestServer

from atlas_worker.aiohttp import DRAIN
from atlas_worker.app.application import make_app
from atlas_worker.app.settings import AppSettings
from atlas_worker.drain import DrainController
from atlas_worker.instance import Instance
from atlas_worker.role import InstanceRole

SMOKE = {"X-Atlas-Smoke": "deploy-1"}


class Site:
    """A client of the application, with shorthands for what the tests ask."""

    def __init__(self, client: TestClient[Any, Any], drain: DrainController) -> None:
        self.client = client
        self.drain = drain

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(path) as response:
            return response.status, await _content(response)

    async def post(
        self,
        path: str,
        json: Any = None,
        *,
        data: bytes | io.BytesIO | None = None,
        smoke: bool = False,
    ) -> tuple[int, Any]:
        headers = SMOKE if smoke else {}
        async with self.client.post(path, json=json, data=data, headers=headers) as response:
            return response.status, await _content(response)

    async def delete(self, path: str, *, smoke: bool = False) -> tuple[int, Any]:
        async with self.client.delete(path, headers=SMOKE if smoke else {}) as response:
            return response.status, await _content(response)


async def _content(response: aiohttp.ClientResponse) -> Any:
    if response.content_type == "application/json":
        return await response.json()
    return await response.read()


@contextlib.asynccontextmanager
async def running_app(
    state_dir: Path, *, role: InstanceRole = InstanceRole.ACTIVE, **settings: Any
) -> AsyncIterator[Site]:
    """Run the application; `settings` are fields of its settings."""
    instance = Instance.from_environment(
        {"ATLAS_STATE_DIR": str(state_dir), "ATLAS_VERSION": "1.2.3", "ATLAS_SLOT": "green"}
    )
    app = make_app(instance, AppSettings(state_dir / "worker", **settings))
    drain = DrainController(idle_grace=instance.idle_grace, timeout=instance.drain_timeout)
    drain.set_role(role)
    app[DRAIN] = drain
    async with TestClient(TestServer(app)) as client:
        yield Site(client, drain)


def png(
    width: int,
    height: int,
    scanlines: bytes,
    *,
    colour: int = 0,
    depth: int = 8,
    interlace: int = 0,
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"Comment\0ignored")
        + chunk(b"IDAT", zlib.compress(scanlines)[:7])
        + chunk(b"IDAT", zlib.compress(scanlines)[7:])
        + chunk(b"IEND", b"")
    )


def filtered(pixels: list[list[int]], methods: list[int], step: int) -> bytes:
    """Apply PNG's filters, as an encoder does."""
    out = bytearray()
    above = [0] * len(pixels[0])
    for row, method in zip(pixels, methods, strict=True):
        out.append(method)
        for index, value in enumerate(row):
            left = row[index - step] if index >= step else 0
            corner = above[index - step] if index >= step else 0
            up = above[index]
            distance = {left: abs(up - corner), up: abs(left - corner)}
            estimate = left + up - corner
            paeth = min((left, up, corner), key=lambda v: abs(estimate - v))
            assert distance
            predicted = [0, left, up, (left + up) // 2, paeth][method]
            out.append((value - predicted) % 256)
        above = row
    return bytes(out)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
