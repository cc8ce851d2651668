"""Proxies before one backend, set up as their manuals advise.

HAProxy and nginx as HTTP proxies keep their upstream connections; HAProxy in TCP mode and socat
copy bytes and know nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

HAPROXY = """
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option http-keep-alive
    http-reuse always
frontend public
    bind 127.0.0.1:{port}
    default_backend worker
backend worker
    server worker 127.0.0.1:{backend} maxconn 1024
"""

HAPROXY_TCP = """
global
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend public
    bind 127.0.0.1:{port}
    default_backend worker
backend worker
    server worker 127.0.0.1:{backend}
"""

NGINX = """
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 1000000;
    upstream worker {{
        server 127.0.0.1:{backend};
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://worker;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@asynccontextmanager
async def haproxy(folder: Path, port: int, backend: int) -> AsyncIterator[None]:
    """Run HAProxy on `port` in front of `backend`."""
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, backend=backend))
    async with _serving(port, "haproxy", "-db", "-q", "-f", str(config)):
        yield


@asynccontextmanager
async def haproxy_tcp(folder: Path, port: int, backend: int) -> AsyncIterator[int]:
    """Run HAProxy as a copier of bytes; yields its pid."""
    config = folder / "haproxy-tcp.cfg"
    config.write_text(HAPROXY_TCP.format(port=port, backend=backend))
    async with _serving(port, "haproxy", "-db", "-q", "-f", str(config)) as pid:
        yield pid


@asynccontextmanager
async def socat(port: int, backend: int) -> AsyncIterator[int]:
    """Run socat, which forks for each connection; yields its pid."""
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096,nodelay"
    async with _serving(port, "socat", listen, f"TCP:127.0.0.1:{backend},nodelay") as pid:
        yield pid


@asynccontextmanager
async def nginx(folder: Path, port: int, backend: int) -> AsyncIterator[None]:
    """Run nginx on `port` in front of `backend`."""
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, backend=backend))
    log = str(folder / "nginx.log")
    async with _serving(port, "nginx", "-e", log, "-c", str(config)):
        yield


@asynccontextmanager
async def _serving(port: int, *command: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(*command)
    try:
        while not _listens(port):
            if process.returncode is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}")
            await asyncio.sleep(0.02)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
