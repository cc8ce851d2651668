"""What stands for a client's address where addresses are drawn between two versions. Pure.

All processes of both versions hash with one secret, so that the supervisor knows an address again,
and no file has one.
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

_KEY_BYTES = 6
_SITE_BYTES = {4: 3, 6: 7}
"""/24 of IPv4, /56 of IPv6: what is drawn."""


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
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return 0
    address = getattr(address, "ipv4_mapped", None) or address
    site = address.packed[: _SITE_BYTES[address.version]]
    digest = hashlib.blake2b(site, digest_size=_KEY_BYTES, key=secret).digest()
    return int.from_bytes(digest, "little") or 1


def key_id(secret: bytes) -> int:
    """Return a number that shows whether two processes have the same secret; 0 without one."""
    if not secret:
        return 0
    digest = hashlib.blake2b(b"id", digest_size=4, key=secret).digest()
    return int.from_bytes(digest, "little") or 1
