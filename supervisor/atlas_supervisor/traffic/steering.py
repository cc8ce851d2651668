"""The steering policy, and its translation into the kernel's program. Pure.

The public port is a SO_REUSEPORT group of two listening sockets. For every new connection the
kernel runs the classic BPF program that is attached to the group; its result is the index of the
socket that gets the connection. This module turns a policy into that program, and `listeners`
attaches it with one setsockopt.

What always holds:
- The index counts the group's sockets in the order of `listen()`: 0 is blue and 1 is green
  (GROUP_ORDER), or the other way round after a restart that took the sockets back from a worker.
  Which slot is active changes with the program and not with the sockets.
- A switch attaches another program. The kernel exchanges the two atomically: every connection is
  steered by the one or by the other, and none is refused.
- A connection belongs to a queue from its first SYN on. A program has no effect on connections
  that are established, queued or in the middle of their handshake.
- The result must be 0 or 1. For an index out of range the kernel silently hashes over all sockets
  of the group.
- The program is attached to the group, through any of its sockets. A worker that inherited one
  could replace it, so it is attached again after every launch, every switch is checked with a
  real connection, and so is the steering in between (`deploy.landing_watch`).

With `direct`, two reserved loopback sources reach the slots through the public port, independent
of the active slot. The program reads the source address with SKF_NET_OFF, relative to the IP
header; a dual-stack socket sees both families, so it looks at the version first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from atlas_supervisor.model.slot import SlotName

GROUP_ORDER = (SlotName.BLUE, SlotName.GREEN)
"""Order of `listen()` in the group, which the kernel's index counts."""

DIRECT_SOURCE = {
    SlotName.BLUE: IPv4Address("127.83.0.1"),
    SlotName.GREEN: IPv4Address("127.83.0.2"),
}
"""Loopback sources whose connections reach a slot through the public port, active or not.

A worker that inherited the public socket alone is reached by them. Any address of 127.0.0.0/8
would do; these are unlikely to be in use.
"""

# Classic BPF, from linux/bpf_common.h and linux/filter.h.
_LD_W_ABS = 0x20  # A = 32 bits of the packet at k
_LD_B_ABS = 0x30  # A = 8 bits of the packet at k
_AND_K = 0x54  # A &= k
_JEQ_K = 0x15  # if A == k skip jt instructions, else jf
_RET_K = 0x06  # return k
_NET_OFF = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF: offsets from the start of the IP header
_IPV4_SOURCE = 12  # the source address within an IPv4 header

_INSTRUCTION = struct.Struct("=HBBI")


@dataclass(frozen=True)
class SteeringPolicy:
    """Sends new connections to the `active` slot.

    With `direct`, connections from a slot's `DIRECT_SOURCE` go to that slot instead.
    """

    active: SlotName
    direct: bool = False
    order: tuple[SlotName, SlotName] = GROUP_ORDER
    """Whose socket is first in the group, and whose is second."""

    @property
    def weights(self) -> dict[str, float]:
        """Share of new connections per slot, 0 to 1."""
        return {slot.value: 1.0 if slot is self.active else 0.0 for slot in GROUP_ORDER}


def compile_policy(policy: SteeringPolicy) -> bytes:
    """Return the policy as an array of `struct sock_filter`."""
    index = policy.order.index
    program: list[tuple[int, int, int, int]] = []
    if policy.direct:
        # A dual-stack socket sees both families; only IPv4 has more than one loopback source.
        program += [
            (_LD_B_ABS, 0, 0, _NET_OFF),
            (_AND_K, 0, 0, 0xF0),
            (_JEQ_K, 0, 5, 0x40),  # not IPv4: on to the last instruction
            (_LD_W_ABS, 0, 0, _NET_OFF + _IPV4_SOURCE),
            (_JEQ_K, 0, 1, int(DIRECT_SOURCE[SlotName.BLUE])),
            (_RET_K, 0, 0, index(SlotName.BLUE)),
            (_JEQ_K, 0, 1, int(DIRECT_SOURCE[SlotName.GREEN])),
            (_RET_K, 0, 0, index(SlotName.GREEN)),
        ]
    program.append((_RET_K, 0, 0, index(policy.active)))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def compile_index(index: int) -> bytes:
    """Return a program that sends every connection to one socket of its group."""
    return _INSTRUCTION.pack(_RET_K, 0, 0, index)
