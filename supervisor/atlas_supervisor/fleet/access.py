"""How this machine reaches its fleet's etcd: endpoints, certificates, user and password."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.fleet.engine import EngineError
from atlas_supervisor.fleet.etcd import Credentials, EtcdEngine, Tls
from atlas_supervisor.system.secret_file import Secret, read_secret
from atlas_supervisor.system.text import keep_secret

_PASSWORD = Secret("password", "change it in etcd")


@asynccontextmanager
async def opened_engine(settings: Settings) -> AsyncIterator[EtcdEngine | None]:
    """Yield the engine, which connects when it is asked; None if there is no fleet.

    Raises StartRefusedError if a certificate or the password can't be used.
    """
    async with AsyncExitStack() as stack:
        engine = make_engine(settings)
        if engine is not None:
            try:
                await stack.enter_async_context(engine)
            except EngineError as error:
                raise StartRefusedError(str(error)) from error
        yield engine


def make_engine(settings: Settings) -> EtcdEngine | None:
    """Return the engine, which is to be opened; None if there is no fleet.

    Raises StartRefusedError if the password can't be used, or other users may know it.
    """
    if not settings.fleet_etcd_endpoints:
        return None
    tls, credentials = None, None
    if settings.fleet_etcd_endpoints[0].startswith("https://"):
        tls = Tls(settings.fleet_etcd_ca, settings.fleet_etcd_cert, settings.fleet_etcd_key)
    if settings.fleet_etcd_password_file is not None:
        password = _password(settings.fleet_etcd_password_file)
        credentials = Credentials(settings.fleet_etcd_user, password)
    prefix = f"/atlas/{settings.fleet_name}/"
    return EtcdEngine(settings.fleet_etcd_endpoints, prefix, tls, credentials)


def _password(path: Path) -> str:
    key = "FLEET_ETCD_PASSWORD_FILE"
    try:
        text, fault = read_secret(path, _PASSWORD)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise StartRefusedError(f"{key}: {path} can't be used: {reason}") from error
    password = text.rstrip("\r\n")
    if not password.isprintable() or not password:
        raise StartRefusedError(f"{key}: {path} can't be used: it is not one line with a password")
    if fault is not None:
        raise StartRefusedError(f"{key}: {path} {fault}")
    keep_secret([password])
    return password
