"""The types of settings about HTTP requests: a path, a `Host`, headers.

As in `fields`, each `description` completes "accepted: ..." in a fault line.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAME = r"(?:[0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?"
_FRAMING = frozenset({"connection", "content-length", "expect", "te", "transfer-encoding"})
"""Headers that would change how a probe is sent, and not what it says."""


def _http_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise ValueError("it is not such a path")
    return value


def _http_host(value: str) -> str:
    """Check a `Host`. It is also the name in a TLS handshake, whose labels have a limit."""
    found = re.fullmatch(rf"(?:{_NAME}|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{{1,5}}))?", value)
    if value and (
        found is None or len(value) > 253 or not (found[1] is None or _is_ipv6(found[1]))
    ):
        raise ValueError("it is not such a name")
    if found and not 1 <= int(found[2] or 1) <= 65535:
        raise ValueError("its port is not from 1 to 65535")
    return value


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _headers(value: object) -> object:
    """Split `Name: value; Name: value`."""
    if not isinstance(value, str):
        return value
    found: list[tuple[str, str]] = []
    for part in filter(None, (part.strip(" \t") for part in value.split(";"))):
        name, colon, text = part.partition(":")
        if not colon:
            raise ValueError("a header has no colon")
        found.append((name, text.strip(" \t")))
    return tuple(found)


def _checked_headers(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    names = [name.lower() for name, _text in headers]
    for name, text in headers:
        if not re.fullmatch(_FIELD_NAME, name):
            raise ValueError("it has something that is not the name of a header")
        if not text.isprintable():
            raise ValueError(f"{name} has a control character")
        if name.lower() == "host":
            raise ValueError("Host is set by HEALTH_HOST")
        if name.lower() in _FRAMING or name.lower().startswith("x-atlas-"):
            raise ValueError(f"{name} is set by the supervisor")
        if names.count(name.lower()) > 1:
            raise ValueError(f"{name} is given twice")
    return headers


def _http_path_or_none(value: str) -> str:
    return _http_path(value) if value else value


HttpPath = Annotated[
    str, AfterValidator(_http_path), Field(description="a path that begins with /, as /health")
]
HttpPathOrNone = Annotated[
    str,
    AfterValidator(_http_path_or_none),
    Field(description="a path that begins with /, as /livez, or empty for none"),
]
HttpHost = Annotated[
    str,
    AfterValidator(_http_host),
    Field(description="a host name or address with or without a port, as example.org, or empty"),
]
HttpHeaders = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_headers),
    AfterValidator(_checked_headers),
    Field(description="headers as Name: value, separated by ;, each once, or empty for none"),
]
