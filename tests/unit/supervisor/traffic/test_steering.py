from __future__ import annotations

import math
import selectors
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from atlas_supervisor.config.fields import NETWORKS_LIMIT
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.steering import DIRECT_SOURCE, Split, SteeringPolicy, choose
from tests.harness import free_ports
from tests.unit.supervisor.traffic.support import BLUE, GREEN

Group = dict[SlotName, socket.socket]


@contextmanager
def group(host: str, policy: SteeringPolicy) -> Iterator[tuple[Group, int]]:
    (port,) = free_ports(1)
    opened = listeners.open_group(host, port, policy)
    with ExitStack() as stack:
        for sock in opened.values():
            stack.enter_context(sock)
        yield opened, port


def landed(opened: Group, address: str, port: int, source: str | None = None) -> SlotName:
    """Connect, and return the slot whose listener has the connection."""
    with (
        socket.create_connection((address, port), 2, (source, 0) if source else None) as client,
        selectors.DefaultSelector() as selector,
    ):
        for slot, sock in opened.items():
            selector.register(sock, selectors.EVENT_READ, slot)
        ((key, _),) = selector.select(2)
        accepted, peer = opened[key.data].accept()
        accepted.close()
        assert peer[1] == client.getsockname()[1]
        return SlotName(key.data)


REACHED_BY = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("::1", "::1"),
    ("::", "::1"),
    ("::", "127.0.0.1"),
]


@pytest.mark.parametrize(("host", "address"), REACHED_BY)
@pytest.mark.parametrize("direct", [False, True])
def test_every_connection_goes_to_the_active_slot(host: str, address: str, direct: bool) -> None:
    with group(host, SteeringPolicy(BLUE, direct=direct)) as (opened, port):
        for active in (BLUE, GREEN, BLUE):
            listeners.attach(opened[BLUE], SteeringPolicy(active, direct=direct))
            assert {landed(opened, address, port) for _ in range(20)} == {active}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("active", list(SlotName))
def test_a_direct_source_reaches_its_slot_active_or_not(host: str, active: SlotName) -> None:
    with group(host, SteeringPolicy(active, direct=True)) as (opened, port):
        for slot, source in DIRECT_SOURCE.items():
            seen = {landed(opened, "127.0.0.1", port, str(source)) for _ in range(10)}
            assert seen == {slot}
        assert landed(opened, "127.0.0.1", port, "127.83.0.3") is active


def test_without_direct_a_source_means_nothing() -> None:
    with group("127.0.0.1", SteeringPolicy(BLUE)) as (opened, port):
        assert landed(opened, "127.0.0.1", port, str(DIRECT_SOURCE[GREEN])) is BLUE


def test_the_program_may_be_attached_by_way_of_either_listener() -> None:
    with group("127.0.0.1", SteeringPolicy(BLUE)) as (opened, port):
        listeners.attach(opened[GREEN], SteeringPolicy(GREEN))
        assert landed(opened, "127.0.0.1", port) is GREEN
        listeners.attach(opened[GREEN], SteeringPolicy(BLUE))
        assert landed(opened, "127.0.0.1", port) is BLUE


def test_a_thousand_flips_lose_no_connection() -> None:
    seen: Counter[SlotName] = Counter()
    with group("127.0.0.1", SteeringPolicy(BLUE)) as (opened, port):
        for flip in range(1000):
            active = (BLUE, GREEN)[flip % 2]
            listeners.attach(opened[active.other], SteeringPolicy(active))
            assert landed(opened, "127.0.0.1", port) is active
            seen[active] += 1
    assert seen == {BLUE: 500, GREEN: 500}


def test_queued_connections_stay_in_their_queue_over_a_switch() -> None:
    with group("127.0.0.1", SteeringPolicy(BLUE)) as (opened, port), ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 2))
        listeners.attach(opened[BLUE], SteeringPolicy(GREEN))
        assert queue_length(opened[BLUE]) == 50
        for _ in range(50):
            stack.enter_context(opened[BLUE].accept()[0])


@pytest.mark.parametrize("active", list(SlotName))
def test_weights_say_where_the_traffic_goes(active: SlotName) -> None:
    assert SteeringPolicy(active).weights == {active.value: 1.0, active.other.value: 0.0}


SITES = [f"127.{number % 64 + 1}.{number}.1" for number in range(120)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_the_kernel_sends_each_address_where_the_reference_says(host: str) -> None:
    split = Split(0.4, by_address=True, salt=5, testers=(IPv4Network("127.200.0.0/16"),))
    for active in SlotName:
        policy = SteeringPolicy(active, split=split)
        with group(host, policy) as (opened, port):
            sources = [*SITES, "127.200.0.1", "127.199.255.255", *map(str, DIRECT_SOURCE.values())]
            for source in sources:
                assert landed(opened, "127.0.0.1", port, source) is choose(
                    policy, IPv4Address(source), 0
                ), source
            listeners.attach(opened[active], replace(policy, split=replace(split, weight=0.0)))
            assert landed(opened, "127.0.0.1", port, SITES[0]) is active
            assert landed(opened, "127.0.0.1", port, "127.200.0.1") is active.other


def test_the_kernel_draws_each_connection() -> None:
    with group("127.0.0.1", SteeringPolicy(BLUE, split=Split(0.25))) as (opened, port):
        found = Counter(landed(opened, "127.0.0.1", port) for _ in range(2000))
        # All but one in a million of what chance gives.
        assert abs(found[GREEN] - 500) < 4.9 * math.sqrt(2000 * 0.25 * 0.75)
        for weight, slot in ((0.0, BLUE), (1.0, GREEN)):
            listeners.attach(opened[BLUE], SteeringPolicy(BLUE, split=Split(weight)))
            assert {landed(opened, "127.0.0.1", port) for _ in range(50)} == {slot}


def test_the_largest_policy_is_accepted() -> None:
    testers = tuple(IPv6Network((n << 64, 127)) for n in range(NETWORKS_LIMIT))
    split = Split(0.5, by_address=True, testers=testers)
    with group("::1", SteeringPolicy(BLUE, split=split)) as (opened, port):
        landed(opened, "::1", port)


ANY_IPV6 = """
import ipaddress, socket, sys
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.steering import Split, SteeringPolicy, choose

tester = ipaddress.ip_network("2001:db8:ff::/56")
policy = SteeringPolicy(SlotName.BLUE, split=Split(0.4, True, 5, (tester,)))
group = listeners.open_group("::", 0, policy)
port = group[SlotName.BLUE].getsockname()[1]
sites = [ipaddress.ip_address((0x20010DB8 << 96) + (n << 72) + n) for n in range(200)]
sites += [tester[0], tester[-1], tester[-1] + 1]
seen = set()
for source in sites:
    with socket.create_connection(("::1", port), 2, (str(source), 0)):
        expected = choose(policy, source, 0)
        group[expected].settimeout(2)
        accepted, peer = group[expected].accept()
        assert peer[0] == str(source), (peer, source)
        accepted.close()
        seen.add(expected)
assert len(seen) == 2
"""


@pytest.mark.needs_root
def test_the_kernel_sends_each_ipv6_address_where_the_reference_says() -> None:
    """In a network namespace, whose loopback takes any address."""
    network = (
        "ip link set lo up && ip -6 route add local 2001:db8::/32 dev lo"
        " && echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind"
    )
    command = ["unshare", "-n", "sh", "-c", f'{network} && exec "$@"', "-", sys.executable]
    done = subprocess.run(
        [*command, "-c", ANY_IPV6], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
