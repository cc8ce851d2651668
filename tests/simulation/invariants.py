"""What must hold: DESIGN's invariants, as far as they can be seen in the records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio

from atlas_supervisor.api.ports import Control
from atlas_supervisor.deploy.machine import IN_PROGRESS, Phase
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import AfterFailure, PublishedEvent, StepName
from atlas_supervisor.model.slot import SlotName
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario

_SLOTS = {8791: SlotName.BLUE, 8792: SlotName.GREEN}
_ORDER = list(StepName)


class Latches:
    """A latch stays until an operator resets it."""

    _RESETS = {"bluegreen": "mode", "canary_reset": "canary"}  # noqa: RUF012  # not changed

    def __init__(self, world: World) -> None:
        self._world = world
        self._latched = {"mode": False, "canary": False}
        self._in_flight: dict[str, int] = {}
        """Requests to reset each that are not answered yet."""
        self._uncertain: set[str] = set()
        """Those whose reset the disk refused: it may hold it all the same (`state_file_uncertain`),
        until the file is written again."""

    def asked(self, name: str) -> None:
        """Note a request of the operator's."""
        if latch := self._RESETS.get(name):
            self._in_flight[latch] = self._in_flight.get(latch, 0) + 1

    def answered(self, name: str, code: str | None) -> None:
        """Note that a request is answered, or refused with this code."""
        if latch := self._RESETS.get(name):
            self._in_flight[latch] -= 1
            if code == "not_durable":
                self._uncertain.add(latch)

    def daemon_ended(self) -> None:
        """Forget requests that are never answered."""
        self._in_flight = {}

    def written(self, state: dict[str, Any]) -> None:
        """See whether a latch was opened by something else."""
        now = {
            "mode": state["mode"] == "single",
            "canary": state["canary_disabled_fallback"],
        }
        for name, before in self._latched.items():
            asked = self._in_flight.get(name) or name in self._uncertain
            if before and not now[name] and not asked:
                self._world.breach(f"the latch of {name} was opened without a reset")
        self._latched = now
        self._uncertain.clear()


class Subscriber:
    """Follows the events of all deploys over every life of the daemon, as a client would."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._last = 0
        self._seen: list[PublishedEvent] = []
        self._phases: dict[str, str] = {}

    async def follow(self, control: Control) -> None:
        """Resume after the last event, and go on until the daemon stops."""
        while True:
            try:
                feed = await control.queries.events(after=self._last, deploy_id=None)
                if feed.reset is not None:
                    self._world.breach(f"the events can't be resumed: {feed.reset}")
                while (event := await feed.next()) is not None:
                    self._note(event)
            except AtlasError:  # the disk fails, or the daemon stops
                await anyio.sleep(0.5)
            else:
                return

    def _note(self, event: PublishedEvent) -> None:
        self._seen.append(event)
        if event.id is not None:
            if event.id <= self._last:
                self._world.breach(f"event {event.id} comes after event {self._last}")
            self._last = event.id
        self._phases[event.event.deploy_id] = event.event.target
        busy = [phase for phase in self._phases.values() if phase in IN_PROGRESS]
        # The deploy before may be reverted while the next one makes room.
        if len(busy) > 1 and set(busy) != {Phase.REVERT, Phase.PREFLIGHT}:
            self._world.breach(f"two deploys are in progress at once: {', '.join(sorted(busy))}")

    def missed(self, journal: set[int]) -> set[int]:
        """Return the ids of the journal that never came."""
        return journal - {each.journal_id for each in self._seen if each.journal_id is not None}


def when_quiet(scenario: Scenario) -> None:
    """Look at everything once nothing has gone wrong for a while."""
    world, life = scenario.world, scenario.life()
    control = life.control
    assert control is not None
    _records_agree(scenario)
    _deploys_have_ended(scenario)
    _held(scenario)
    _audited(scenario)
    _nothing_is_left(scenario)
    journal = {row["id"] for row in scenario.rows("SELECT id FROM transitions")}
    if missed := scenario.subscriber.missed(journal):
        world.breach(f"events were not published: {sorted(missed)}")
    status = control.queries.status()
    if status.traffic.held or life.plane.held or world.kernel.held:
        world.breach(f"a hold has not ended: {status.traffic.held}")
    if not control.queries.ready():
        world.breach(f"no worker serves, although nothing goes wrong: {status.slots}")
    if not any(each.serves and each.socket == world.kernel.traffic for each in world.living):
        world.breach("clients are not served, although nothing goes wrong")


def _records_agree(scenario: Scenario) -> None:
    """File, database, memory and steering say the same."""
    world, life = scenario.world, scenario.life()
    assert life.control is not None
    status = life.control.queries.status()
    held = json.loads((scenario.settings.state_dir / "deploy_state.json").read_text())
    (row,) = scenario.rows("SELECT state FROM last_state") if _has_copy(scenario) else (None,)
    active = _SLOTS[held["active_port"]]
    if row is not None and not is_copy(json.loads(row["state"]), held):
        world.breach("the database's copy of the state file differs")
    if status.mode != held["mode"] or status.active_port != held["active_port"]:
        world.breach("the state in memory is not that of the file")
    if held["hold"] or held["announce_close"]:
        world.breach(f"the file says that connections are held: {held['hold']}")
    if life.plane.active is not active:
        world.breach(f"the file says {active}, and the steering {life.plane.active}")
    if (shared := life.plane.policy.split.weight) not in {0, held["staging_weight"]}:
        world.breach(f"staging has {shared}, and the file says {held['staging_weight']}")
    phase = status.last_deploy.phase if status.last_deploy else "none"
    if shared and phase not in {"guard", "awaiting_switch"}:
        world.breach(f"staging has {shared} of the traffic in {phase}")
    if status.slots[list(SlotName).index(active)].role != "active":
        world.breach(f"the file says {active}, and the slots say the other one")
    worker = world.in_slot(active)
    versions = scenario.rows(
        "SELECT release, version FROM versions WHERE NOT undone ORDER BY id DESC LIMIT 1"
    )
    named = held["active_release"]
    if worker is not None and worker.release not in {named["name"], named["version"]}:
        world.breach(f"{worker} serves, and the file names {named['name'] or named['version']}")
    if versions and versions[0]["version"] != named["version"]:
        world.breach(f"the file names {named['version']}, the versions {versions[0]['version']}")


def is_copy(copy: dict[str, Any], held: dict[str, Any]) -> bool:
    """Return whether the copy says the same; when a deploy began is not copied."""
    passing = {"generation", "last_deploy_ts", "hold", "announce_close"}
    return all(copy.get(key) == value for key, value in held.items() if key not in passing)


def _has_copy(scenario: Scenario) -> bool:
    return bool(scenario.rows("SELECT 1 FROM last_state"))


def _deploys_have_ended(scenario: Scenario) -> None:
    """Every deploy has reached an end, with a result and its steps in order."""
    world, all_steps = scenario.world, scenario.rows("SELECT * FROM steps ORDER BY position")
    for row in scenario.rows("SELECT * FROM deploys"):
        name = row["deploy_id"]
        if row["ended_ts"] is None or row["phase"] != "ended":
            world.breach(f"deploy {name} has not ended: it is in {row['phase']}")
        elif row["result"] is None:
            world.breach(f"deploy {name} has ended without a result")
        steps = [each for each in all_steps if each["deploy_id"] == name]
        order = [_ORDER.index(StepName(step["name"])) for step in steps]
        if order != sorted(order) and "launch" not in _repeated(steps):
            world.breach(f"deploy {name} has its steps out of order: {[s['name'] for s in steps]}")


def _held(scenario: Scenario) -> None:
    """Nothing but a request has reverted an irreversible version."""
    reverts = scenario.rows(
        "SELECT transitions.* FROM transitions JOIN deploys USING (deploy_id) "
        "WHERE target = 'revert' AND irreversible AND event <> 'rollback_requested'"
    )
    for row in reverts:
        scenario.world.breach(
            f"{row['deploy_id']} is irreversible and was reverted: {row['cause']}"
        )


def _repeated(steps: list[Any]) -> set[str]:
    names = [step["name"] for step in steps]
    return {name for name in names if names.count(name) > 1}


def _nothing_is_left(scenario: Scenario) -> None:
    """One worker lives, the active one, and the database knows of it alone."""
    world = scenario.world
    if len(world.living) != 1:
        world.breach(f"there should be one worker: {', '.join(map(str, world.living))}")
    known = {row["instance"] for row in scenario.rows("SELECT instance FROM instances")}
    if known != {each.instance for each in world.living}:
        world.breach(f"the database knows of other workers: {sorted(known)}")


def _audited(scenario: Scenario) -> None:
    """The audit trail has what each deploy demands."""
    world = scenario.world
    entries = {
        (row["subject"], row["action"], row["outcome"])
        for row in scenario.rows("SELECT subject, action, outcome FROM audit")
    }
    for row in scenario.rows("SELECT * FROM deploys WHERE ended_ts IS NOT NULL"):
        name, result = row["deploy_id"], row["result"]
        if (name, "deploy", result) not in entries:
            world.breach(f"deploy {name} is {result}, which is not in the audit trail")
        if result == "failed" and not row["dry_run"] and _failed_gate(scenario, name):
            expected = "failed" if row["rollback"] else "not_needed"
            if (name, "rollback", expected) not in entries:
                world.breach(f"deploy {name} failed a gate, and no rollback is in the audit trail")
            single = (name, "mode", "single") in entries
            if row["deploy_cause"] == "recycled":
                if single:
                    world.breach(f"recycle {name} failed a gate, and the mode was single")
                continue
            if scenario.settings.after_failure is AfterFailure.SINGLE and not single:
                world.breach(f"deploy {name} failed a gate, and the mode was never single")


def _failed_gate(scenario: Scenario, deploy_id: str) -> bool:
    gates, failures = {"launch", "smoke", "health"}, {"failed", "staging_died"}
    return any(
        row["phase"] in gates and row["event"] in failures
        for row in scenario.rows("SELECT * FROM transitions")
        if row["deploy_id"] == deploy_id
    )


def after_stop(scenario: Scenario) -> None:
    """Nothing is left of a daemon that was stopped."""
    for each in scenario.world.living:
        scenario.world.breach(f"{each} is left after the stop")
