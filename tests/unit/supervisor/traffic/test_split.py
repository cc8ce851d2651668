"""The split: the program of the kernel against `choose`, by an interpreter and by the kernel."""

from __future__ import annotations

import ipaddress
import math
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic.steering import (
    DIRECT_SOURCE,
    PARKED,
    Address,
    Network,
    Split,
    SteeringPolicy,
    choose,
    compile_policy,
    site_hash,
)
from tests.unit.supervisor.traffic.support import BLUE, GREEN

NET_OFF, RANDOM = -0x100000 & 0xFFFFFFFF, -0x1000 + 56 & 0xFFFFFFFF
JUMPS = {0x15: int.__eq__, 0x35: int.__ge__}
WORD = 1 << 32


def header(source: Address) -> bytes:
    """Return the IP header of a packet from this address."""
    if isinstance(source, IPv4Address):
        return b"\x45" + bytes(11) + source.packed + bytes(4)
    return b"\x60" + bytes(7) + source.packed + bytes(16)


def word(k: int, packet: bytes, draw: int, _memory: list[int]) -> int:
    return draw if k == RANDOM else int.from_bytes(packet[k - NET_OFF : k - NET_OFF + 4])


LOADS: dict[int, Callable[[int, bytes, int, list[int]], int]] = {
    0x00: lambda k, _packet, _draw, _memory: k,
    0x20: word,
    0x30: lambda k, packet, _draw, _memory: packet[k - NET_OFF],
    0x60: lambda k, _packet, _draw, memory: memory[k],
}
COMPUTES: dict[int, Callable[[int, int, int], int]] = {
    0x54: lambda a, _x, k: a & k,
    0x24: lambda a, _x, k: a * k % WORD,
    0x74: lambda a, _x, k: a >> min(k, 32),
    0xAC: lambda a, x, _k: a ^ x,
}


@lru_cache(1)
def steps_of(program: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("=HBBI", program))


def interpret(program: bytes, packet: bytes, draw: int) -> int:
    """Run the program as the kernel defines it (Documentation/networking/filter.rst)."""
    steps = steps_of(program)
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = steps[at]
        at += 1
        if code == 0x06:
            return int(k)
        if code in JUMPS:
            at += jt if JUMPS[code](a, k) else jf
        elif code == 0x05:
            at += k
        elif code == 0x02:
            memory[k] = a
        elif code == 0x07:
            x = a
        elif code in LOADS:
            a = LOADS[code](k, packet, draw, memory)
        else:
            a = COMPUTES[code](a, x, k)


def by_program(policy: SteeringPolicy, source: Address, draw: int = 0) -> SlotName:
    return policy.order[interpret(compile_policy(policy), header(source), draw)]


words = st.integers(0, WORD - 1)
addresses: st.SearchStrategy[Address] = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6), st.sampled_from(list(DIRECT_SOURCE.values()))
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses)
    length = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network((address, length), strict=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SteeringPolicy, Address]:
    testers = tuple(draw(st.lists(networks(), max_size=5)))
    split = Split(
        weight=draw(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))),
        by_address=draw(st.booleans()),
        salt=draw(words),
        testers=testers,
        holdback=draw(st.booleans()),
    )
    order = draw(st.sampled_from([(BLUE, GREEN), (GREEN, BLUE)]))
    policy = SteeringPolicy(
        draw(st.sampled_from(list(SlotName))), draw(st.booleans()), order, split
    )
    source = draw(addresses)
    if testers and draw(words) % 2:  # near the bounds of a network
        network = draw(st.sampled_from(testers))
        first, last = int(network.network_address), int(network.broadcast_address)
        near = draw(st.sampled_from([first - 1, first, last, last + 1]))
        source = type(network.network_address)(near % (1 << network.max_prefixlen))
    if isinstance(source, IPv6Address) and source.ipv4_mapped:
        source = source.ipv4_mapped  # a mapped one is never on the wire
    return policy, source


@given(cases(), words)
@settings(max_examples=400, deadline=None)
def test_the_program_decides_as_the_reference_does(
    case: tuple[SteeringPolicy, Address], draw: int
) -> None:
    policy, source = case
    assert by_program(policy, source, draw) is choose(policy, source, draw)


@given(cases(), words)
@settings(max_examples=60, deadline=None)
def test_in_a_hold_all_wait_but_the_direct_sources(
    case: tuple[SteeringPolicy, Address], draw: int
) -> None:
    policy, source = replace(case[0], held=True), case[1]
    found = interpret(compile_policy(policy), header(source), draw)
    slots = [slot for slot, address in DIRECT_SOURCE.items() if address == source]
    assert found == (policy.order.index(slots[0]) if slots else PARKED)


@pytest.mark.parametrize("weight", [0.001, 0.01, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("by_address", [False, True])
def test_the_weight_is_exact_to_a_part_in_two_to_the_thirtieth(
    weight: float, by_address: bool
) -> None:
    split = Split(weight, by_address)
    assert abs(split.threshold / WORD - weight) < 2**-30
    # The numbers below the threshold, and no others, have the staging slot.
    policy = SteeringPolicy(BLUE, split=Split(weight))
    address = IPv4Address("192.0.2.1")
    assert by_program(policy, address, split.threshold - 1) is GREEN
    assert by_program(policy, address, split.threshold) is BLUE


def test_a_holdback_leaves_the_addresses_that_a_ramp_takes_last() -> None:
    addresses = [IPv4Address(f"10.{number // 256}.{number % 256}.1") for number in range(5_000)]
    ramp, after = Split(0.9, True, salt=7), Split(0.1, True, salt=7, holdback=True)
    new = [choose(SteeringPolicy(BLUE, split=ramp), each, 0) is GREEN for each in addresses]
    held = [choose(SteeringPolicy(GREEN, split=after), each, 0) is BLUE for each in addresses]
    assert not any(map(bool.__and__, new, held))
    assert 0.08 < sum(held) / len(held) < 0.12


def test_testers_are_never_held_back() -> None:
    testers = (ipaddress.ip_network("10.0.0.0/8"),)
    policy = SteeringPolicy(GREEN, split=Split(0.5, testers=testers, holdback=True))
    assert {by_program(policy, IPv4Address("10.1.1.1"), draw) for draw in (0, WORD - 1)} == {GREEN}
    assert not Split(0, testers=testers, holdback=True)


SITES: dict[str, list[Address]] = {
    "neighbours": [IPv4Address((10 << 24) + (site << 8)) for site in range(20_000)],
    "anywhere": [
        IPv4Address(n << 8)
        for n in random.Random(2).sample(range(1 << 24), 20_000)  # noqa: S311  # repeatable
    ],
    "ipv6": [IPv6Address((0x20010DB8 << 96) + (site << 72)) for site in range(20_000)],
}


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
@pytest.mark.parametrize("salt", [0, 1, 0xDEADBEEF])
def test_the_hash_spreads_sites_evenly(sites: list[Address], salt: int) -> None:
    """A chi-squared test over 256 classes, of whose quantile only one in a million is beyond."""
    found = Counter(site_hash(site, salt) >> 24 for site in sites)
    expected = len(sites) / 256
    chi_squared = sum((found[each] - expected) ** 2 / expected for each in range(256))
    assert chi_squared < 255 + 4.9 * math.sqrt(2 * 255)


def test_another_salt_is_another_assignment() -> None:
    sites = SITES["neighbours"]
    one, other = ({s for s in sites if site_hash(s, salt) < WORD // 10} for salt in (1, 2))
    both = len(one & other)  # 1 % by chance
    assert 120 < both < 280


def test_ten_thousand_addresses_keep_their_version_while_the_weight_grows() -> None:
    chance = random.Random(17)  # noqa: S311  # repeatable
    clients: list[Address] = [IPv4Address(chance.getrandbits(32)) for _ in range(5000)]
    clients += [IPv6Address(chance.getrandbits(128)) for _ in range(5000)]
    headers = {each: header(each) for each in clients}
    weights = [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0]
    have = []
    for weight in weights:
        policy = SteeringPolicy(BLUE, split=Split(weight, True, 7))
        program = compile_policy(policy)
        have.append({each for each in clients if interpret(program, headers[each], 0)})
    assert all(fewer <= more for fewer, more in pairwise(have))
    assert not have[0]
    assert len(have[-1]) == len(set(clients))
    for weight, found in zip(weights, have, strict=True):
        assert abs(len(found) - 10_000 * weight) <= 5 * math.sqrt(10_000 * weight * (1 - weight))


@pytest.mark.parametrize(
    ("one", "other", "is_one_site"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("2001:db8:0:ff00::1", "2001:db8:0:ffff:1:2:3:4", True),
        ("2001:db8:0:ff00::1", "2001:db8:0:fe00::1", False),
        ("::ffff:192.0.2.1", "192.0.2.77", True),
    ],
)
def test_a_site_is_one_client(one: str, other: str, is_one_site: bool) -> None:
    policies = [SteeringPolicy(BLUE, split=Split(0.5, True, salt)) for salt in range(64)]
    pair = [
        [choose(policy, ipaddress.ip_address(each), 0) for policy in policies]
        for each in (one, other)
    ]
    assert (pair[0] == pair[1]) is is_one_site


def test_weights_show_the_share_of_each_slot() -> None:
    assert SteeringPolicy(BLUE, split=Split(0.1)).weights == {"blue": 0.9, "green": 0.1}
    assert SteeringPolicy(GREEN, split=Split(0.3)).weights == {"blue": 0.3, "green": 0.7}
