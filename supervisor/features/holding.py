"""What holds now: every feature's state, and the policy that workers go by.

Whatever changes goes one way: the state file first, which workers read; then what the daemon itself
goes by; then the database, which is owed it.
"""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.canary.ramp import Feature, Next
from supervisor.clock import now
from supervisor.config import Settings
from supervisor.features.evidence import Evidence
from supervisor.features.ledger import Ledger
from supervisor.features.policy import going_on, policy_of, with_epochs
from supervisor.model.canary import CanaryPolicy, EpochRow, FallbackView
from supervisor.store.state_keeper import StateKeeper


class Holding:
    """The one place that changes a share."""

    def __init__(
        self,
        settings: Settings,
        state: StateKeeper,
        evidence: Evidence,
        ledger: Ledger,
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
