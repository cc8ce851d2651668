from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
import structlog

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.traffic import Endpoints, Plane, listeners, make_plane
from atlas_supervisor.traffic.kernel_plane import KernelPlane
from atlas_supervisor.traffic.relay_plane import RelayPlane
from atlas_supervisor.traffic.steering import Split, SteeringPolicy, choose
from tests.harness import eventually, free_ports
from tests.unit.supervisor.traffic.support import (
    BLUE,
    GREEN,
    echo,
    foreign_listener,
    naming,
    open_files,
    opened,
    serving,
    who,
)


@pytest.mark.parametrize(
    ("host", "public_port", "socket_passing", "expected", "name"),
    [
        ("127.0.0.1", 8790, SocketPassing.ACTIVATION, KernelPlane, "kernel"),
        ("::1", 8790, SocketPassing.ACTIVATION, KernelPlane, "kernel"),
        ("127.0.0.1", 8790, SocketPassing.FD, KernelPlane, "kernel"),
        ("::", 8790, SocketPassing.FD, KernelPlane, "kernel"),
        ("::1", 8790, SocketPassing.FD, RelayPlane, "relay"),
        ("127.0.0.1", 8790, SocketPassing.PORT, RelayPlane, "relay"),
        ("127.0.0.1", 0, SocketPassing.ACTIVATION, RelayPlane, "none"),
        ("127.0.0.1", 0, SocketPassing.PORT, RelayPlane, "none"),
    ],
)
def test_the_best_plane_is_made(
    host: str, public_port: int, socket_passing: SocketPassing, expected: type, name: str
) -> None:
    plane = make_plane(Endpoints(host, public_port, {BLUE: 1, GREEN: 2}), socket_passing)
    assert isinstance(plane, expected)
    assert plane.name == name


def ignore(_sock: socket.socket, _policy: SteeringPolicy) -> None:
    """Take the program and do nothing."""


def refuse(_sock: socket.socket, _policy: SteeringPolicy) -> None:
    raise OSError(errno.ENOPROTOOPT, "Protocol not available")


# No kernel at hand refuses it, so this is one of the few places where it is made to.
@pytest.mark.parametrize(
    ("attach", "why"), [(refuse, "Protocol not available"), (ignore, "ignores it")]
)
async def test_a_kernel_that_does_not_steer_selects_the_relay_plane_with_a_warning(
    attach: Callable[[socket.socket, SteeringPolicy], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = open_files()
    monkeypatch.setattr(listeners, "attach", attach)
    monkeypatch.setattr(listeners, "_TRIAL_SECONDS", 0.2)
    with structlog.testing.capture_logs() as logged:
        async with (
            opened(SocketPassing.ACTIVATION) as (plane, at),
            serving(naming("blue"), plane.inherited(BLUE).named["public"]),
        ):
            assert plane.name == "relay"
            assert await who(at.public_port) == "blue"
    (warning,) = [each for each in logged if each["event"] == "kernel_steering_unavailable"]
    assert warning["log_level"] == "warning"
    assert why in warning["why"]
    await eventually(lambda: open_files() <= before)


def test_this_kernel_steers_and_the_proof_leaves_nothing_open() -> None:
    before = open_files()
    listeners.prove_steering()
    assert open_files() == before


@contextlib.asynccontextmanager
async def relay_plane(
    socket_passing: SocketPassing, host: str = "127.0.0.1", *, public: bool = True
) -> AsyncIterator[tuple[Plane, Endpoints]]:
    public_port, blue, green = free_ports(3)
    at = Endpoints(host, public_port if public else 0, {BLUE: blue, GREEN: green})
    plane = RelayPlane(at, socket_passing)
    plane.open(BLUE)
    try:
        yield plane, at
    finally:
        await plane.close()


async def test_http_server_is_served_by_the_relay(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with opened(SocketPassing.PORT) as (plane, at):
        assert plane.inherited(BLUE).named == {}
        assert plane.inherited(BLUE).spare == ()
        servers = []
        for slot, port in at.slot_ports.items():
            folder = tmp_path_factory.mktemp(slot)
            (folder / "name").write_text(slot)
            servers.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"),
                    cwd=folder,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )
        try:
            for active in (BLUE, GREEN, BLUE):
                plane.steer(active)
                reader, writer = await asyncio.open_connection("127.0.0.1", at.public_port)
                writer.write(b"GET /name HTTP/1.0\r\n\r\n")
                answer = await reader.read()
                writer.close()
                assert answer.startswith(b"HTTP/1.0 200 OK")
                assert answer.endswith(active.value.encode())
        finally:
            for server in servers:
                server.kill()
                await server.wait()


async def test_a_reserved_port_refuses_clients_until_the_worker_listens() -> None:
    async with opened(SocketPassing.PORT) as (_, at):
        with pytest.raises(ConnectionRefusedError):
            await who(at.slot_ports[BLUE])
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", at.slot_ports[BLUE]))
        async with serving(naming("blue"), port=at.slot_ports[BLUE]):
            assert await who(at.slot_ports[BLUE]) == "blue"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
@pytest.mark.parametrize("socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD])
async def test_workers_that_are_handed_sockets_are_relayed_to(
    socket_passing: SocketPassing, host: str
) -> None:
    names = ["public"] if socket_passing is SocketPassing.FD else ["public", "private"]
    async with (
        relay_plane(socket_passing, host) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        for slot in (BLUE, GREEN):
            inherited = plane.inherited(slot)
            assert list(inherited.named) == names
            for name, sock in inherited.named.items():
                await stack.enter_async_context(serving(naming(f"{slot} {name}"), sock))
        for active in (BLUE, GREEN):
            plane.steer(active)
            assert plane.active is active
            assert plane.policy.weights[active.value] == 1.0
            address = "127.0.0.1" if host == "::" else host
            assert await who(at.public_port, address) == f"{active} public"
            for slot, port in at.slot_ports.items():
                assert await who(port) == f"{slot} {names[-1]}"


async def test_ports_include_those_of_relayed_clients() -> None:
    async with relay_plane(SocketPassing.ACTIVATION) as (plane, at):
        inner = plane.inherited(BLUE).named["public"].getsockname()[1]
        assert plane.ports(BLUE) == {at.slot_ports[BLUE], inner}
        assert not plane.ports(BLUE) & plane.ports(GREEN)
    async with relay_plane(SocketPassing.PORT) as (plane, at):
        assert plane.ports(BLUE) == {at.slot_ports[BLUE]}


async def test_a_connection_stays_with_the_slot_where_it_began() -> None:
    async with (
        opened(SocketPassing.PORT) as (plane, at),
        serving(echo, port=at.slot_ports[BLUE]),
        serving(naming("green"), port=at.slot_ports[GREEN]),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", at.public_port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        plane.steer(GREEN)
        assert await who(at.public_port) == "green"
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
        writer.close()


async def test_a_switch_under_connections_loses_none() -> None:
    async with (
        opened(SocketPassing.PORT) as (plane, at),
        serving(naming("blue"), port=at.slot_ports[BLUE]),
        serving(naming("green"), port=at.slot_ports[GREEN]),
    ):
        answers: list[str] = []
        for flip in range(50):
            plane.steer((GREEN, BLUE)[flip % 2])
            answers += await asyncio.gather(*(who(at.public_port) for _ in range(5)))
        assert len(answers) == 250
        assert set(answers) == {"blue", "green"}


async def test_clients_wait_for_as_long_as_was_asked_for() -> None:
    (blue, green, public) = free_ports(3)
    endpoints = Endpoints("127.0.0.1", public, {BLUE: blue, GREEN: green}, patience_seconds=0.2)
    plane = make_plane(endpoints, SocketPassing.PORT)
    plane.open(BLUE)
    try:
        with contextlib.suppress(ConnectionResetError):  # its request was not read
            assert await asyncio.wait_for(who(public), 5) == ""
    finally:
        await plane.close()


async def test_clients_wait_for_a_worker_that_restarts() -> None:
    async with opened(SocketPassing.PORT) as (_, at):
        waiting = [asyncio.create_task(who(at.public_port)) for _ in range(10)]
        await asyncio.sleep(0.1)
        async with serving(naming("restarted"), port=at.slot_ports[BLUE]):
            assert set(await asyncio.gather(*waiting)) == {"restarted"}


@pytest.mark.parametrize("socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD])
async def test_a_dead_slots_queue_is_passed_on_to_the_living_one(
    socket_passing: SocketPassing,
) -> None:
    async with relay_plane(socket_passing) as (plane, at), contextlib.AsyncExitStack() as stack:
        for sock in plane.inherited(GREEN).named.values():
            await stack.enter_async_context(serving(naming("living"), sock))
        waiting = [asyncio.create_task(who(at.public_port)) for _ in range(10)]
        await eventually(lambda: plane.queued(BLUE) == 10)
        plane.steer(GREEN)
        plane.vacate(BLUE, GREEN)
        assert set(await asyncio.gather(*waiting)) == {"living"}
        assert plane.rescued(BLUE) == 10
        plane.occupy(BLUE)
        assert plane.rescued(BLUE) == 0


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD])
async def test_the_own_port_of_a_slot_without_a_worker_is_never_answered_by_the_other(
    socket_passing: SocketPassing, public: bool
) -> None:
    async with (
        relay_plane(socket_passing, public=public) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        for sock in plane.inherited(GREEN).named.values():
            await stack.enter_async_context(serving(naming("green"), sock))
        early = asyncio.create_task(who(at.slot_ports[BLUE]))
        plane.vacate(BLUE, GREEN)
        for asking in (early, asyncio.create_task(who(at.slot_ports[BLUE]))):
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(asking, 5) == ""
        plane.occupy(BLUE)
        for sock in plane.inherited(BLUE).named.values():
            await stack.enter_async_context(serving(naming("blue"), sock))
        assert await who(at.slot_ports[BLUE]) == "blue"
        assert await who(at.slot_ports[GREEN]) == "green"


async def test_an_unanswered_client_of_a_port_worker_counts_as_queued() -> None:
    answer = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1):
            await answer.wait()
            writer.write(b"!")

    async with opened(SocketPassing.PORT) as (plane, at), serving(slow, port=at.slot_ports[BLUE]):
        silent = await asyncio.open_connection("127.0.0.1", at.public_port)
        asking = [await asyncio.open_connection("127.0.0.1", at.public_port) for _ in range(3)]
        for _, writer in asking:
            writer.write(b"?")
        await eventually(lambda: plane.queued(BLUE) == 3)
        assert plane.queued(GREEN) == 0
        answer.set()
        for reader, _ in asking:
            assert await reader.readexactly(1) == b"!"
        await eventually(lambda: plane.queued(BLUE) == 0)
        answer.clear()
        asking[0][1].write(b"?")  # it has been accepted, as is known by now
        await asyncio.sleep(0.05)
        assert plane.queued(BLUE) == 0
        for _, writer in (*asking, silent):
            writer.close()


async def test_a_worker_of_a_port_has_no_queue_of_ours() -> None:
    async with opened(SocketPassing.PORT) as (plane, _):
        assert plane.queued(BLUE) == 0
        plane.vacate(BLUE, GREEN)
        assert plane.rescued(BLUE) == 0
        plane.refresh(BLUE)


async def test_a_queue_that_the_worker_shrank_is_restored() -> None:
    async with relay_plane(SocketPassing.ACTIVATION) as (plane, _):
        inherited = plane.inherited(BLUE).named
        for sock in inherited.values():
            sock.listen(1)
        plane.refresh(BLUE)
        for sock in inherited.values():
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(socket.create_connection(sock.getsockname(), 2))


@pytest.mark.parametrize(
    "socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD, SocketPassing.PORT]
)
async def test_without_a_public_port_the_slots_own_ports_serve(
    socket_passing: SocketPassing,
) -> None:
    async with (
        opened(socket_passing, public=False) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        assert plane.name == "none"
        assert plane.foreign_listeners() == []
        if socket_passing is SocketPassing.PORT:
            await stack.enter_async_context(serving(naming("blue"), port=at.slot_ports[BLUE]))
        else:
            assert list(plane.inherited(BLUE).named) == ["private"]
            sock = plane.inherited(BLUE).named["private"]
            await stack.enter_async_context(serving(naming("blue"), sock))
        assert await who(at.slot_ports[BLUE]) == "blue"
        plane.steer(GREEN)
        assert plane.active is GREEN


@pytest.mark.parametrize("which", ["PUBLIC_PORT", "STAGING_PORT"])
async def test_a_port_that_is_taken_is_refused_and_nothing_stays_open(which: str) -> None:
    public, blue, green = free_ports(3)
    at = Endpoints("127.0.0.1", public, {BLUE: blue, GREEN: green})
    before = open_files()
    with (
        foreign_listener(public if which == "PUBLIC_PORT" else green) as process,
        pytest.raises(StartRefusedError, match=rf"{which}=.* taken: pid {process.pid} "),
    ):
        RelayPlane(at, SocketPassing.PORT).open(BLUE)
    assert open_files() == before


async def test_a_stray_listener_that_comes_later_is_named() -> None:
    async with opened(SocketPassing.PORT, host="0.0.0.0") as (plane, at):
        assert plane.foreign_listeners() == []
        own = SlotName.BLUE
        async with serving(naming("worker"), port=at.slot_ports[own]):
            assert plane.foreign_listeners() == []
    # The relay's listener is in no group: the kernel itself refuses a second one.


async def test_closing_leaves_nothing_open() -> None:
    before, tasks = open_files(), asyncio.all_tasks()
    plane: Plane
    async with (
        relay_plane(SocketPassing.ACTIVATION) as (plane, at),
        serving(echo, plane.inherited(BLUE).named["public"]),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", at.public_port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        await plane.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    await eventually(lambda: asyncio.all_tasks() <= tasks)
    await eventually(lambda: open_files() <= before)


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
async def test_a_split_is_relayed_as_the_kernel_steers_it(host: str) -> None:
    split = Split(0.5, by_address=True, salt=9, testers=(IPv4Network("127.200.0.0/16"),))
    async with (
        relay_plane(SocketPassing.ACTIVATION, host) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        for slot in (BLUE, GREEN):
            inherited = plane.inherited(slot).named["public"]
            await stack.enter_async_context(serving(naming(slot), inherited))
        plane.split(split)
        assert plane.policy.weights == {"blue": 0.5, "green": 0.5}
        for source in ("127.200.0.1", *(f"127.1.{number}.1" for number in range(20))):
            expected = choose(SteeringPolicy(BLUE, split=split), IPv4Address(source), 0)
            assert await who(at.public_port, "127.0.0.1", source) == expected
        plane.steer(GREEN)
        assert await who(at.public_port, "127.0.0.1", "127.200.0.1") == "green"
