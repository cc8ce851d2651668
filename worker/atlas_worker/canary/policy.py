"""The canary policy of the state file, prepared for callers.

Everything that does not depend on the call is computed here, once per policy or per slice.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Self

from atlas_worker.contract import STATE_BYTES_LIMIT, STATE_SCHEMA_VERSION
from atlas_worker.contract.ring import EPOCHS, FIRST_LAYOUT, LAYOUT_VERSION, EventKind, encode

Question = int | tuple[int, int]
"""The event word of a decision; with a key, that and the key word."""
Unreported = ContextVar[list[Question]]
"""The decisions of one context and arm without an outcome. A decision is removed when its outcome
is reported, in any context that has inherited the list. Equal decisions share a list."""
_DIGESTS = 2**64
MAX_UNREPORTED = 10_000
"""Decisions of earlier slices that one context and arm remembers."""


class StackedQuestions(list[Question]):
    """The decisions of one slice on top of unreported ones of earlier slices, `older`."""

    __slots__ = ("older",)
    older: list[Question] | None

    @classmethod
    def on(cls, older: list[Question], question: Question) -> Self:
        """Return a list of one decision; empty older lists and those over the limit are dropped."""
        new = cls((question,))
        new.older = older
        stack: StackedQuestions = new
        count = 0
        while stack.older is not None:
            if not stack.older:
                stack.older = getattr(stack.older, "older", None)
            elif (count := count + len(stack.older)) > MAX_UNREPORTED:
                stack.older = None
            elif isinstance(stack.older, StackedQuestions):
                stack = stack.older
            else:
                break
        return new


def newest_question(unreported: list[Question] | None) -> Question | None:
    """Remove and return the newest decision; None if there is none."""
    while unreported is not None:
        try:
            return unreported.pop()
        except IndexError:  # empty, or another thread was faster
            unreported = getattr(unreported, "older", None)
    return None


class BadPolicyError(ValueError):
    """The state file has no valid policy."""


class NoPolicyError(BadPolicyError):
    """The state file has none yet, or its daemon knows no canaries."""


class ArmWords:
    """One arm of a feature in one slice: its words of ASKED, STARTED and RECORDED.

    `unreported` and `set_unreported` get and set the context's decisions without an outcome.
    """

    __slots__ = ("asked", "recorded", "set_unreported", "started", "unreported")

    def __init__(
        self, is_canary: bool, epoch: int, slice_number: int, unreported: Unreported
    ) -> None:
        self.asked, self.started, self.recorded = (
            encode(kind, is_canary=is_canary, epoch=epoch, slice_number=slice_number)
            for kind in (EventKind.ASKED, EventKind.STARTED, EventKind.RECORDED)
        )
        self.unreported, self.set_unreported = unreported.get, unreported.set


class Rule:
    """One feature under one epoch; `share` is the canary's, from 0 to 1.

    A key gets the canary if its digest by `hasher` is below `threshold`. `canary` and `stable` are
    the arms in the current slice.
    """

    __slots__ = ("_epoch", "_unreported", "canary", "hasher", "share", "stable", "threshold")

    def __init__(
        self,
        feature: str,
        share: float,
        epoch: int,
        salt: str,
        unreported: tuple[Unreported, Unreported],
    ) -> None:
        self.share = share
        self.hasher = blake2b(f"{salt}\0{feature}\0".encode(errors="surrogatepass"), digest_size=8)
        self.threshold = key_threshold(share)
        self._epoch = epoch
        self._unreported = unreported  # of stable, of canary
        self.set_slice(0)

    def set_slice(self, number: int) -> None:
        """Start a slice: later assignments belong to it."""
        stable, canary = self._unreported
        self.stable = ArmWords(False, self._epoch, number, stable)
        self.canary = ArmWords(True, self._epoch, number, canary)


class CanaryRules:
    """The rules of all listed features, whether canaries are on, and the layout of new rings."""

    def __init__(self, *, enabled: bool, rules: dict[str, Rule], ring_layout: int) -> None:
        self.enabled = enabled
        self.rules = rules
        self.ring_layout = ring_layout


def key_threshold(share: float) -> bytes:
    """Return the lowest digest of the stable arm, the first with `number / 2**64 >= share`.

    The division rounds, so the number is found by bisection. A share of 1 takes every key, also the
    few whose quotient rounds to 1.
    """
    if share >= 1:
        return b"\xff" * 9  # greater than any digest of eight bytes
    low, high = 0, _DIGESTS
    while low < high:
        middle = (low + high) // 2
        if middle / _DIGESTS < share:
            low = middle + 1
        else:
            high = middle
    return low.to_bytes(8)


def read_policy(
    content: bytes, unreported: dict[str, tuple[Unreported, Unreported]]
) -> CanaryRules:
    """Return the policy in a state file. Raises BadPolicyError.

    `unreported` keeps each feature's context variables across policies.
    """
    if len(content) > STATE_BYTES_LIMIT:
        raise BadPolicyError(f"the state file has more than {STATE_BYTES_LIMIT} bytes")
    try:
        document = json.loads(content)
        if document["schema_version"] > STATE_SCHEMA_VERSION:
            raise BadPolicyError("a newer supervisor wrote the state file")
        canary = document.get("canary")
        if canary is None:
            raise NoPolicyError("the state file has no policy")
        latched = _of(bool, document["canary_disabled_fallback"])
        enabled = _of(bool, canary["enabled"]) and not latched
        salt = _of(str, canary["salt"])
        # An earlier daemon does not say which layouts it reads: it reads the first one.
        ring_layout = min(_of(int, canary.get("ring_layout", FIRST_LAYOUT)), LAYOUT_VERSION)
        listed = {_of(str, name): _checked(one) for name, one in canary["features"].items()}
    except BadPolicyError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadPolicyError(f"the state file has no policy: {error!r}") from error
    rules = {}
    for name, (share, epoch) in listed.items():
        # Off means a share of 0. A file with another share is inconsistent: nothing is recorded.
        if enabled or share == 0:
            if name not in unreported:
                unreported[name] = (ContextVar(f"{name}_stable"), ContextVar(f"{name}_canary"))
            rules[name] = Rule(name, share, epoch, salt, unreported[name])
    return CanaryRules(enabled=enabled, rules=rules, ring_layout=ring_layout)


def _checked(feature: Any) -> tuple[float, int]:
    share, epoch = feature["share"], feature["epoch"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise BadPolicyError(f"{share!r} is not a share")
    if not 0 <= _of(int, epoch) < EPOCHS:
        raise BadPolicyError(f"{epoch!r} is not an epoch")
    return float(share), epoch


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise BadPolicyError(f"{value!r} is not a {kind.__name__}")
    return value
