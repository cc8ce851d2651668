"""Who may do what: the page to read when asking whether somebody gets in.

Over the Unix socket the kernel tells the caller's uid, and that is all that counts. Over TCP
nothing about the caller is known: a change needs the token, always. A browser on this machine can
be made to send requests by any page, so `Host`, `Origin` and `Sec-Fetch-Site` are checked first.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable

from aiohttp import web
from yarl import URL

from atlas_supervisor.api.connection import Peer
from atlas_supervisor.api.options import ApiOptions
from atlas_supervisor.api.routes import Access
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 # compared with, not bound


class Gate:
    """Decides for each request whether its caller gets in.

    `loopback` says that TCP, where it is on, listens on nothing but loopback.
    """

    def __init__(self, options: ApiOptions, *, loopback: bool) -> None:
        self._token = options.token.encode()
        self._token_name = options.token_file.name
        self._own_uid = options.own_uid
        self._loopback = loopback
        self._port = options.port
        self._scheme = "https" if options.tls else "http"
        self._default_port = 443 if options.tls else 80
        self._wildcard = options.host in _WILDCARDS
        names = {*_LOOPBACK_NAMES, *map(_bracketed, options.allowed_hosts)}
        if not self._wildcard:
            names.add(_bracketed(options.host))
        self._hosts = frozenset(name.lower() for name in names)

    def check_sender(self, request: web.BaseRequest, peer: Peer) -> None:
        """Refuse requests that were meant for another host, or that a foreign page sent.

        Raises RefusedError: 400, 403 `foreign_origin`, 421 `wrong_host`.
        """
        if peer.uid is None:
            self._check_host(request, peer)
        for origin in request.headers.getall("Origin", []):
            if not self._is_own_origin(origin, peer):
                raise _foreign("Origin")
        for site in request.headers.getall("Sec-Fetch-Site", []):
            if site.strip().lower() not in ("same-origin", "none"):
                raise _foreign("Sec-Fetch-Site")

    def identify(self, request: web.BaseRequest, peer: Peer, access: Access) -> Actor:
        """Return who the caller is, if it may have `access`.

        Raises RefusedError: 401 `token_required` or `token_wrong`, 403 `not_permitted`.
        """
        if peer.uid is not None:
            if access is not Access.READ and peer.uid not in (0, self._own_uid):
                raise RefusedError(
                    "not_permitted",
                    f"uid {peer.uid} may read the status, and no more",
                    status=403,
                    hint="run it as root or as the daemon's own user",
                )
            return Actor(name=f"uid:{peer.uid}", origin="unix")
        if access is Access.READ and self._loopback:
            return Actor(name="anonymous", origin=peer.address)
        self._check_token(request.headers.getall("Authorization", []))
        return Actor(name="token", origin=peer.address)

    def _check_host(self, request: web.BaseRequest, peer: Peer) -> None:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            raise RefusedError(
                "bad_request", "a request has one Host", status=400, hint="check your client"
            )
        target = request.raw_path
        if not target.startswith("/"):
            # In absolute form the target's own host is the one that counts; both are looked at.
            hosts.append(URL(target, encoded=True).raw_authority)
        for host in hosts:
            name, port = _split(host)
            if port not in (None, self._port) or name not in self._names(peer):
                raise RefusedError(
                    "wrong_host",
                    "this host name is not ours",
                    status=421,
                    hint="use the host and port of CONTROL_HOST and CONTROL_PORT, or localhost",
                )

    def _is_own_origin(self, origin: str, peer: Peer) -> bool:
        scheme, _, authority = origin.partition("://")
        name, port = _split(authority)
        # Unlike in Host, no port means the scheme's own: another application of this machine.
        port = self._default_port if port is None else port
        return scheme == self._scheme and name in self._names(peer) and port == self._port != 0

    def _names(self, peer: Peer) -> frozenset[str]:
        # No page can rebind an address, so the one it came to is as good as a configured name.
        return self._hosts | {_bracketed(peer.local)} if self._wildcard else self._hosts

    def _check_token(self, headers: list[str]) -> None:
        if len(headers) != 1:
            raise self._unauthorized("token_required", "this request needs the token")
        scheme, _, given = headers[0].strip().partition(" ")
        if scheme.lower() != "bearer":
            raise self._unauthorized("token_required", "this request needs the token as a Bearer")
        # What is not UTF-8 on the wire arrives as surrogates.
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token):
            raise self._unauthorized("token_wrong", "this is not the token")

    def _unauthorized(self, code: str, message: str) -> RefusedError:
        return RefusedError(
            code,
            message,
            status=401,
            hint=(
                f"send 'Authorization: Bearer TOKEN' with the content of {self._token_name} "
                "(CONTROL_TOKEN_FILE), or use atlasctl on this machine"
            ),
        )


def is_loopback(addresses: Iterable[str]) -> bool:
    """Tell whether every one of these IP addresses is a loopback address."""
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _foreign(header: str) -> RefusedError:
    return RefusedError(
        "foreign_origin",
        f"{header} says that another site's page sent this",
        status=403,
        hint="pages of other sites can't use this API",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _split(authority: str) -> tuple[str, int | None]:
    """Return name and port of a Host; a port of -1 is one that can't be."""
    if authority.endswith("]"):
        return authority.lower(), None
    name, colon, port = authority.rpartition(":")
    if not colon:
        return authority.lower(), None
    valid = port.isascii() and port.isdecimal() and len(port) <= 5
    return name.lower(), int(port) if valid else -1
