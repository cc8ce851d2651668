from __future__ import annotations

import selectors
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.steering import DIRECT_SOURCE, SteeringPolicy
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
