"""The steering policy, the choice that follows from it, and the kernel's program for it. Pure.

The public port is a SO_REUSEPORT group of two listening sockets. For every new connection the
kernel runs the classic BPF program that is attached to the group; its result is the index of the
socket that gets the connection. This module turns a policy into that program (`compile_policy`),
and `listeners` attaches it with one setsockopt. `choose` is the same decision in Python: the relay
plane decides by it, and tests hold the program to it.

What always holds:
- The index counts the group's sockets in the order of `listen()`: 0 is blue and 1 is green
  (GROUP_ORDER), or the other way round after a restart that took the sockets back from a worker.
  Which slot is active changes with the program and not with the sockets.
- A switch attaches another program, and so does every change of a split. The kernel exchanges the
  two atomically: every connection is steered by the one or by the other, and none is refused.
- A connection belongs to a queue from its first SYN on. A program has no effect on connections
  that are established, queued or in the middle of their handshake.
- The result must be 0 or 1; while traffic is held, 2 as well, the parked listener that a hold adds
  to the group. For an index out of range the kernel silently hashes over all sockets of the group.
- The program is attached to the group, through any of its sockets. A worker that inherited one
  could replace it, so it is attached again after every launch, every switch is checked with a
  real connection, and so is the steering in between (`deploy.landing_watch`).

The order of a decision, by the source address, which the program reads with SKF_NET_OFF, relative
to the IP header (a dual-stack socket sees both families, so it looks at the version first):
1. With `direct`, and while there is a split or a hold, two reserved loopback sources reach the
   slots, independent of the active slot. In a hold the rest gets the parked listener.
2. A tester's network gets the staging slot.
3. A number of 32 bits below the weight, as a part of 2^32, gets the staging slot: a random one, or
   a hash of the masked address. That number does not depend on the weight, so an address that has
   the staging slot keeps it while the weight grows.
4. The rest gets the active slot.

After a switch the staging slot has the version before. In a `holdback` it keeps a part, so 2 and 3
are the other way round: testers get the active slot, and the staging slot has the numbers from the
top. Those are the addresses that a growing weight would have taken to the new version last.

The hash is MurmurHash3's finalizer over the words of the masked address, begun with a salt: only
multiplication, shifts and exclusive or, which classic BPF has. A salt of its own makes each deploy
begin with other addresses.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from atlas_supervisor.model.slot import SlotName

GROUP_ORDER = (SlotName.BLUE, SlotName.GREEN)
"""Order of `listen()` in the group, which the kernel's index counts."""

PARKED = 2
"""Index of the parked listener, which is the last to listen."""

DIRECT_SOURCE = {
    SlotName.BLUE: IPv4Address("127.83.0.1"),
    SlotName.GREEN: IPv4Address("127.83.0.2"),
}
"""Loopback sources whose connections reach a slot through the public port, active or not.

A worker that inherited the public socket alone is reached by them, and so is the active one while
there is a split. Any address of 127.0.0.0/8 would do; these are unlikely to be in use.
"""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SITE = {4: (0xFFFFFF00,), 6: (0xFFFFFFFF, 0xFFFFFF00)}
"""The first words of an address that are hashed: /24 of IPv4, /56 of IPv6, as one site has it."""

_WORD = 1 << 32
_MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))
"""The finalizer of MurmurHash3: h ^= h >> shift; h *= factor."""


@dataclass(frozen=True)
class Split:
    """The staging slot's part of the new connections."""

    weight: float = 0.0
    """Share of connections, or of addresses; 0 to 1."""
    by_address: bool = False
    """Whether an address keeps its slot; else each connection is drawn."""
    salt: int = 0
    """32 bits that make the assignment of addresses another one."""
    testers: tuple[Network, ...] = ()
    """They get the staging slot, with a weight of 0, too."""
    holdback: bool = False
    """Whether the staging slot has the version before, and not the one to come."""

    @property
    def threshold(self) -> int:
        """The weight as a part of 2^32."""
        return round(self.weight * _WORD)

    def takes(self, number: int) -> bool:
        """Return whether a number of 32 bits is the staging slot's."""
        return number >= _WORD - self.threshold if self.holdback else number < self.threshold

    def __bool__(self) -> bool:
        """Return whether any connection may go to the staging slot."""
        return bool(self.threshold or (self.testers and not self.holdback))


@dataclass(frozen=True)
class SteeringPolicy:
    """Sends new connections to the `active` slot, but for what `split` gives to the other one.

    With `direct`, connections from a slot's `DIRECT_SOURCE` go to that slot instead.
    """

    active: SlotName
    direct: bool = False
    order: tuple[SlotName, SlotName] = GROUP_ORDER
    """Whose socket is first in the group, and whose is second."""
    split: Split = Split()
    held: bool = False
    """Whether connections wait in the parked listener's queue."""

    @property
    def weights(self) -> dict[str, float]:
        """Share of new connections per slot, 0 to 1; those of testers are not counted."""
        staging = self.split.weight
        shares = {self.active: round(1.0 - staging, 12), self.active.other: staging}
        return {slot.value: shares[slot] for slot in GROUP_ORDER}

    @property
    def has_direct_sources(self) -> bool:
        """Whether each slot can be reached from its `DIRECT_SOURCE`."""
        return self.direct or self.held or bool(self.split)

    @property
    def tested(self) -> SlotName:
        """The slot that testers get."""
        return self.active if self.split.holdback else self.active.other


# The decision in Python.


def choose(policy: SteeringPolicy, source: Address, draw: int) -> SlotName:
    """Return the slot of a connection that is not held; `draw` is a random number of 32 bits."""
    source = getattr(source, "ipv4_mapped", None) or source
    if policy.has_direct_sources:
        for slot, address in DIRECT_SOURCE.items():
            if source == address:
                return slot
    split = policy.split
    if any(source in network for network in split.testers):
        return policy.tested
    number = site_hash(source, split.salt) if split.by_address else draw
    return policy.active.other if split.takes(number) else policy.active


def site_hash(source: Address, salt: int) -> int:
    """Return the hash, of 32 bits, of the network that the address counts as."""
    found = salt
    for word, mask in zip(_words(source), _SITE[source.version], strict=False):
        found ^= word & mask
        for shift, factor in _MIX:
            found = ((found ^ found >> shift) * factor) % _WORD
    return found


def _words(address: Address) -> tuple[int, ...]:
    return struct.unpack(f"!{address.max_prefixlen // 32}I", address.packed)


# The decision in the kernel. Classic BPF, from linux/bpf_common.h and linux/filter.h.

_LD_IMM = 0x00  # A = k
_LD_W_ABS = 0x20  # A = 32 bits of the packet at k
_LD_B_ABS = 0x30  # A = 8 bits of the packet at k
_LD_MEM = 0x60  # A = M[k]
_ST = 0x02  # M[k] = A
_TAX = 0x07  # X = A
_AND_K = 0x54  # A &= k
_MUL_K = 0x24  # A *= k
_RSH_K = 0x74  # A >>= k
_XOR_X = 0xAC  # A ^= X
_JA = 0x05  # skip k instructions
_JEQ_K = 0x15  # if A == k skip jt instructions, else jf
_JGE_K = 0x35  # if A >= k skip jt instructions, else jf
_RET_K = 0x06  # return k
_NET_OFF = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF: offsets from the start of the IP header
_RANDOM = -0x1000 + 56 & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_RANDOM: a random number of 32 bits
_SOURCE = {4: 12, 6: 8}  # where the source address is within the IP header, by version of IP
_WORDS = {4: 1, 6: 4}  # and its length
_DIRECT_VERSION = 4

_INSTRUCTION = struct.Struct("=HBBI")
_Program = list[tuple[int, int, int, int]]


def compile_policy(policy: SteeringPolicy) -> bytes:
    """Return the policy as an array of `struct sock_filter`."""
    program = [_to(policy, policy.active)]
    if policy.has_direct_sources:
        ipv4, ipv6 = _branch(policy, 4), _branch(policy, 6)
        program = [
            (_LD_B_ABS, 0, 0, _NET_OFF),
            (_AND_K, 0, 0, 0xF0),
            (_JEQ_K, 1, 0, 0x40),
            (_JA, 0, 0, len(ipv4)),  # not IPv4
            *ipv4,
            *ipv6,
        ]
    return _packed(program)


def compile_index(index: int) -> bytes:
    """Return a program that sends every connection to one socket of its group."""
    return _packed([(_RET_K, 0, 0, index)])


def _packed(program: _Program) -> bytes:
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _to(policy: SteeringPolicy, slot: SlotName) -> tuple[int, int, int, int]:
    return _RET_K, 0, 0, policy.order.index(slot)


def _branch(policy: SteeringPolicy, version: int) -> _Program:
    """Return the decision for one version of IP."""
    known = () if policy.held else policy.split.testers
    testers = [each for each in known if each.version == version]
    program: _Program = []
    if testers or policy.split.by_address or version == _DIRECT_VERSION:
        for word in range(_WORDS[version]):
            program += [
                (_LD_W_ABS, 0, 0, _NET_OFF + _SOURCE[version] + 4 * word),
                (_ST, 0, 0, word),
            ]
    if version == _DIRECT_VERSION:
        for slot, source in DIRECT_SOURCE.items():
            program += [(_JEQ_K, 0, 1, int(source)), _to(policy, slot)]
    for network in testers:
        program += [*_within(network), _to(policy, policy.tested)]
    return program + _drawn(policy, version)


def _within(network: Network) -> _Program:
    """Return a check that skips one instruction more if the address is not in the network."""
    checks: list[_Program] = []
    for word, (value, mask) in enumerate(
        zip(_words(network.network_address), _words(network.netmask), strict=True)
    ):
        if mask:
            checks.append([(_LD_MEM, 0, 0, word), (_AND_K, 0, 0, mask), (_JEQ_K, 0, 0, value)])
    program: _Program = []
    for left, check in enumerate(reversed(checks)):
        *load, (jump, _, _, value) = check
        program = [*load, (jump, 0, 1 + 3 * left, value), *program]
    return program


def _drawn(policy: SteeringPolicy, version: int) -> _Program:
    """Return the decision by the weight."""
    if policy.held:
        return [(_RET_K, 0, 0, PARKED)]
    split, active, staging = policy.split, policy.active, policy.active.other
    if split.threshold in {0, _WORD}:
        return [_to(policy, staging if split.threshold else active)]
    number: _Program = [(_LD_W_ABS, 0, 0, _RANDOM)]
    if split.by_address:
        number = _hashed(split.salt, _SITE[version])
    bound, above, below = split.threshold, active, staging
    if split.holdback:
        bound, above, below = _WORD - bound, staging, active
    return [*number, (_JGE_K, 0, 1, bound), _to(policy, above), _to(policy, below)]


def _hashed(salt: int, masks: Sequence[int]) -> _Program:
    """Return the steps that hash the words of the address that are in M."""
    program: _Program = [(_LD_IMM, 0, 0, salt)]
    for word, mask in enumerate(masks):
        program += [(_TAX, 0, 0, 0), (_LD_MEM, 0, 0, word), (_AND_K, 0, 0, mask), (_XOR_X, 0, 0, 0)]
        for shift, factor in _MIX:
            program += [(_TAX, 0, 0, 0), (_RSH_K, 0, 0, shift), (_XOR_X, 0, 0, 0)]
            program += [(_MUL_K, 0, 0, factor)] if factor > 1 else []
    return program
