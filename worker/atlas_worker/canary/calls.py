"""The API for applications: decides whether the canary serves, and reports the outcome.

This runs within each call of a feature, so an event's word is computed with as few steps as
possible. `process` provides the policy, `ring` takes the words.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from atlas_worker.canary.policy import (
    MAX_UNREPORTED,
    ArmWords,
    Question,
    Rule,
    StackedQuestions,
    newest_question,
)
from atlas_worker.canary.process import process
from atlas_worker.canary.ring import Lane
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.ring import (
    KIND_SHIFT,
    LAP,
    OUTCOME_SHIFT,
    SLICE_SECONDS,
    SLICE_SHIFT,
    SLICES,
    EventKind,
    Outcome,
)

_ENDS = EventKind.ENDED - EventKind.STARTED << KIND_SHIFT
_REPORTS = EventKind.REPORTED - EventKind.ASKED << KIND_SHIFT
_FAILED = Outcome.ERROR << OUTCOME_SHIFT
_CANCELLED = Outcome.CANCELLED << OUTCOME_SHIFT
_TIMEOUT_SLICES = int(60 / SLICE_SECONDS)  # the daemon has timed the call out by then
_UNDER_LAP = LAP - 1
_now = time.monotonic
_number = int.from_bytes


def is_canary_enabled() -> bool:
    """Return whether canaries are on; not without a supervisor, nor with a latched fallback."""
    return process.is_enabled()


def use_canary_version(  # noqa: C901, PLR0912 - a function for keys alone costs 4 % more
    feature: str, *, key: str | None = None
) -> bool:
    """Return whether the canary of a feature serves this call. Never raises.

    The same key gets the same answer while the share stays, and a greater share takes no key out.
    The outcome is reported by `record_canary_call` in the same context.
    """
    try:
        rule = process.rules[feature]
    except (KeyError, TypeError):
        found = process.rule(feature)
        if found is None:
            return False
        rule = found
    if key is None:
        draw = process.random
        used = draw() < rule.share
        arm = rule.canary if used else rule.stable
        word = arm.asked
        lane = process.main
        for place in lane.free:  # `Lane.write`, without the call
            lane.words[place] = word if place >= 0 else word | LAP
            break
        else:
            word = lane.write_late(word) and word
            if not word or len(arm.unreported([])) > MAX_UNREPORTED:  # checked only now and then
                arm.set_unreported([])
        find = arm.unreported
        unreported = find(None)
        if unreported is None:
            arm.set_unreported([word])
        elif unreported and unreported[0] is not word:
            arm.set_unreported(StackedQuestions.on(unreported, word))
        else:  # setting a context variable is slow, so equal questions share a list
            unreported.append(word)
        return used
    try:
        hasher = rule.hasher.copy()
        hasher.update((key if type(key) is str else str(key)).encode())
        digest = hasher.digest()
    except Exception:  # noqa: BLE001 - a foreign `__str__` or a lone surrogate may raise anything
        return False
    used = digest < rule.threshold
    arm = rule.canary if used else rule.stable
    word = arm.asked
    lane = process.keyed
    hashed = _number(digest) & _UNDER_LAP
    for place in lane.free:  # `Lane.write`, without the call
        hashed ^= place & lane.serial_mask
        if place >= 0:
            lane.keys[place] = hashed
            lane.words[place] = word
        else:
            lane.keys[place] = hashed | LAP
            lane.words[place] = word | LAP
        break
    else:
        hashed = lane.write_late(word, hashed)
        word = hashed and word
    arm.set_unreported([(word, hashed)])
    return used


def record_canary_call(feature: str, used_canary: bool, ok: bool, latency_ms: float) -> None:
    """Report the outcome of a call; `latency_ms` in milliseconds. Never raises.

    It belongs to the last `use_canary_version` in the same context, if that gave the same arm and
    is less than 60 s old; otherwise it counts as a call of its own. Invalid values are ignored.
    """
    try:
        rule = process.rules[feature]
    except (KeyError, TypeError):
        found = process.rule(feature)
        if found is None:
            return
        rule = found
    try:
        used = bool(used_canary)
        end = latency_bucket(latency_ms) | (0 if ok else _FAILED)
    except Exception:  # noqa: BLE001 - comparing a foreign object may raise anything
        return
    arm = rule.canary if used else rule.stable
    question = newest_question(arm.unreported(None))
    if question is not None and _report(arm, question, end):
        return
    process.main.write(arm.recorded | end)


def _report(arm: ArmWords, question: Question, end: int) -> bool:
    """Write the outcome of a decision; return False if the decision is too old."""
    word, key = (question, 0) if isinstance(question, int) else question
    if word == 0:
        return True  # the decision found no room, so the whole call is dropped
    if arm.asked - word >> SLICE_SHIFT & SLICES - 1 > _TIMEOUT_SLICES:
        return False
    _end(process.keyed if key else process.main, word + _REPORTS | end, key)
    return True


def _end(lane: Lane, word: int, key: int) -> None:
    """Write an outcome, which may use the reserved quarter of the ring."""
    for place in lane.free:
        if key:
            lane.keys[place] = key if place >= 0 else key | LAP
        lane.words[place] = word if place >= 0 else word | LAP
        return
    lane.write_late(word, key, ending=True)


class Call:
    """One call of a feature, from its decision to its end: `with` or `async with`.

    `is_canary` is the implementation to use.
    """

    __slots__ = ("_began", "_feature", "_key", "_key_word", "_lane", "_word", "is_canary")

    def __init__(self, feature: str, key: str | None = None) -> None:
        self.is_canary = False
        self._feature = feature
        self._key = key
        self._word = 0

    @property
    def arm(self) -> str:
        """`canary` or `stable`."""
        return "canary" if self.is_canary else "stable"

    def __enter__(self) -> Self:
        """Decide, and report the start."""
        try:
            rule = process.rules[self._feature]
        except (KeyError, TypeError):
            found = process.rule(self._feature)
            if found is None:
                return self
            rule = found
        if self._key is not None:
            self._enter_with_key(rule, self._key)
            return self
        self.is_canary = used = process.random() < rule.share
        self._key_word = 0
        self._lane = lane = process.main
        word = (rule.canary if used else rule.stable).started
        self._began = _now()
        for place in lane.free:  # `Lane.write`, without the call
            lane.words[place] = word if place >= 0 else word | LAP
            self._word = word
            return self
        if lane.write_late(word):
            self._word = word
        return self

    def _enter_with_key(self, rule: Rule, key: str) -> None:
        try:
            hasher = rule.hasher.copy()
            hasher.update((key if type(key) is str else str(key)).encode())
            digest = hasher.digest()
        except Exception:  # noqa: BLE001 - as in `use_canary_version`
            return
        self.is_canary = used = digest < rule.threshold
        self._lane = lane = process.keyed
        word = (rule.canary if used else rule.stable).started
        hashed = _number(digest) & _UNDER_LAP
        self._began = _now()
        for place in lane.free:  # `Lane.write`, without the call
            hashed ^= place & lane.serial_mask
            if place >= 0:
                lane.keys[place] = hashed
                lane.words[place] = word
            else:
                lane.keys[place] = hashed | LAP
                lane.words[place] = word | LAP
            self._key_word = hashed
            self._word = word
            return
        self._key_word = lane.write_late(word, hashed)
        self._word = self._key_word and word

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Report the outcome; an exception propagates."""
        word, self._word = self._word, 0
        if word:
            word += _ENDS + latency_bucket((_now() - self._began) * 1000)
            if kind is not None:
                word |= _outcome(kind)
            _end(self._lane, word, self._key_word)

    async def __aenter__(self) -> Self:
        """Decide, and report the start."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Report the outcome; an exception propagates."""
        self.__exit__(kind, error, traceback)


def _outcome(kind: type[BaseException]) -> int:
    """Return the outcome of a call that ended with an exception.

    Other than an `Exception`, a cancelled task, Ctrl-C or a closed generator comes from outside and
    says nothing about the feature. SystemExit is a failure: a feature that ends its process must
    not count as cancelled.
    """
    return _FAILED if issubclass(kind, (Exception, SystemExit)) else _CANCELLED


call = Call
