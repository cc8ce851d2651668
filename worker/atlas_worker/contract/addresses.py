"""What stands for a client's address where addresses are drawn between two versions. Pure.

All processes of both versions hash with one secret, so that the supervisor knows an address again,
and no file has one.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv6Address

_KEY_BYTES = 6
# What is drawn is a /24 of IPv4, with or without this prefix, and a /56 of IPv6.
_MAPPED, _DOTS = "::ffff:", 2
_HOST_BITS = 128 - 56


class Drawn(float):
    """When a connection began whose address was drawn: `time.monotonic()`."""

    __slots__ = ("key",)
    key: int
    """That of its address."""

    def __new__(cls, since: float, key: int) -> Drawn:
        """Return the beginning of a connection from an address with this key."""
        drawn = super().__new__(cls, since)
        drawn.key = key
        return drawn


def address_key(client: str, secret: bytes) -> int:
    """Return the keyed hash of an address's site, in 48 bits; 0 if it is no address."""
    site, _, host = client.removeprefix(_MAPPED).rpartition(".")
    if not (host.isdecimal() and site.count(".") == _DOTS):
        try:
            site = f"{int(IPv6Address(client.partition('%')[0])) >> _HOST_BITS:x}"
        except ValueError:
            return 0
    digest = blake2b(site.encode(), digest_size=_KEY_BYTES, key=secret).digest()
    return int.from_bytes(digest, "little") or 1


def key_id(secret: bytes) -> int:
    """Return a number that shows whether two processes have the same secret; 0 without one."""
    if not secret:
        return 0
    digest = blake2b(b"id", digest_size=4, key=secret).digest()
    return int.from_bytes(digest, "little") or 1
