"""A simulated service that calls a canary: real windows, judge and ramp on simulated time.

A `Story` says which calls begin in a slice and how each of them ends, by its arm. Stories in which
the canary is no worse are adversaries of the promised error rates; `NO_WORSE` has them. The tests
play a few runs of each, `./scripts/bench canary-adversaries` a thousand.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.canary.evidence import Evidence, Moment, SavedState
from atlas_supervisor.canary.stats.ramp import (
    Action,
    Change,
    Feature,
    Rules,
    Stage,
    act,
    set_percentage,
)
from atlas_supervisor.canary.stats.ramp import judge_ramp as next_state
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import CountsRow, EpochRow, KeyRow
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.ring import SLICE_SECONDS, EventKind, Outcome, RingEvent
from tests.unit.supervisor.canary.stats.support import seeded

VISION = "vision"


class Call(NamedTuple):
    """How a call ends: after how many seconds; `reported` is None for a call that just ends."""

    seconds: float
    failed: bool
    hangs: bool = False


class Begun(NamedTuple):
    """A call that begins: its key if it has one, its process, and its kind."""

    key: int | None = None
    process: int = 0
    kind: EventKind = EventKind.STARTED
    late: bool = False
    """Whether its assignment is read a slice later than it was made."""


class Story:
    """What happens to a service. All methods may be replaced."""

    seconds = 240.0
    rate = 20.0
    """Calls a second."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def calls(self, second: float) -> Iterator[Begun]:
        """Yield the calls that begin in this slice."""
        for _ in range(poisson(self.rng, self.rate * SLICE_SECONDS)):
            yield Begun()

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        """Return how a call ends."""
        return Call(0.05, self.rng.random() < self.error_rate(second, canary=canary))

    def error_rate(self, second: float, *, canary: bool) -> float:
        return 0.05

    def interfere(self, service: Service) -> None:
        """Do something to the service after a poll."""


def poisson(rng: random.Random, mean: float) -> int:
    """Draw a number of calls."""
    count, passed = 0, rng.expovariate(1.0)
    while passed < mean:
        count, passed = count + 1, passed + rng.expovariate(1.0)
    return count


@dataclass
class _Ending:
    ring: str
    event: RingEvent
    key: int | None
    serial: int


@dataclass
class Service:
    """One feature of a daemon, whose workers play a story."""

    story: Story
    settings: Settings
    now: int = 100_000
    polls_per_slice: int = 1
    changes: list[str] = field(default_factory=list)
    incarnation: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.evidence = Evidence(self.settings, SavedState(unix=self.unix))
        self.rules = Rules(
            self.settings.canary_ramp,
            self.settings.canary_step_seconds,
            self.settings.canary_min_calls,
        )
        self.feature = Feature(name=VISION, percentage=self.settings.canary_percentage)
        self.epochs: list[EpochRow] = []
        self.keys: dict[tuple[int, int, int], KeyRow] = {}
        self.counts: dict[tuple[int, int, int, bool], CountsRow] = {}
        self.hashes: dict[int, float] = {}
        self.ends: dict[int, list[_Ending]] = {}
        self.serial = 0
        self._start_epoch("start", fresh=True)
        if self.settings.canary_ramp:
            self.change(act(self.feature, Action.START, self.rules, self.unix, "test"))

    @property
    def unix(self) -> float:
        return 1_800_000_000.0 + self.now * SLICE_SECONDS

    @property
    def share(self) -> float:
        return self.feature.share(self.settings.canary_ramp)

    @property
    def second(self) -> float:
        return (self.now - 100_000) * SLICE_SECONDS

    # The policy, as `policy` changes it.

    def change(self, change: Change | None) -> None:
        if change is None:
            return
        before = self.share
        self.feature = change.feature
        self.changes.append(change.why)
        if self.share != before or change.fresh:
            again = 0 < self.share < 1 and not 0 < before < 1
            self._start_epoch(change.why, fresh=change.fresh or again)

    def set_share(self, share: float) -> None:
        self.change(set_percentage(self.feature, share, "test"))

    def _start_epoch(self, why: str, *, fresh: bool) -> None:
        number = len(self.epochs) + 1
        ramp = number if fresh else self.feature.ramp
        self.feature = self.feature.model_copy(update={"epoch": number, "ramp": ramp})
        self.epochs.append(EpochRow(number, VISION, ramp, self.share, "2026-01-01", why))
        self.evidence.start_epoch(self.epochs[-1], fresh=fresh)
        self.evidence.set_ramps({VISION: ramp} if 0 < self.share < 1 else {})

    # Time.

    def play(self) -> Stage:
        """Play the story until its end, or until the canary gets all calls or none."""
        while self.second < self.story.seconds:
            self.step()
            self.story.interfere(self)
            if self.feature.stage in (Stage.ROLLED_BACK, Stage.PROMOTED):
                break
        return self.feature.stage

    def step(self) -> None:
        """Let a slice pass: begin calls, end calls, and poll."""
        events: dict[str, Counter[RingEvent]] = {}
        keyed: dict[str, list[tuple[RingEvent, int, int]]] = {}
        late: list[tuple[str, RingEvent]] = []
        for begun in self.story.calls(self.second):
            self._begin(begun, events, keyed, late)
        for end in self.ends.pop(self.now, []):
            if end.key is None:
                events.setdefault(end.ring, Counter())[end.event] += 1
            else:
                keyed.setdefault(end.ring, []).append((end.event, end.key, end.serial))
        moment = Moment(self.now, self.unix)
        for ring in {**events, **keyed}:
            if self._alive(ring):
                self.evidence.add_events(
                    ring, events.get(ring, Counter()), keyed.get(ring, []), moment
                )
        self.now += 1
        self.poll()
        for ring, event in late:  # written before the next slice, read after the first of it
            self.evidence.add_events(ring, {event: 1}, [], Moment(self.now, self.unix))

    def poll(self) -> None:
        self.evidence.advance(Moment(self.now, self.unix))
        for row in self.evidence.pop_new_keys():
            self.keys[row.ramp, row.round, row.key] = row
        conclusion = self.evidence.conclusion(VISION)
        calls = self.evidence.step_calls(self.feature.epoch)
        self.change(next_state(self.feature, conclusion, calls, self.rules, self.unix))

    def _begin(
        self,
        begun: Begun,
        events: dict[str, Counter[RingEvent]],
        keyed: dict[str, list[tuple[RingEvent, int, int]]],
        late: list[tuple[str, RingEvent]],
    ) -> None:
        draw = self.story.rng.random()
        if begun.key is not None:
            draw = self.hashes.setdefault(begun.key, draw)
        canary = draw < self.share
        outcome = self.story.outcome(begun, self.second, canary=canary)
        ring = self.ring(begun.process)
        self.serial = self.serial % 65_535 + 1
        kind = {EventKind.STARTED: EventKind.ENDED, EventKind.ASKED: EventKind.REPORTED}
        event = RingEvent(begun.kind, canary, 0, self.feature.epoch, self.now, 0)
        ends_at = self.now + int(outcome.seconds / SLICE_SECONDS)
        end = event._replace(
            kind=kind.get(begun.kind, EventKind.RECORDED),
            outcome=Outcome.ERROR if outcome.failed else Outcome.OK,
            bucket=latency_bucket(outcome.seconds * 1000),
        )
        if begun.kind is EventKind.RECORDED:
            end = end._replace(slice_number=ends_at)
        elif begun.late:
            late.append((ring, event))
            ends_at = max(ends_at, self.now + 1)
        elif begun.key is None:
            events.setdefault(ring, Counter())[event] += 1
        else:
            keyed.setdefault(ring, []).append((event, begun.key, self.serial))
        if not outcome.hangs:
            ending = _Ending(ring, end, begun.key, self.serial)
            self.ends.setdefault(ends_at, []).append(ending)

    # What can happen to it.

    def ring(self, process: int) -> str:
        return f"{process}-{self.incarnation[process]}"

    def _alive(self, ring: str) -> bool:
        process, _, incarnation = ring.partition("-")
        return self.incarnation[int(process)] == int(incarnation)

    def kill(self, process: int) -> None:
        """Kill a process: its open calls have failed. Another takes its place."""
        self.evidence.process_exited(self.ring(process), Moment(self.now, self.unix))
        self.incarnation[process] += 1

    def restart(self) -> None:
        """Save, and restore in a new daemon."""
        progress = json.loads(json.dumps(self.evidence.progress()))
        saved = SavedState(
            counts=self.evidence.rollups.unwritten(),
            epochs=self.epochs,
            keys=list(self.keys.values()),
            progress=progress,
            unix=self.unix,
        )
        self.evidence = Evidence(self.settings, saved)
        self.evidence.set_ramps({VISION: self.feature.ramp} if 0 < self.share < 1 else {})


def service(story: Story, **changes: object) -> Service:
    given: dict[str, object] = {
        "base_dir": Path("/"),
        "state_dir": Path("/"),
        "canary_enabled": True,
        "canary_features": (VISION,),
        "canary_percentage": 0.2,
        "canary_alpha": 0.05,
        "canary_promote_alpha": 0.05,
        "canary_error_threshold": 1.0,
        "canary_step_seconds": 30.0,
        **changes,
    }
    return Service(story, Settings(**given))


class Adversary(NamedTuple):
    """A story, its settings, and what must not happen more often than promised."""

    story: Callable[[random.Random], Story]
    settings: Mapping[str, object] = {}
    wrong: Stage = Stage.ROLLED_BACK


RAMP: dict[str, object] = {"canary_ramp": (0.05, 0.25, 0.5, 1.0)}
MARGIN = 0.02


class OnlySlower(Story):
    """Good canary calls end much later, and failures at once; no arm fails more often."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.2
        seconds = min(self.rng.expovariate(1 / 20), 55.0)  # after 60 s it would have failed
        return Call(0.01 if failed else seconds if canary else seconds / 9, failed)


class FailsSooner(Story):
    """Both fail alike: canary calls at once, stable calls after ten seconds; calls are recorded."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(kind=EventKind.RECORDED)

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.2
        return Call(0.01 if canary or not failed else 10.0, failed)


class RecordedSlowly(FailsSooner):
    """Good canary calls take five times as long; calls are recorded."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.2
        return Call(0.01 if failed else 10.0 if canary else 2.0, failed)


class Hanging(Story):
    """One call in two hundred never ends, in both arms."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(0.05, self.rng.random() < 0.05, hangs=self.rng.random() < 0.005)


class Outage(Story):
    """Both arms fail half of their calls for a while, and ever more before."""

    def error_rate(self, second: float, *, canary: bool) -> float:
        return 0.5 if 100 < second < 130 else 0.01 + second / 5000


class UnequalProcesses(Story):
    """One of five processes fails most calls, and gets more and more of them."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            bad = self.rng.random() < second / 240
            yield begun._replace(process=0 if bad else self.rng.randrange(1, 5))

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(0.3, self.rng.random() < (0.5 if begun.process == 0 else 0.02))


class Killed(Story):
    """A process is killed when one of its calls fails, with the calls that are open."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.failed: set[int] = set()

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(process=self.rng.randrange(4))

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.02
        if failed:
            self.failed.add(begun.process)
        return Call(2.0 * self.rng.random(), failed)

    def interfere(self, service: Service) -> None:
        for process in self.failed:
            service.kill(process)
        self.failed.clear()


class Restarted(Story):
    """The daemon restarts whenever the evidence has just grown."""

    largest = 0.0

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(3.0 * self.rng.random(), self.rng.random() < 0.1)

    def interfere(self, service: Service) -> None:
        largest = service.evidence.decision(VISION).numbers["evidence"]["rollback"]["e_value"]
        if largest > self.largest + 1:
            self.largest = largest
            service.restart()


class Stragglers(Story):
    """One assignment in twenty is read after those of the next slice."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(late=self.rng.random() < 0.05)


class OverlappingKeys(Story):
    """Calls of a few users overlap. The canary's are faster, so more of them end soon."""

    users = 400

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(key=self.rng.randrange(self.users))

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.2
        slow = min(self.rng.expovariate(1 / (2 if canary else 20)), 55.0)
        return Call(0.01 if failed else slow, failed)


class FailingFirst(OverlappingKeys):
    """As before, but failures take longest: the first call to end is a good one."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < 0.2
        return Call((5.0 if canary else 20.0) if failed else 0.5, failed)


class HeavyKeys(Story):
    """A hundred users make all calls, and some of them fail always."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            key = min(self.rng.randrange(100), self.rng.randrange(100))
            yield begun._replace(key=key)

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(0.05, begun.key is not None and begun.key % 5 == 0)


class ReturningKeys(HeavyKeys):
    """Three hundred users come back all the time, each with a failure rate of its own."""

    canary_rate = 1.0

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in Story.calls(self, second):
            yield begun._replace(key=self.rng.randrange(300))

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        rate = ((begun.key or 0) % 10) / 50
        return Call(0.05, self.rng.random() < rate)


class Operator(Story):
    """An operator changes the share by what the evidence says, up when it is bad."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            key = self.rng.randrange(3000) if self.rng.random() < 0.5 else None
            yield begun._replace(key=key)

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(1.0, self.rng.random() < 0.1)

    def interfere(self, service: Service) -> None:
        if service.now % 20 == 0:
            numbers = service.evidence.decision(VISION).numbers["evidence"]
            service.set_share(0.45 if numbers["errors"]["e_value"] > 2 else 0.15)


class SlowerByLessThanTheMargin(Story):
    """The canary is slower by nine percent."""

    rate = 40.0

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        seconds = self.rng.lognormvariate(-3, 0.3)
        return Call(seconds * 1.09 if canary else seconds, failed=False)


class Returning(Story):
    """The same users for days, twenty calls at a time, each user three times a day.

    `canary_worse` is by how much the canary fails more often, from step `bad_from` of a ramp on;
    `always` is the share of users whose canary calls all fail.
    """

    users, stable_rate, canary_worse, bad_from, always = 300, 0.01, 0.0, 0, 0.0
    step = 0
    at_once = 20

    def calls(self, second: float) -> Iterator[Begun]:
        for _ in range(self.at_once):
            yield Begun(key=self.rng.randrange(self.users))

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        worse = self.canary_worse if canary and self.step >= self.bad_from else 0.0
        fails_always = canary and (begun.key or 0) < self.always * self.users
        return Call(0.05, fails_always or self.rng.random() < self.stable_rate + worse)

    def interfere(self, service: Service) -> None:
        self.step = service.feature.step
        between = 86_400 / (3 * self.users / self.at_once)
        service.now += int(self.rng.expovariate(1 / between) / SLICE_SECONDS)


class Days(ReturningKeys):
    """Users come back for days; time passes a thousand times faster."""

    seconds = 86_400.0 * 6
    rate = 0.01

    def interfere(self, service: Service) -> None:
        service.now += 2000


class AtTheMargin(Story):
    """The canary fails more often by the margin."""

    def error_rate(self, second: float, *, canary: bool) -> float:
        return 0.03 + MARGIN * canary


class LostOutcomes(Story):
    """Decisions are asked for. The canary's are no longer reported when stable gets worse."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(kind=EventKind.ASKED)

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        lost = canary and second > 50
        rate = 0.03 if canary else 0.01 if second < 50 else 0.12
        return Call(0.05, self.rng.random() < rate, hangs=lost)


class Unreported(LostOutcomes):
    """The canary's outcomes are lost soon, while all calls are good and as fast as each other."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = second < 10 and self.rng.random() < 0.1
        return Call(0.05, failed, hangs=canary and second > 10)


class MarginWithHanging(AtTheMargin):
    """The same, while one call in two hundred hangs and good calls take longer."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        failed = self.rng.random() < self.error_rate(second, canary=canary)
        return Call(0.1 if failed else 3.0, failed, hangs=self.rng.random() < 0.005)


class MarginWithKeys(AtTheMargin):
    """The same, and users come back."""

    def calls(self, second: float) -> Iterator[Begun]:
        for begun in super().calls(second):
            yield begun._replace(key=self.rng.randrange(2000))


MAY_BE_SLOWER: dict[str, object] = {"canary_latency_margin": 9.0}
ONE_STEP: dict[str, object] = {"canary_ramp": (0.3, 1.0), "canary_step_seconds": 1.0}

NO_WORSE: dict[str, Adversary] = {
    "good canary calls take longer": Adversary(OnlySlower, MAY_BE_SLOWER),
    "the same on a ramp": Adversary(OnlySlower, {**RAMP, **MAY_BE_SLOWER}),
    "recorded: canary fails sooner": Adversary(FailsSooner, MAY_BE_SLOWER),
    "recorded: canary is five times slower": Adversary(RecordedSlowly, MAY_BE_SLOWER),
    "calls hang": Adversary(Hanging),
    "an outage on a ramp": Adversary(Outage, RAMP),
    "unequal processes": Adversary(UnequalProcesses),
    "failing processes are killed": Adversary(Killed),
    "restarts when evidence grows": Adversary(Restarted),
    "assignments are read late": Adversary(Stragglers),
    "overlapping keys": Adversary(OverlappingKeys, RAMP),
    "overlapping keys that fail last": Adversary(FailingFirst),
    "heavy keys": Adversary(HeavyKeys, RAMP),
    "returning keys": Adversary(ReturningKeys, RAMP),
    "keys over days": Adversary(Days),
    "an operator": Adversary(Operator),
    "canary outcomes are lost": Adversary(Unreported),
    "slower by 9 %": Adversary(SlowerByLessThanTheMargin),
    "promoted at the margin": Adversary(AtTheMargin, ONE_STEP, Stage.PROMOTED),
    "promoted at the margin, on a ramp": Adversary(AtTheMargin, RAMP, Stage.PROMOTED),
    "promoted at the margin, calls hang": Adversary(MarginWithHanging, ONE_STEP, Stage.PROMOTED),
    "promoted at the margin, with keys": Adversary(MarginWithKeys, RAMP, Stage.PROMOTED),
    "promoted without outcomes": Adversary(LostOutcomes, ONE_STEP, Stage.PROMOTED),
}
"""Adversaries by what they do; in each, what is `wrong` has at most the promised probability."""


def played(adversary: Adversary, seed: int, seconds: float | None = None) -> Service:
    """Return a service after one run, which is cut at so many seconds."""
    story = adversary.story(seeded(seed))
    story.seconds = seconds or story.seconds
    found = service(story, **adversary.settings)
    found.play()
    return found
