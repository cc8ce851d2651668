"""The checker of etcd's history finds each promise that is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from atlas_supervisor.fleet.documents import (
    HOSTS,
    KILL,
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    Document,
    Halt,
    Holder,
    HostResult,
    HostState,
    KillSwitch,
    Member,
    Presence,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
)
from atlas_supervisor.system.clock import now
from tests.simulation.fleet.facts import OPERATOR, Death, Deploy, Facts, Revision, Sent
from tests.simulation.fleet.history import Checker

RUN = "run"
AT = now()
ROLLOUT_OF_TWO = Rollout(
    rollout_id=RUN,
    release="r1",
    max_unavailable=1,
    order=("a", "b"),
    wave_ends=(1, 2),
    started_ts=AT,
    started_by="uid:0",
)


class Story:
    """A history that is written revision by revision, with the facts beside it."""

    def __init__(self) -> None:
        self.history: list[Revision] = []
        self.facts = Facts()
        self.rollout = ROLLOUT_OF_TWO
        self.semaphore = Semaphore()
        members = {HOSTS + host: Member(joined_ts=AT) for host in "ab"}
        self.write("a", **members, **{PRESENT + host: present() for host in "ab"})
        self.semaphore = replace_in(self.semaphore, generation=1)
        self.write(OPERATOR, **{ROLLOUT: self.rollout, SEMAPHORE: self.semaphore})

    @property
    def number(self) -> int:
        return len(self.history)

    def write(self, client: str, /, **documents: Document | None) -> None:
        writes = {key: None if each is None else each.written() for key, each in documents.items()}
        deploying = next((d.key for d in self.facts.deploys if d.newest_at_end is None), None)
        self.facts.sent.append(Sent(client, writes, self.number, deploying))
        self.history.append(Revision(self.number + 1, writes))

    def take(self, host: str, *, by: str | None = None, slots: int = 1) -> None:
        """Let a host take a slot, and begin to deploy with it."""
        generation = self.semaphore.generation + 1
        holder = Holder(purpose=Purpose.DEPLOY, since_ts=AT, generation=generation, rollout_id=RUN)
        holders = {**self.semaphore.holders, host: holder}
        self.semaphore = Semaphore(slots=slots, generation=generation, holders=holders)
        self.write(by or host, **{SEMAPHORE: self.semaphore, result(host): part("deploying")})
        self.begin(host, generation)

    def begin(self, host: str, generation: int) -> None:
        self.facts.deploys.append(Deploy(host, f"fleet-{RUN}-{generation}", self.number))

    def end(self, host: str, *, passed: bool = True) -> None:
        """Let a host's deploy end."""
        deploy = next(each for each in self.facts.deploys if each.host == host)
        deploy.newest_at_end, deploy.passed = self.number, passed

    def free(self, host: str, by: str, state: str = "passed", /, **more: Document) -> None:
        """Let a host's slot be freed."""
        holders = {name: each for name, each in self.semaphore.holders.items() if name != host}
        generation = self.semaphore.generation + 1
        self.semaphore = replace_in(self.semaphore, generation=generation, holders=holders)
        self.write(by, **{SEMAPHORE: self.semaphore, result(host): part(state)}, **more)

    def pass_(self, host: str, **more: Document) -> None:
        """Let a host deploy, and pass."""
        self.take(host)
        self.end(host)
        self.free(host, host, "passed", **more)

    def state(self, state: RolloutState) -> Rollout:
        self.rollout = replace_in(self.rollout, state=state)
        return self.rollout

    def found(self) -> str:
        return "\n".join(Checker(self.history, self.facts).violations())


def replace_in(document: Any, **changes: object) -> Any:
    return document.model_copy(update=changes)


def present(result: str | None = None) -> Presence:
    last = None if result is None else {"deploy_id": "d", "result": result}
    fields: dict[str, Any] = {"daemon_version": "1", "mode": "bluegreen", "sent_ts": AT}
    return Presence(**fields, last_deploy=last)


def part(state: str) -> HostResult:
    return HostResult(state=HostState(state), started_ts=AT)


def result(host: str) -> str:
    return f"{RESULTS}{RUN}/{host}"


def test_a_rollout_that_keeps_all_promises_is_found_to_do_so() -> None:
    story = Story()
    story.pass_("a")
    story.take("b")
    story.facts.deaths.append(Death("b", 1, story.number))
    story.end("b", passed=False)
    halt = Halt(host="b", reason="its slot was broken", at_ts=AT)
    story.facts.breaks.add(("b", 4))
    halted = replace_in(story.state(RolloutState.HALTED), halt=halt)
    story.free("b", OPERATOR, "failed", **{ROLLOUT: halted})
    story.facts.deaths[0].back_at = story.number
    story.write(OPERATOR, **{ROLLOUT: story.state(RolloutState.RUNNING), result("b"): None})
    story.facts.deploys.pop()
    story.pass_("b", **{ROLLOUT: replace_in(story.rollout, state=RolloutState.PASSED)})

    assert story.found() == ""


def one_slot_too_many(story: Story) -> None:
    story.take("a")
    story.take("b")


def generation_stands_still(story: Story) -> None:
    story.semaphore = replace_in(story.semaphore, generation=0)
    story.take("a")


def taken_for_another(story: Story) -> None:
    story.take("a", by="b")


def wrong_order(story: Story) -> None:
    story.take("b")


def taken_while_paused(story: Story) -> None:
    story.write(OPERATOR, **{ROLLOUT: story.state(RolloutState.PAUSED)})
    story.take("a")


def taken_beside_a_silent_host(story: Story) -> None:
    story.write("b", **{PRESENT + "b": None})
    story.take("a")


def taken_beside_a_failed_host(story: Story) -> None:
    story.write("b", **{PRESENT + "b": present("failed")})
    story.take("a")


def freed_before_the_end(story: Story) -> None:
    story.take("a")
    story.free("a", "a")
    story.end("a")


def freed_by_another_host(story: Story) -> None:
    story.take("a")
    story.end("a")
    story.free("a", "b")


def broken_by_another_generation(story: Story) -> None:
    story.take("a")
    story.end("a")
    story.facts.breaks.add(("a", 1))
    story.free("a", OPERATOR, "failed", **{ROLLOUT: story.state(RolloutState.HALTED)})


def freed_by_the_dead(story: Story) -> None:
    story.take("a")
    story.end("a")
    story.facts.deaths.append(Death("a", 0, story.number))
    story.free("a", "a")


def deployed_without_a_slot(story: Story) -> None:
    story.begin("a", 7)


def deployed_after_an_abort(story: Story) -> None:
    story.take("a")
    story.end("a")
    story.write(OPERATOR, **{ROLLOUT: story.state(RolloutState.ABORTED)})
    story.begin("a", 2)


def a_failure_called_passed(story: Story) -> None:
    story.take("a")
    story.end("a", passed=False)
    story.free("a", "a")


def a_failure_that_does_not_halt(story: Story) -> None:
    story.take("a")
    story.end("a", passed=False)
    story.free("a", "a", "failed")


def passed_too_early(story: Story) -> None:
    story.pass_("a", **{ROLLOUT: story.state(RolloutState.PASSED)})


def a_result_removed(story: Story) -> None:
    story.pass_("a")
    story.write(OPERATOR, **{result("a"): None})


def another_rollout(story: Story) -> None:
    other = replace_in(story.rollout, rollout_id="other", max_unavailable=1)
    story.write(OPERATOR, **{ROLLOUT: other})


def resumed_after_an_abort(story: Story) -> None:
    story.write(OPERATOR, **{ROLLOUT: story.state(RolloutState.ABORTED)})
    story.write(OPERATOR, **{ROLLOUT: story.state(RolloutState.RUNNING)})


def a_kill_taken_back(story: Story) -> None:
    for epoch in (2, 1):
        story.write(OPERATOR, **{KILL: KillSwitch(epoch=epoch, set_ts=AT, set_by="uid:0")})


def acknowledged_and_never_set(story: Story) -> None:
    story.write(OPERATOR, **{KILL: KillSwitch(epoch=2, set_ts=AT, set_by="uid:0")})
    story.write("a", **{PRESENT + "a": replace_in(present(), kill_epoch=3)})


def a_kill_forgotten_over_a_restart(story: Story) -> None:
    for switch in (KillSwitch(epoch=2, set_ts=AT, set_by="uid:0"), None):
        story.facts.kills.append(("a", switch))


def an_old_kill_applied(story: Story) -> None:
    for epoch in (2, 1):
        story.facts.kills.append(("a", KillSwitch(epoch=epoch, set_ts=AT, set_by="uid:0")))


def written_by_an_unknown_client(story: Story) -> None:
    story.take("a")
    story.facts.sent.pop()


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (one_slot_too_many, "2 holders of 1 slots: ['a', 'b']"),
        (generation_stands_still, "the generation went from 1 to 1"),
        (taken_for_another, "a got a slot by b"),
        (wrong_order, "b took a slot before ['a'] of an earlier wave passed"),
        (wrong_order, "b took a slot out of turn"),
        (taken_while_paused, "a took a slot while the rollout was paused"),
        (taken_beside_a_silent_host, "a took a slot while b showed no sign of life"),
        (taken_beside_a_failed_host, "a took a slot although the last deploy of b failed"),
        (freed_before_the_end, "was given back while a still deployed with it"),
        (freed_by_another_host, "the slot of a, generation 2 was freed by b"),
        (broken_by_another_generation, "was broken, and no operator named this generation"),
        (freed_by_the_dead, "the slot of a, generation 2 was freed by a dead host"),
        (deployed_without_a_slot, "a deployed with fleet-run-7 before it had taken a slot"),
        (deployed_after_an_abort, "although it knew that the rollout was aborted"),
        (a_failure_called_passed, "a has the result passed, and its deploy did not pass"),
        (a_failure_that_does_not_halt, "a failed, and the rollout is still running"),
        (passed_too_early, "the rollout passed without ['b']"),
        (a_result_removed, "the passed result of a was removed or overwritten"),
        (another_rollout, "rollout other began while run was running"),
        (resumed_after_an_abort, "the rollout went from aborted to running"),
        (a_kill_taken_back, "the kill switch's epoch did not grow"),
        (acknowledged_and_never_set, "present/a announces epoch 3, which was never set"),
        (an_old_kill_applied, "a has epoch 1 in force after a higher one"),
        (a_kill_forgotten_over_a_restart, "a has epoch 0 in force after a higher one"),
        (written_by_an_unknown_client, "a semaphore that no client sent"),
    ],
)
def test_a_broken_promise_is_found(happens: Callable[[Story], None], expected: str) -> None:
    story = Story()
    happens(story)

    assert expected in story.found()


def test_a_commit_that_arrives_after_its_host_died_is_no_fault() -> None:
    story = Story()
    story.take("a")
    story.end("a")
    story.facts.deaths.append(Death("a", 1, story.number))
    story.free("a", "a")
    assert story.found() == ""

    sent = story.facts.sent[-1]
    story.facts.sent[-1] = replace(sent, life=1)
    assert "was freed by a dead host" in story.found()
