"""Decides what workers are told: from every feature's state to the policy in the state file. Pure.

A share never changes under an epoch: whatever changes it begins another one. The state file is
written first and the database follows, so what workers go by is never behind what is remembered.

What holds now: every feature's state, and the policy that workers go by.

Whatever changes goes one way: the state file first, which workers read; then what the daemon itself
goes by; then the database, which is owed it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping

from atlas_supervisor.canary.evidence import Evidence
from atlas_supervisor.canary.persistence import CanaryPersistence
from atlas_supervisor.canary.stats.ramp import Feature, Next, Rules, Stage
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import CanaryPolicy, EpochRow, FallbackView, FeaturePolicy
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system.clock import now


def rules_of(settings: Settings) -> Rules:
    """Return what the settings say about ramps."""
    return Rules(
        steps=settings.canary_ramp,
        step_seconds=settings.canary_step_seconds,
        least_calls=settings.canary_min_calls,
    )


def first_features(
    settings: Settings, kept: Mapping[str, Feature], known: CanaryPolicy | None
) -> dict[str, Feature]:
    """Return every feature of the settings as it was left, as far as it was.

    Where the policy in the state file says otherwise than what was remembered, the file is right:
    it was written first.
    """
    found = {}
    for name in settings.canary_features:
        feature = kept.get(name) or Feature(name=name, percentage=settings.canary_percentage)
        if not feature.own_percentage:
            feature = feature.model_copy(update={"percentage": settings.canary_percentage})
        policy = known.features.get(name) if known else None
        if policy is not None and policy.epoch > feature.epoch:
            feature = feature.model_copy(
                update={
                    "epoch": policy.epoch,
                    "ramp": policy.ramp,
                    "stage": Stage(policy.stage),
                    "reason": feature.reason or "decided right before the daemon was killed",
                }
            )
        if feature.stage in (Stage.RAMPING, Stage.PAUSED) and not settings.canary_ramp:
            feature = feature.model_copy(update={"stage": Stage.STEADY, "step": 0})
        found[name] = feature
    return found


def policy_of(
    features: Iterable[Feature],
    settings: Settings,
    before: CanaryPolicy | None,
    *,
    fallback: FallbackView | None,
    counted_from: int,
) -> CanaryPolicy:
    """Return what workers are to be told."""
    off = not settings.canary_enabled or fallback is not None
    return CanaryPolicy(
        enabled=settings.canary_enabled,
        salt=before.salt if before else secrets.token_hex(16),
        features={
            feature.name: FeaturePolicy(
                share=0.0 if off else feature.share(settings.canary_ramp),
                epoch=feature.epoch,
                ramp=feature.ramp,
                stage=feature.stage.value,
            )
            for feature in features
        },
        fallback=fallback,
        counted_from=counted_from,
    )


def with_epochs(
    features: Mapping[str, Feature],
    settings: Settings,
    before: CanaryPolicy | None,
    *,
    latched: bool,
    fresh: frozenset[str],
    new_epoch: Callable[[], int],
) -> dict[str, Feature]:
    """Return the features with a new epoch for each whose share is another one now.

    Evidence begins anew with it for the `fresh` ones, and where calls are drawn that were not
    before: who is drawn now may have been in that ramp already, and would count once more.
    """
    off = not settings.canary_enabled or latched
    found = {}
    for name, feature in features.items():
        share = 0.0 if off else feature.share(settings.canary_ramp)
        policy = before.features.get(name) if before else None
        if policy is None or policy.share != share or name in fresh:
            epoch = new_epoch()
            anew = policy is None or name in fresh or (0 < share < 1 and not 0 < policy.share < 1)
            ramp = epoch if anew else feature.ramp
            feature = feature.model_copy(update={"epoch": epoch, "ramp": ramp})  # noqa: PLW2901  # the same feature, later
        found[name] = feature
    return found


def going_on(policy: CanaryPolicy) -> dict[str, int]:
    """Return the ramps whose evidence goes on: those that draw calls, by feature."""
    return {
        name: feature.ramp for name, feature in policy.features.items() if 0 < feature.share < 1
    }


class PolicyStore:
    """The one place that changes a share."""

    def __init__(
        self,
        settings: Settings,
        state: StateKeeper,
        evidence: Evidence,
        ledger: CanaryPersistence,
        features: Mapping[str, Feature],
    ) -> None:
        self._settings = settings
        self._state = state
        self._evidence = evidence
        self._ledger = ledger
        self.features = dict(features)

    @property
    def policy(self) -> CanaryPolicy:
        """What workers are told. Raises RuntimeError before `begin`."""
        policy = self._state.state.canary
        if policy is None:
            raise RuntimeError("canaries are asked about before they were begun")
        return policy

    @property
    def is_latched(self) -> bool:
        """Whether the state file says that the fallback turned canaries off."""
        return self._state.state.canary_disabled_fallback

    @property
    def last_fallback(self) -> FallbackView | None:
        """Why it did, as far as the state file knows."""
        return self._state.state.canary.fallback if self._state.state.canary else None

    def share(self, feature: str) -> float:
        """Return the share of calls that the feature's canary gets, all told."""
        return self.policy.features[feature].share

    async def adopt(
        self,
        changes: Mapping[str, Next],
        *,
        fallback: FallbackView | None,
        cause: str = "the settings",
        forget: bool = False,
    ) -> None:
        """Make the changes hold: for workers first, then for ourselves. Raises OSError."""
        before, newest = self._state.state.canary, self._ledger.newest_epoch
        fresh = frozenset(name for name, each in changes.items() if each.fresh)
        features = with_epochs(
            {**self.features, **{name: each.feature for name, each in changes.items()}},
            self._settings,
            before,
            latched=fallback is not None,
            fresh=fresh,
            new_epoch=self._ledger.new_epoch,
        )
        oldest = min((feature.epoch for feature in features.values()), default=0)
        counted_from = oldest if forget else (before.counted_from if before else 0)
        policy = policy_of(
            features.values(),
            self._settings,
            before,
            fallback=fallback,
            counted_from=counted_from,
        )
        if policy != before or (fallback is None) == self._state.state.canary_disabled_fallback:
            try:
                await self._state.change(
                    canary=policy, canary_disabled_fallback=fallback is not None
                )
            except OSError:
                self._ledger.take_back(newest)
                raise
        for name, feature in features.items():
            if self._evidence.epoch(feature.epoch) is None:
                why = changes[name].why if name in changes else cause
                self._begin(policy, feature, why, fresh=feature.epoch == feature.ramp)
        self.features = features
        self._evidence.follow(going_on(policy))
        self._ledger.owe_features(going_on(policy).values())

    def _begin(self, policy: CanaryPolicy, feature: Feature, why: str, *, fresh: bool) -> None:
        row = EpochRow(
            epoch=feature.epoch,
            feature=feature.name,
            ramp=feature.ramp,
            share=policy.features[feature.name].share,
            ts=now().isoformat(),
            cause=why,
        )
        self._evidence.begin_epoch(row, fresh=fresh)
        self._ledger.owe_epoch(row)
