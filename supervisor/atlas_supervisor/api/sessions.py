"""The sessions of the dashboard: a cookie that stands for a token, and ends.

A session is signed with a key made of its token, so it lives through a restart or a reload of the
daemon and dies with its token. Nothing is kept but which sessions were ended: the audit trail has
those, and is read when the first cookie comes after a start.

A session changes nothing by itself: a change needs the token of a form as well, which only pages of
the dashboard's own origin can read. Cookies are not separated by port (docs/security.md).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

LASTS_SECONDS = 12 * 3600.0

_COOKIE = re.compile(rb"(?im)^cookie:[ \t]*([^\r\n]+?)\r?$")


class Rank(IntEnum):
    """What a caller may do; each includes the one before."""

    STRANGER = 0
    """Reads what is open to read."""
    VIEWER = 1
    """Reads everything: logs, the audit trail, what workers say."""
    OPERATOR = 2
    """Changes everything."""


class Session(NamedTuple):
    """A session that was begun with a token."""

    rank: Rank
    ends: int
    """Unix time."""
    id: str

    @property
    def actor(self) -> str:
        """What the audit trail calls who uses it."""
        return f"{'session' if self.rank is Rank.OPERATOR else 'view'}:{self.id}"


class Sessions:
    """Makes and checks sessions, for the tokens that stand for each rank."""

    def __init__(self, tokens: Mapping[Rank, str], *, port: int = 0, secure: bool = False) -> None:
        """`port` keeps the cookies of several daemons apart; `secure`: there is TLS."""
        self.tokens = {rank: token.encode() for rank, token in tokens.items()}
        self._name = f"atlas_session_{port}"
        self._secure = secure
        self._ended: set[str] = set()
        self.is_restored = False
        """Whether the sessions that were ended before this start are known."""

    def begin(self, rank: Rank) -> Session:
        """Return a new session."""
        return Session(rank, int(time.time() + LASTS_SECONDS), secrets.token_hex(8))

    def end(self, *ids: str) -> None:
        """Refuse these sessions from now on."""
        self._ended.update(ids)

    def restore(self, ids: Iterable[str]) -> None:
        """Note the sessions that were ended before this start."""
        self.end(*ids)
        self.is_restored = True

    def set_cookie(self, session: Session) -> str:
        """Return the `Set-Cookie` that begins a session in a browser."""
        value = f"{int(session.rank)}.{session.ends}.{session.id}.{self._signature(session)}"
        return self._cookie(value, int(LASTS_SECONDS))

    def clear_cookie(self) -> str:
        """Return the `Set-Cookie` that ends it there."""
        return self._cookie("", 0)

    def _cookie(self, value: str, seconds: int) -> str:
        secure = "; Secure" if self._secure else ""
        limits = f"Max-Age={seconds}; HttpOnly; SameSite=Strict"
        return f"{self._name}={value}; Path=/; {limits}{secure}"

    def read(self, headers: Iterable[str]) -> Session | None:
        """Return the session in `Cookie` headers; None if there is none that holds."""
        # Cookies of other applications of this host come along, and may have any syntax.
        for pair in (each for header in headers for each in header.split(";")):
            name, _, value = pair.strip().partition("=")
            if name == self._name and (session := self._session(value)) is not None:
                return session
        return None

    def read_head(self, head: bytes) -> Session | None:
        """Return the session in the beginning of a request; it permits nothing yet."""
        return self.read(found[1].decode("latin-1") for found in _COOKIE.finditer(head))

    def _session(self, value: str) -> Session | None:
        match = re.fullmatch(r"([12])\.([0-9]{1,12})\.([0-9a-f]{16})\.([\w-]{43})", value, re.ASCII)
        if match is None:
            return None
        session = Session(Rank(int(match[1])), int(match[2]), match[3])
        if session.rank not in self.tokens:
            return None
        if not hmac.compare_digest(match[4], self._signature(session)):
            return None
        return session if self.holds(session) else None

    def holds(self, session: Session) -> bool:
        """Return whether a session, which was one, has not ended."""
        return session.id not in self._ended and time.time() < session.ends

    def _signature(self, session: Session) -> str:
        return self._mac(session.rank, f"session {session.ends} {session.id}")

    def form_token(self, actor: str) -> str:
        """Return the token in the forms of this caller; only its own pages can read it."""
        return self._mac(Rank.OPERATOR, f"form {actor}")

    def is_form_token(self, given: str, actor: str) -> bool:
        """Return whether a form is one of this caller's."""
        return hmac.compare_digest(given.encode(), self.form_token(actor).encode())

    def _mac(self, rank: Rank, text: str) -> str:
        key = hmac.digest(self.tokens[rank], b"atlas dashboard", hashlib.sha256)
        return base64.urlsafe_b64encode(hmac.digest(key, text.encode(), "sha256"))[:43].decode()
