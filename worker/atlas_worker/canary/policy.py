"""What the daemon decided about each feature, as workers find it in the state file.

It is made ready for the callers: what can be computed once is not computed for each call.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Self

from atlas_worker.contract import STATE_SCHEMA_VERSION
from atlas_worker.contract.ring import EPOCHS, EventKind, encode

Question = int | tuple[int, int]
"""The event word of an assignment, with a key that and the hash word."""
Untold = ContextVar[list[Question]]
"""What was asked in a context and not told yet, of one arm. A question is taken out of the list
when it is told, in whichever context the list was copied to. Equal ones are in one list."""
_WHOLE = 2**64
UNTOLD_MOST = 10_000
"""So many older questions of one context and arm are remembered, besides those of this slice."""


class Later(list[Question]):
    """Questions of a slice in which older ones were still untold: `older` are those."""

    __slots__ = ("older",)
    older: list[Question] | None

    @classmethod
    def after(cls, older: list[Question], question: Question) -> Self:
        """Return the list of a question; of the older ones what is told or too much is let go."""
        new = cls((question,))
        new.older = older
        later: Later = new
        count = 0
        while later.older is not None:
            if not later.older:
                later.older = getattr(later.older, "older", None)
            elif (count := count + len(later.older)) > UNTOLD_MOST:
                later.older = None
            elif isinstance(later.older, Later):
                later = later.older
            else:
                break
        return new


def newest_question(untold: list[Question] | None) -> Question | None:
    """Take out the question that was asked last; None if all are told."""
    while untold is not None:
        try:
            return untold.pop()
        except IndexError:  # perhaps told in another thread, a moment ago
            untold = getattr(untold, "older", None)
    return None


class BadPolicyError(ValueError):
    """The state file holds no policy that can be understood."""


class ArmWords:
    """One arm of a feature in one slice: its words of ASKED, BEGUN and RECORDED.

    `untold` and `set_untold` get and set the context's questions.
    """

    __slots__ = ("asked", "begun", "recorded", "set_untold", "untold")

    def __init__(self, is_canary: bool, epoch: int, slice_number: int, untold: Untold) -> None:
        self.asked, self.begun, self.recorded = (
            encode(kind, is_canary=is_canary, epoch=epoch, slice_number=slice_number)
            for kind in (EventKind.ASKED, EventKind.BEGUN, EventKind.RECORDED)
        )
        self.untold, self.set_untold = untold.get, untold.set


class Rule:
    """One feature under one epoch. `share` is that of the canary arm, from 0 to 1.

    A key has the canary if the digest of `hasher`, fed with it, is below `threshold`.
    `canary` and `stable` are the arms in the present slice: `set_slice` renews them.
    """

    __slots__ = ("_epoch", "_untold", "canary", "hasher", "share", "stable", "threshold")

    def __init__(
        self, feature: str, share: float, epoch: int, salt: str, untold: tuple[Untold, Untold]
    ) -> None:
        self.share = share
        self.hasher = blake2b(f"{salt}\0{feature}\0".encode(errors="surrogatepass"), digest_size=8)
        self.threshold = key_threshold(share)
        self._epoch = epoch
        self._untold = untold  # of the stable arm, of the canary
        self.set_slice(0)

    def set_slice(self, number: int) -> None:
        """Let what is assigned from now on belong to this slice."""
        stable, canary = self._untold
        self.stable = ArmWords(False, self._epoch, number, stable)
        self.canary = ArmWords(True, self._epoch, number, canary)


class CanaryRules:
    """All features that are listed, and whether canaries are on at all."""

    def __init__(self, *, enabled: bool, rules: dict[str, Rule]) -> None:
        self.enabled = enabled
        self.rules = rules


def key_threshold(share: float) -> bytes:
    """Return the lowest digest that is not in the canary arm: of which `number / 2**64 >= share`.

    The division rounds, so the number next to `share * 2**64` is searched for. A whole share takes
    every key, also those few whose quotient rounds to 1.
    """
    if share >= 1:
        return b"\xff" * 9  # greater than any digest of eight bytes
    low, high = 0, _WHOLE
    while low < high:
        middle = (low + high) // 2
        if middle / _WHOLE < share:
            low = middle + 1
        else:
            high = middle
    return low.to_bytes(8)


def read_policy(content: bytes, untold: dict[str, tuple[Untold, Untold]]) -> CanaryRules:
    """Return the policy in a state file; raises BadPolicyError.

    `untold` keeps each feature's context variables over the renewals.
    """
    try:
        document = json.loads(content)
        if document["schema_version"] > STATE_SCHEMA_VERSION:
            raise BadPolicyError("a newer supervisor wrote the state file")
        canary = document["canary"]
        latched = _of(bool, document["canary_disabled_fallback"])
        enabled = _of(bool, canary["enabled"]) and not latched
        salt = _of(str, canary["salt"])
        listed = {_of(str, name): _checked(one) for name, one in canary["features"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadPolicyError(f"the state file has no policy: {error!r}") from error
    rules = {}
    for name, (share, epoch) in listed.items():
        # Off means share 0. A file that says otherwise has no epoch for it: nothing is recorded.
        if enabled or share == 0:
            if name not in untold:
                untold[name] = (ContextVar(f"{name}_stable"), ContextVar(f"{name}_canary"))
            rules[name] = Rule(name, share, epoch, salt, untold[name])
    return CanaryRules(enabled=enabled, rules=rules)


def _checked(feature: Any) -> tuple[float, int]:
    share, epoch = feature["share"], feature["epoch"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise BadPolicyError(f"{share!r} is no share")
    if not 0 <= _of(int, epoch) < EPOCHS:
        raise BadPolicyError(f"{epoch!r} is no epoch")
    return float(share), epoch


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise BadPolicyError(f"{value!r} is no {kind.__name__}")
    return value
