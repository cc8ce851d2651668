"""A seed's story: what the operator asks, what goes wrong, and what must hold all the while.

It has three acts. First everything happens at random. Then nothing goes wrong any more, and after
a while all records must agree. At last the daemon is stopped, and nothing may be left.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from atlas_supervisor.api.ports import DeployPort, TrafficPort
from atlas_supervisor.config import Settings
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import AfterFailure, Mode
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.ramp import RampAction
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.state_folder import DATABASE_FILE
from atlas_worker.contract import STATE_FILE
from tests.simulation import invariants
from tests.simulation.life import Ambush, Life
from tests.simulation.world import BAD, GOOD, HOLD_SECONDS, DiskFault, Worker, World

ACTIONS = (3, 24)
"""How many things happen in a story, at least and at most."""
QUIET_SECONDS = 24.0
"""So long nothing goes wrong before all is looked at; what takes longer is looked at again."""
_PORT = {SlotName.BLUE: 8791, SlotName.GREEN: 8792}
_OPERATOR = Actor(name="operator", origin="unix")
_WEIGHTS = {
    "deploy": 28,
    "dry_run": 4,
    "switch": 8,
    "abort": 5,
    "rollback": 9,
    "rollback_to": 6,
    "bluegreen": 13,
    "single": 1,
    "canaries_fail": 2,
    "share": 3,
    "ramp_pause": 3,
    "ramp_resume": 4,
    "ramp_advance": 4,
    "requests_fail": 2,
    "canary_reset": 3,
    "kill": 5,
    "ambush": 14,
    "restart": 3,
    "reload": 6,
    "hold": 5,
    "release": 3,
    "disk_fault": 6,
    "worker_killed": 5,
    "clock_set": 2,
}


class Scenario:
    """One seed, played on a folder of its own."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.world = World(seed)
        self.draw = self.world.random
        self._folder = folder
        self._life: Life | None = None
        self._keys: dict[str, tuple[str, str | None]] = {}
        """What was asked for under each key, and the deploy that the answer named."""
        self.latches = invariants.Latches(self.world)
        self.world.on_write = self.latches.written
        self.subscriber = invariants.Subscriber(self.world)
        self._looks_left = 20
        self._kept: Worker | None = None
        """The worker that the daemon has to go on with, before its API can be asked."""

    @cached_property
    def settings(self) -> Settings:
        stay = self.draw.random() < 0.2
        ramp = self.draw.choice(((1.0,), (0.1, 0.5, 1.0)))
        return Settings(
            base_dir=self._folder,
            deploy_mode=Mode.BLUEGREEN,
            state_dir=self._folder / "state",
            releases_dir=self._folder / "releases",
            worker_directory=self._folder / "releases" / "v1",
            smoke_file=self._folder / "smoke.toml",
            auto_switch_on_health=self.draw.random() < 0.75,
            after_failure=AfterFailure.STAY if stay else AfterFailure.SINGLE,
            ready_timeout_seconds=6,
            drain_timeout_seconds=5,
            stop_timeout_seconds=2,
            health_probes=2,
            liveness_interval_seconds=3,
            liveness_failures=2,
            keep_warm_seconds=self.draw.choice((0, 8, 20)),
            guard_seconds=self.draw.choice((0, 4, 10)),
            worker_max_age_seconds=self.draw.choice((0, 0, 7, 25)),
            traffic_ramp=ramp,
            traffic_step_seconds=self.draw.choice((0, 2, 5)),
            traffic_min_requests=self.draw.choice((0, 0, 1)),
            guard_holdback=self.draw.choice((0, 0.1)),
            canary_enabled=True,
            canary_features=("web",),
        )

    def life(self) -> Life:
        """Return the present daemon, or the last one."""
        assert self._life is not None
        return self._life

    # The acts.

    def play(self) -> None:
        """Play it to its end."""
        self._plan()
        ends = self.world.timeline.now
        while not self._finished:
            self._kept = self._adoptable()
            self._life = Life(self.world, self.settings)
            self._life.on_control = self._follow
            self.world.tell("the daemon is started")
            end = self._life.run()
            self.latches.daemon_ended()
            self.world.tell(f"the daemon is {end}")
            ends += 1
            if self.world.failure is not None or end == "halted" or ends > 60:
                return
            if not self._finished:
                down = (0.3,) if end == "reloaded" else (0.2, 1.0, 5.0)
                self.world.timeline.pass_time(self.draw.choice(down))
                self._damage_state_file()
        invariants.after_stop(self)

    _finished = False

    def _plan(self) -> None:
        moment, after = 1.0, self.world.timeline.after
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        for name in self.draw.choices(names, weights, k=self.draw.randint(*ACTIONS)):
            moment += self.draw.choice((0.0, 0.05, 0.5, 2.0, 4.0, 9.0))
            after(moment, partial(self._act, name))
        after(moment + 3.0, self._calm_down)

    def _calm_down(self) -> None:
        self.world.calm, self.world.fault = True, None
        if self._life is not None:
            self._life.ambush = None
        self.world.tell("from now on nothing goes wrong")
        self.world.look()
        self.world.timeline.after(QUIET_SECONDS / 2, partial(self._ask, "abort", late=True))
        self.world.timeline.after(QUIET_SECONDS, self._look_at_all)

    def _look_at_all(self) -> None:
        life = self._life
        is_busy = self._looks_left > 0 and (len(self.world.living) != 1 or self._is_recycling)
        if life is None or life.control is None or is_busy:
            self._looks_left -= 1
            self.world.timeline.after(2.0, self._look_at_all)
            return
        life.loop.create_task(self._end(life))

    @property
    def _is_recycling(self) -> bool:
        """Whether a recycle, which no operator has asked for, is under way or not written yet."""
        going = "SELECT 1 FROM deploys WHERE deploy_cause = 'recycled' AND ended_ts IS NULL"
        return bool(self.rows(going)) or len(self.rows("SELECT 1 FROM instances")) != 1

    async def _end(self, life: Life) -> None:
        """Look at everything, and stop the daemon."""
        assert life.control is not None
        invariants.when_quiet(self)
        found = await life.control.trail.verify()
        if not found.ok:
            self.world.breach(f"the audit trail is broken at {found.broken_id}")
        self._finished = True
        self.world.tell("the daemon is asked to stop")
        life.stop()

    def _adoptable(self) -> Worker | None:
        """Return the worker that the next daemon has to go on with, if there is one for sure."""
        world = self.world
        serving = [each for each in world.living if each.socket == world.kernel.traffic]
        if len(serving) != 1 or not (world.copies_sockets or world.kernel.outlives):
            return None
        (worker,) = serving
        rows = self.rows("SELECT instance, life FROM instances")
        lives = [json.loads(row["life"]) for row in rows if row["instance"] == worker.instance]
        known = len(lives) == 1 and lives[0]["ready"] and not lives[0]["asked_to_end"]
        path = self.settings.state_dir / STATE_FILE
        names_it = path.exists() and f'"active_port": {_PORT[worker.slot]},' in path.read_text()
        return worker if known and names_it and worker.serves else None

    def _follow(self) -> None:
        life, kept = self.life(), self._kept
        assert life.control is not None
        if kept is not None and kept.serves:
            slots = life.control.queries.status().slots
            if kept.pid not in [each.pid for each in slots if each.role == "active"]:
                self.world.breach(f"{kept} served, and the next daemon did not go on with it")
        self._kept = None
        life.loop.create_task(self.subscriber.follow(life.control))

    def _damage_state_file(self) -> None:
        """Lose the state file, sometimes, while no daemon runs and its copy is up to date."""
        path = self.settings.state_dir / STATE_FILE
        if self.draw.random() > 0.08 or not path.exists():
            return
        copies = self.rows("SELECT state FROM last_state")
        try:
            held = json.loads(path.read_text())
        except ValueError:
            return  # it is damaged already
        if not copies or not invariants.is_copy(json.loads(copies[0]["state"]), held):
            return
        damage = self.draw.choice(("removed", "emptied", "overwritten"))
        self.world.tell(f"the state file is {damage}")
        if damage == "removed":
            path.unlink()
        else:
            path.write_text("" if damage == "emptied" else "{nonsense")

    # What happens.

    def _act(self, name: str) -> None:
        action: Callable[[], object] | None = getattr(self, f"_{name}", None)
        if action is not None:
            action()
        else:
            self._ask(name)

    def _kill(self) -> None:
        if self._is_up:
            self.world.tell("kill -9")
            self.life().loop.kill_after(self.draw.choice((1, 2, 3, 5, 10, 40)))

    def _ambush(self) -> None:
        if self._is_up and not self.world.calm:
            self.life().ambush = Ambush(self.world, self._disk_fault)

    def _restart(self) -> None:
        if self._is_up:
            self.world.tell("the daemon is asked to stop, to be started again")
            self.life().stop()

    @property
    def _is_up(self) -> bool:
        return self._life is not None and not self._life.dead

    def _disk_fault(self) -> None:
        targets = self.draw.choice((("state file",), ("database",), ("state file", "database")))
        fault = DiskFault(
            self.draw.choice(("full", "eio", "readonly")),
            frozenset((*targets, "audit head")),
            self.draw.choice((1.0, 1.0, 0.4)),
        )
        self.world.fault = fault
        self.world.tell(f"the disk fails: {fault.kind}, {', '.join(targets)}, {fault.share:g}")
        self.world.timeline.after(self.draw.choice((0.3, 2.0, 8.0)), self._end_fault)

    def _end_fault(self) -> None:
        self.world.fault = None
        self.world.tell("the disk works")
        self.world.look()

    def _worker_killed(self) -> None:
        if living := self.world.living:
            self.world.exit(self.draw.choice(living), -9)

    def _clock_set(self) -> None:
        seconds = self.draw.choice((-86400.0, -3600.0, 3600.0, 86400.0))
        self.world.tell(f"the wall clock is set by {seconds:+g} s")
        self.world.timeline.wall += seconds

    def _canaries_fail(self) -> None:
        if self._is_up:
            self.life().canaries_fail = True
            self.world.timeline.after(4.0, self._canaries_pass)

    def _requests_fail(self) -> None:
        if self._is_up:
            self.life().requests_fail = True
            self.world.timeline.after(4.0, self._requests_pass)

    def _requests_pass(self) -> None:
        if self._life is not None:
            self._life.requests_fail = False

    def _canaries_pass(self) -> None:
        if self._life is not None:
            self._life.canaries_fail = False

    # The operator.

    def _ask(self, name: str, *, late: bool = False) -> None:
        life = self._life
        if life is None or life.control is None:
            return
        key = None if late else self._key(name)
        life.loop.create_task(self._answered(life, name, key))

    _KEYLESS = frozenset({"canary_reset", "reload", "hold", "release"})

    def _key(self, name: str) -> IdempotencyKey | None:
        """Return a new key, one that was used before, or none."""
        if name in {*self._KEYLESS, "share"} or self.draw.random() < 0.5:
            return None
        known = [value for value, (asked, _) in self._keys.items() if asked == name]
        if known and self.draw.random() < 0.4:
            value = self.draw.choice(known)
        else:
            value = f"key-{len(self._keys)}"
            self._keys[value] = (name, None)
        return IdempotencyKey(value, fingerprint=name)

    async def _answered(self, life: Life, name: str, key: IdempotencyKey | None) -> None:
        under = f" under {key.value}" if key else ""
        self.world.tell(f"operator: {name}{under}")
        self.latches.asked(name)
        code: str | None = None
        try:
            answer = await self._request(life, name, key)
        except AtlasError as error:
            code = getattr(error, "code", str(error))
            self.world.tell(f"operator: {name}{under} is refused: {code}")
            return
        except Exception as error:  # noqa: BLE001  # a bug
            # The daemon was killed; or the key is no deploy's, or its deploy is forgotten.
            if life.is_killed or type(error) is LookupError:
                return
            self.world.breach(f"{name} fails: {error!r}")
            self.world.failure = self.world.failure or error
            return
        finally:
            if not life.dead:
                self.latches.answered(name, code)
        deploy_id = getattr(answer, "deploy_id", None)
        result = getattr(answer, "result", "done")
        self.world.tell(f"operator: {name}{under} is answered: {deploy_id or ''} {result}")
        if key is not None:
            self._remember(key.value, name, deploy_id)

    def _remember(self, value: str, name: str, deploy_id: str | None) -> None:
        _, before = self._keys[value]
        if before is not None and deploy_id is not None and before != deploy_id:
            self.world.breach(f"{value} ({name}) had two effects: {before}, {deploy_id}")
        self._keys[value] = (name, before or deploy_id)

    def _request(self, life: Life, name: str, key: IdempotencyKey | None) -> Awaitable[Any]:
        assert life.control is not None
        deploys, canary = life.control.deploys, life.control.canary
        steer: dict[str, Callable[[Actor, IdempotencyKey | None], Awaitable[Any]]] = {
            "switch": deploys.switch,
            "abort": deploys.abort,
            "rollback": deploys.rollback,
            "rollback_to": partial(self._roll_back_to, deploys),
        }
        if name in {"deploy", "dry_run"}:
            return self._deploy_and_wait(life, name, key)
        if name == "share" or name.startswith("ramp_"):
            return self._give_share(life.control.traffic, name, key)
        if name in self._KEYLESS:
            keyless: dict[str, Callable[[Actor], Awaitable[Any]]] = {
                "canary_reset": partial(canary.reset, None),
                "reload": life.control.reloads.reload,
                "hold": partial(life.control.holds.hold, HOLD_SECONDS),
                "release": life.control.holds.release,
            }
            return keyless[name](_OPERATOR)
        if name in steer:
            return steer[name](_OPERATOR, key)
        return deploys.set_mode(Mode(name), _OPERATOR, key)

    def _roll_back_to(
        self, deploys: DeployPort, actor: Actor, key: IdempotencyKey | None
    ) -> Awaitable[Any]:
        version, fast = self.draw.choice(GOOD), self.draw.random() < 0.5
        self.world.tell(f"operator: back to {version}{', fast' if fast else ''}")
        return deploys.rollback(actor, key, version=version, fast=fast)

    def _give_share(
        self, traffic: TrafficPort, name: str, key: IdempotencyKey | None
    ) -> Awaitable[Any]:
        if name == "share":
            return traffic.set_weight(self.draw.choice((0, 0.3, 1)), _OPERATOR)
        return traffic.ramp(RampAction(name.removeprefix("ramp_")), _OPERATOR, key)

    async def _deploy_and_wait(self, life: Life, name: str, key: IdempotencyKey | None) -> Any:
        assert life.control is not None
        good = self.draw.random() < 0.75
        release = self.draw.choice(GOOD if good else BAD)
        self.world.tell(f"operator: {name} of {release}")
        deploys = life.control.deploys
        record = await deploys.deploy(
            release=release, dry_run=name == "dry_run", actor=_OPERATOR, key=key
        )
        return await deploys.settled(record.deploy_id)

    def rows(self, query: str) -> list[sqlite3.Row]:
        """Return rows of the database, read by a connection of our own."""
        connection = sqlite3.connect(self.settings.state_dir / DATABASE_FILE)
        connection.row_factory = sqlite3.Row
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
