"""The kernel plane of a simulated daemon, on the listening group of the simulated kernel."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic import TakenBack
from atlas_supervisor.traffic.plane import InheritedSockets
from atlas_supervisor.traffic.steering import Split, SteeringPolicy

if TYPE_CHECKING:
    from tests.simulation.life import Life

from tests.simulation.fakes import PORTS


class Socket:
    """A public socket, or a slot's own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        """Do nothing: the world knows who holds it."""


class SimulatedPlane:
    """The kernel plane, on the world's kernel; it satisfies `traffic.Plane`."""

    name = "kernel"

    def __init__(self, life: Life) -> None:
        self._life, self._world, self._kernel = life, life.world, life.world.kernel
        self._public: dict[SlotName, int] = {}
        self.policy = SteeringPolicy(SlotName.BLUE)

    @property
    def active(self) -> SlotName:
        return self.policy.active

    def take_back(self, pids: Collection[int], _passed: object) -> TakenBack:
        kernel = self._kernel
        holders = [each for each in self._world.living if each.pid in pids]
        has_all = kernel.is_passed or kernel.is_kept
        if kernel.group is None or not (holders or has_all):
            return TakenBack()
        if not (self._world.copies_sockets or has_all):
            return TakenBack(complete=False)
        sockets: Any = tuple(map(Socket, kernel.group))
        return TakenBack(
            group=sockets,
            traffic=kernel.group.index(kernel.traffic),
            accepts={w.pid: kernel.group.index(w.socket) for w in holders if w.accepting},
        )

    def adoptable(self, _slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        return next((pid for pid in pids if pid in taken.accepts), None)

    def open(
        self,
        active: SlotName,
        taken: TakenBack | None = None,
        adopted: Mapping[SlotName, int] | None = None,
        split: Split | None = None,
        *,
        held: bool = False,
    ) -> None:
        kernel, taken, adopted = self._kernel, taken or TakenBack(), adopted or {}
        served = not adopted and taken.traffic in taken.accepts.values()
        with_traffic = active.other if served else active
        if taken.group and kernel.group is not None:
            known = [(name, taken.accepts[pid]) for name, pid in adopted.items()]
            name, index = known[0] if known else (with_traffic, taken.traffic)
            self._public = {name: kernel.group[index], name.other: kernel.group[1 - index]}
        else:
            kernel.group = (kernel.made, kernel.made + 1)
            kernel.made += 2
            kernel.has_parked = False
            self._public = dict(zip(SlotName, kernel.group, strict=True))
        is_parked = held and bool(taken.group) and kernel.has_parked
        self.policy = replace(self.policy, held=is_parked)
        kernel.is_passed = False
        self.steer(with_traffic)
        if split and len(adopted) == len(SlotName):
            self.split(split)

    def sockets(self) -> dict[str, Any]:
        return {}

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {}

    def pause(self) -> None:
        """Do nothing: this process carries no connection."""

    resume = pause

    def answering(self) -> bool:
        return False

    def pass_on(self) -> dict[str, int]:
        return {}

    def direct(self, name: SlotName, *_: object) -> tuple[str, int, str | None]:
        return "127.0.0.1", next(port for port, each in PORTS.items() if each is name), None

    def inherited(self, name: SlotName) -> InheritedSockets:
        own, other = Socket(self._public[name]), Socket(self._public[name.other])
        named: Any = {"public": own, "private": Socket(100 + list(SlotName).index(name))}
        spare: Any = (other,)
        return InheritedSockets(named, spare=spare)

    def ports(self, name: SlotName) -> frozenset[int]:
        return frozenset({8790, *(port for port, each in PORTS.items() if each is name)})

    def probe_port(self, port: int) -> int:
        return port

    def steer(self, name: SlotName) -> None:
        if self._life.dead:
            return
        if self._life.effect("steer"):
            raise OSError(errno.ENOMEM, "the kernel refused the program")
        if self._life.loop.killed:
            return
        self.policy = replace(self.policy, active=name, split=Split())
        self._kernel.traffic, self._kernel.held = self._public[name], self.policy.held
        self._world.tell(f"daemon: new connections go to {name}")
        self._world.look()

    def split(self, split: Split) -> None:
        """Take the policy: the world's clients are of no network, and all go to the active slot."""
        self.policy = replace(self.policy, split=split)

    @property
    def held(self) -> bool:
        return self.policy.held

    @property
    def waiting(self) -> int:
        return int(self.policy.held)

    def prepare_hold(self) -> None:
        if not self._life.dead:
            self._kernel.has_parked = True

    def hold(self) -> None:
        self._hold(True)

    def release(self) -> None:
        self._hold(False)

    def _hold(self, held: bool) -> None:
        if self._life.dead:
            return
        if self._life.effect("steer"):
            raise OSError(errno.ENOMEM, "the kernel refused the program")
        if self._life.loop.killed:
            return
        self.policy = replace(self.policy, held=held)
        self._kernel.held = held
        self._world.tell(f"daemon: new connections are {'held' if held else 'released'}")
        self._world.look()

    def refresh(self, _slot: SlotName) -> None:
        """Do nothing: these workers change nothing."""

    def restore(self, *, turned: bool) -> None:
        self.steer(self.policy.active)

    def locked(self) -> bool:
        return False

    def queued(self, name: SlotName) -> int:
        """Return how many wait: some while no worker accepts where they go, or did a moment ago."""
        socket = self._public[name]
        waits = socket == self._kernel.traffic and not any(
            each.serves and each.socket == socket for each in self._world.living
        )
        return int(waits and socket not in self._kernel.relayed)

    def vacate(self, name: SlotName, heir: SlotName) -> None:
        if not self._life.dead:
            self._kernel.relayed[self._public[name]] = heir
            self._world.look()

    def occupy(self, name: SlotName) -> None:
        if not self._life.dead:
            self._kernel.relayed.pop(self._public[name], None)
            self._world.look()

    def refuse(self, _slot: SlotName, _refusal: object, _launching: bool, /) -> None:
        """Do nothing: no client is served either way."""

    def admit(self, _slot: SlotName) -> None:
        """Do nothing, as above."""

    def rescued(self, _slot: SlotName) -> int:
        return 0

    def answers(self) -> dict[tuple[str, int], bool | None]:
        return {}

    def relayed(self) -> dict[str, Any]:
        return {}

    def tallies(self) -> dict[SlotName, Any]:
        return {}

    def foreign_listeners(self) -> list[str]:
        return []

    def stop_accepting(self) -> bool:
        return False

    async def close(self) -> None:
        if not self._life.dead:
            self._kernel.relayed.clear()
