"""A worker that is never what holds up a measurement: nginx on its own port, given as argument.

It answers `/` with a few bytes and `/large` with a file, and goes by `exec`, so that the process
that the supervisor watches is nginx itself.
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

LARGE_BYTES = 256 * 1024 * 1024

CONFIG = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location = /large {{ }}
        location / {{ return 200 "ok"; }}
    }}
}}
"""


def main() -> None:
    folder, port = Path.cwd(), sys.argv[1]
    with (folder / "large").open("wb") as large:
        large.truncate(LARGE_BYTES)
    user = pwd.getpwuid(os.getuid()).pw_name  # by itself root's nginx works as another one
    config = folder / f"nginx-{port}.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, user=user))
    command = ["nginx", "-e", str(folder / "nginx.log"), "-c", str(config)]
    os.execvp(command[0], command)  # noqa: S606  # no shell is meant to be between


if __name__ == "__main__":
    main()
