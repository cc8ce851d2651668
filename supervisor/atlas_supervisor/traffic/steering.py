"""Which slot a new connection goes to, as a policy and as the kernel's own program. Pure.

The public port is a group of two listening sockets, blue at index 0 and green at index 1. For
every new connection the kernel runs a classic BPF program that is attached to the group and
returns the index. This module turns a policy into that program; `listeners` attaches it. A
switch is the attachment of another program, one system call, and no connection is ever between.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from atlas_supervisor.model.slot import SlotName

GROUP_ORDER = (SlotName.BLUE, SlotName.GREEN)
"""Order of `listen()` in the group, which is what the kernel's index means."""

DIRECT_SOURCE = {
    SlotName.BLUE: IPv4Address("127.83.0.1"),
    SlotName.GREEN: IPv4Address("127.83.0.2"),
}
"""Loopback sources whose connections reach a slot through the public port, whoever is active.

This is how a worker is reached that was handed nothing but its public socket. Any address of
127.0.0.0/8 does; these are unlikely to be somebody's own.
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
    """What should happen to new connections: `active` gets them.

    With `direct`, connections from a slot's `DIRECT_SOURCE` go to that slot instead.
    """

    active: SlotName
    direct: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """Share of new connections per slot, 0 to 1."""
        return {slot.value: 1.0 if slot is self.active else 0.0 for slot in GROUP_ORDER}


def compile_policy(policy: SteeringPolicy) -> bytes:
    """Return the policy as an array of `struct sock_filter`."""
    program: list[tuple[int, int, int, int]] = []
    if policy.direct:
        # A dual-stack socket sees both families; only IPv4 has more than one loopback source.
        program += [
            (_LD_B_ABS, 0, 0, _NET_OFF),
            (_AND_K, 0, 0, 0xF0),
            (_JEQ_K, 0, 5, 0x40),  # not IPv4: on to the last instruction
            (_LD_W_ABS, 0, 0, _NET_OFF + _IPV4_SOURCE),
            (_JEQ_K, 0, 1, int(DIRECT_SOURCE[SlotName.BLUE])),
            (_RET_K, 0, 0, GROUP_ORDER.index(SlotName.BLUE)),
            (_JEQ_K, 0, 1, int(DIRECT_SOURCE[SlotName.GREEN])),
            (_RET_K, 0, 0, GROUP_ORDER.index(SlotName.GREEN)),
        ]
    program.append((_RET_K, 0, 0, GROUP_ORDER.index(policy.active)))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
