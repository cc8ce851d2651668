"""Servers from elsewhere that refuse a connection without a header of PROXY protocol."""

from __future__ import annotations

from pathlib import Path

_NGINX = """\
daemon off; pid nginx-$1.pid; error_log stderr; worker_processes 1; user root;
events {}
http {
    access_log off;
    server {
        listen 127.0.0.1:$1 proxy_protocol;
        location / {
            add_header Content-Type text/plain;
            return 200 '"\\$proxy_protocol_addr:\\$proxy_protocol_port"';
        }
    }
}
"""
_HAPROXY = """\
defaults
    mode http
    timeout client 5s
frontend app
    bind 127.0.0.1:$1 accept-proxy
    http-request return status 200 content-type text/plain lf-string \\"%[src]:%[src_port]\\"
"""
COMMANDS = {
    "nginx": (_NGINX, "nginx -p . -e stderr -c conf-$1"),
    "haproxy": (_HAPROXY, "haproxy -db -f conf-$1"),
}


def write_server(folder: Path, name: str) -> str:
    """Write a script that starts the server, and return the worker command that runs it."""
    config, command = COMMANDS[name]
    script = folder / f"{name}.sh"
    script.write_text(f"cat >conf-$1 <<END\n{config}END\nexec {command}\n")
    return f"sh {script} {{port}}"
