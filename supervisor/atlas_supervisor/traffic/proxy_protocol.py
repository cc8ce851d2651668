"""The header of PROXY protocol, version 2, by which a relay reports the client's address. Pure.

It is sent before the connection's first byte. A connection of the daemon itself, such as a probe,
has the command LOCAL: no client is behind it.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_2_LOCAL, _VERSION_2_PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP_4, _TCP_6 = 0x00, 0x11, 0x21
_FIXED = struct.Struct("!12sBBH")  # signature, version and command, family, length of the rest
_PORTS = struct.Struct("!HH")

LOCAL = _FIXED.pack(_SIGNATURE, _VERSION_2_LOCAL, _UNSPECIFIED, 0)
"""The header of a connection that the daemon itself has opened."""

Address = IPv4Address | IPv6Address


def header(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """Return the header of a client's connection: its own address and the one it connected to."""
    source, target = _address(client[0]), _address(server[0])
    if source.version != target.version:  # the family is one for both
        source, target = _as_ipv6(source), _as_ipv6(target)
    family = _TCP_4 if source.version == 4 else _TCP_6
    addresses = source.packed + target.packed + _PORTS.pack(client[1], server[1])
    return _FIXED.pack(_SIGNATURE, _VERSION_2_PROXY, family, len(addresses)) + addresses


def _address(text: str) -> Address:
    """Return the address; a client that reached `::` over IPv4 has its IPv4 address."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _as_ipv6(address: Address) -> IPv6Address:
    return IPv6Address(f"::ffff:{address}") if isinstance(address, IPv4Address) else address
