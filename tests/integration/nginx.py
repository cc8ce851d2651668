"""A real nginx with a configuration of its own, if the machine has one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

_FRAME = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, http: str, *, port: int) -> AsyncIterator[None]:
    """Check the configuration, serve it, and wait until the port answers."""
    command = _command(folder, http)
    checked = await asyncio.create_subprocess_exec(*command, "-t", stderr=asyncio.subprocess.PIPE)
    _, complaints = await checked.communicate()
    assert checked.returncode == 0, complaints.decode()
    assert b"warn" not in complaints, complaints.decode()
    served = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(10):
            while not await _answers(port):
                assert served.returncode is None
                await asyncio.sleep(0.02)
        yield
    finally:
        served.terminate()
        await served.wait()


def _command(folder: Path, http: str) -> tuple[str, ...]:
    assert PROGRAM is not None
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(_FRAME.format(http=http))
    return PROGRAM, "-p", str(folder), "-e", "stderr", "-c", str(config)


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
