"""Decides who may do what, and how much of the daemon's time and memory a caller can take.

Over the Unix socket the kernel supplies the caller's uid, and nothing else counts. Over TCP
nothing about the caller is known, so a change always needs the token. Any web page can make a
browser on this machine send requests, so `Host`, `Origin` and `Sec-Fetch-Site` are checked first.

A caller has a rank. An operator has the token, or a session of the dashboard that was begun with
it, or connects to the Unix socket as root or the daemon's own user; a viewer has the view token. An
operator is trusted: its requests begin at once, those of all others at a bounded rate. Answers that
are made and not sent yet are bounded over all connections.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from aiohttp import web
from yarl import URL

from atlas_supervisor import errors
from atlas_supervisor.api.options import ApiOptions
from atlas_supervisor.api.routes import Access
from atlas_supervisor.api.sessions import Rank, Session, Sessions
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_AUTHORIZATION = re.compile(rb"(?im)^authorization:[ \t]*bearer[ \t]+([!-~]+)[ \t]*\r?$")
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 # compared with, not bound

BEGUN_AT_ONCE = 4
"""So many requests of untrusted callers begin in `PAUSE_SECONDS`."""
PAUSE_SECONDS = 0.005

MOST_UNSENT = 24 * 1024 * 1024
"""Bytes of all answers that are not sent yet."""

_UCRED = struct.Struct("iII")  # pid, uid, gid


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, as the kernel reports it."""

    uid: int | None
    """Of the process that connected over the Unix socket; None over TCP."""
    address: str
    """The peer's address; `unix` on the Unix socket."""
    local: str
    """The local address that it connected to; empty on the Unix socket."""


class Caller(NamedTuple):
    """Who has sent a request, and what it may do."""

    actor: Actor
    rank: Rank
    refused: Callable[[], RefusedError]
    """Makes the answer where it may not."""
    session: Session | None = None
    """The session of the dashboard that it comes by, and by nothing else."""


_NEEDED = {Access.READ: Rank.STRANGER, Access.SENSITIVE: Rank.VIEWER}


class Gate:
    """Decides for each request whether its caller is let in.

    `loopback`: TCP, if it is on, listens on loopback only.
    """

    def __init__(self, options: ApiOptions, *, loopback: bool) -> None:
        tokens = {Rank.OPERATOR: options.token}
        if options.view_token is not None:
            tokens[Rank.VIEWER] = options.view_token
        secure = options.tls is not None
        self.sessions = Sessions(tokens, port=options.port, secure=secure)
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

    def trusts_uid(self, uid: int | None) -> bool:
        """Return whether a caller of this uid may do everything over the Unix socket."""
        return uid in (0, self._own_uid)

    def has_token(self, head: bytes) -> bool:
        """Return whether a request that begins so seems to have the token, to serve it first.

        This permits nothing: the complete request is checked by `admit`.
        """
        given = [found[1] for found in _AUTHORIZATION.finditer(head)]
        if given:
            rank = rank_of(given[0].decode(), self.sessions.tokens) if len(given) == 1 else None
        else:
            session = self.sessions.read_head(head)
            rank = session and session.rank
        return rank is Rank.OPERATOR

    def caller(self, request: web.BaseRequest, peer: Peer) -> Caller:
        """Return who has sent a request; `admit` says whether it is let in."""
        if peer.uid is not None:
            rank = Rank.OPERATOR if self.trusts_uid(peer.uid) else Rank.STRANGER
            actor = Actor(name=f"uid:{peer.uid}", origin="unix")
            return Caller(actor, rank, partial(errors.NOT_PERMITTED.error, uid=peer.uid))
        given = request.headers.getall("Authorization", [])
        cookies = request.headers.getall("Cookie", [])
        if cookies and not given and (session := self.sessions.read(cookies)):
            actor = Actor(name=session.actor, origin=peer.address)
            refusal = errors.VIEW_ONLY if session.rank is Rank.VIEWER else errors.TOKEN_REQUIRED
            refused = partial(refusal.error, file=self._token_name)
            return Caller(actor, session.rank, refused, session)
        scheme, _, token = given[0].strip().partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            refusal = errors.TOKEN_REQUIRED
        # Bytes that are not UTF-8 arrive as surrogates.
        elif known := rank_of(token, self.sessions.tokens):
            name = "token" if known is Rank.OPERATOR else "view"
            actor = Actor(name=name, origin=peer.address)
            return Caller(actor, known, errors.VIEW_ONLY.error)
        else:
            refusal = errors.TOKEN_WRONG
        actor = Actor(name="anonymous", origin=peer.address)
        return Caller(actor, Rank.STRANGER, partial(refusal.error, file=self._token_name))

    def check_sender(self, request: web.BaseRequest, peer: Peer) -> None:
        """Refuse requests that are meant for another host, or that a foreign page has sent.

        Raises RefusedError: 400, also for another version of HTTP; 403 `foreign_origin`, 421
        `wrong_host`.
        """
        if request.version.major != 1:
            raise errors.BAD_REQUEST.error()
        if peer.uid is None:
            self._check_host(request, peer)
        else:
            self._check_forwarded(request)
        for origin in request.headers.getall("Origin", []):
            if not self._is_own_origin(origin, request, peer):
                raise errors.FOREIGN_ORIGIN.error(header="Origin")
        for site in request.headers.getall("Sec-Fetch-Site", []):
            if site.strip().lower() not in ("same-origin", "none"):
                raise errors.FOREIGN_ORIGIN.error(header="Sec-Fetch-Site")

    def admit(self, caller: Caller, access: Access) -> None:
        """Let the caller have `access`.

        Raises RefusedError: 401 `token_required` or `token_wrong`, 403 `not_permitted`.
        """
        if access is Access.PUBLIC:
            return
        needed = _NEEDED.get(access, Rank.OPERATOR)
        by_cookie_alone = caller.session is not None and access is Access.CHANGE
        if caller.rank < needed or by_cookie_alone or not self.reads(caller):
            raise caller.refused()

    def reads(self, caller: Caller) -> bool:
        """Return whether the caller may read what is open to read."""
        return caller.rank is not Rank.STRANGER or self._loopback or caller.actor.origin == "unix"

    def _check_host(self, request: web.BaseRequest, peer: Peer) -> None:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            raise errors.BAD_REQUEST.error()
        target = request.raw_path
        if not target.startswith("/"):
            # In absolute form the target's own host counts; both are checked.
            hosts.append(URL(target, encoded=True).raw_authority)
        for host in hosts:
            name, port = _split(host)
            if port not in (None, self._port) or name not in self._names(peer):
                raise errors.WRONG_HOST.error()

    def _check_forwarded(self, request: web.BaseRequest) -> None:
        """Refuse a name that DNS may lead to a forwarded Unix socket (`ssh -L PORT:SOCKET`)."""
        for host in request.headers.getall("Host", []):
            name, _ = _split(host)
            if "." in name and name not in self._hosts and not _is_address(name):
                raise errors.WRONG_HOST.error()

    def _is_own_origin(self, origin: str, request: web.BaseRequest, peer: Peer) -> bool:
        scheme, _, authority = origin.partition("://")
        name, port = _split(authority)
        if peer.uid is not None:  # through `ssh -L PORT:SOCKET`: the port is the operator's choice
            return name in _LOOPBACK_NAMES and request.headers.get("Host", "").lower() == authority
        # Unlike in Host, no port means the scheme's default: another application of this machine.
        port = self._default_port if port is None else port
        return scheme == self._scheme and name in self._names(peer) and port == self._port != 0

    def _names(self, peer: Peer) -> frozenset[str]:
        # DNS rebinding can't change an address, so the local one is as good as a configured name.
        return self._hosts | {_bracketed(peer.local)} if self._wildcard else self._hosts


def rank_of(given: str, tokens: Mapping[Rank, bytes]) -> Rank | None:
    """Return the rank that a token gives; None for an unknown one."""
    data = given.strip().encode("utf-8", "surrogateescape")
    ranks = [rank for rank, token in tokens.items() if hmac.compare_digest(data, token)]
    return ranks[0] if ranks else None


class Turnstile:
    """Lets requests begin at a bounded rate, in the order in which they came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = BEGUN_AT_ONCE
        self._refilling = False

    async def enter(self) -> None:
        """Return once the request may begin."""
        if not self._refilling:
            self._refilling = True
            self._loop.call_later(PAUSE_SECONDS, self._refill)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _refill(self) -> None:
        self._left = BEGUN_AT_ONCE
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled
                turn.set_result(None)
                self._left -= 1
        self._refilling = bool(self._waiting)
        if self._refilling:
            self._loop.call_later(PAUSE_SECONDS, self._refill)


@dataclass(eq=False)
class _Answer:
    size: int
    end: Callable[[], None]
    trusted: bool


class Unsent:
    """Counts the bytes of answers that are being sent; beyond the limit the oldest ones are ended.

    Those of untrusted callers go first. An answer is counted until it is sent to its end: it is in
    memory as a whole.
    """

    def __init__(self) -> None:
        self._total = 0
        self._answers: dict[_Answer, None] = {}

    @contextmanager
    def count(self, size: int, *, trusted: bool, end: Callable[[], None]) -> Iterator[None]:
        """Count an answer while the context lasts; `end` is called if it must make room."""
        answer = _Answer(size, end, trusted)
        self._answers[answer] = None
        self._total += size
        try:
            self._make_room(answer)
            yield
        finally:
            self._remove(answer)

    def _make_room(self, newest: _Answer) -> None:
        for trusted in (False, True):
            for each in [one for one in self._answers if one.trusted is trusted]:
                if self._total <= MOST_UNSENT:
                    return
                if each is not newest:
                    self._remove(each)
                    each.end()

    def _remove(self, answer: _Answer) -> None:
        if answer in self._answers:
            del self._answers[answer]
            self._total -= answer.size


def peer_of(sock: socket.socket) -> Peer:
    """Return the other end of a connected socket."""
    if sock.family == socket.AF_UNIX:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return Peer(uid=_UCRED.unpack(data)[1], address="unix", local="")
    try:
        return Peer(uid=None, address=sock.getpeername()[0], local=sock.getsockname()[0])
    except OSError:  # the client has left already
        return Peer(uid=None, address="unknown", local="unknown")


def is_loopback(addresses: Iterable[str]) -> bool:
    """Return whether all these IP addresses are loopback addresses."""
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _split(authority: str) -> tuple[str, int | None]:
    """Return name and port of a Host header; port -1 stands for an invalid one."""
    if authority.endswith("]"):
        return authority.lower(), None
    name, colon, port = authority.rpartition(":")
    if not colon:
        return authority.lower(), None
    valid = port.isascii() and port.isdecimal() and len(port) <= 5
    return name.lower(), int(port) if valid else -1
