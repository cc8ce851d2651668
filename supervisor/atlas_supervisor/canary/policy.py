"""The canary policy: the share and epoch of each feature, in `deploy_state.json` for workers.

All decisions under one epoch have one share; a changed share starts a new epoch. Changes are
applied in one order: state file (workers read it), memory, database. So after a crash the state
file is right and the database may be behind. A change that was requested is answered once it is in
both, or it is taken back and refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from atlas_supervisor.canary.evidence import Checkpoint, Evidence
from atlas_supervisor.canary.persistence import CanaryPersistence, QueuedChanges
from atlas_supervisor.canary.stats.ramp import Change, Feature, Rules, Stage
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import (
    ArmCounts,
    CanaryPolicy,
    EpochRow,
    FallbackView,
    FeaturePolicy,
    Kills,
)
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.failpoints import seam
from atlas_worker.contract.ring import LAYOUT_VERSION

log = structlog.get_logger(__name__)


def rules_of(settings: Settings) -> Rules:
    """Return the settings of ramps."""
    return Rules(
        steps=settings.canary_ramp,
        step_seconds=settings.canary_step_seconds,
        least_calls=settings.canary_min_calls,
    )


def initial_features(
    settings: Settings, saved: Mapping[str, Feature], policy: CanaryPolicy | None
) -> dict[str, Feature]:
    """Return every feature of the settings, restored as far as it was saved.

    Where the policy in the state file is newer than the database, the state file is right.
    """
    found = {}
    for name in settings.canary_features:
        feature = saved.get(name) or Feature(name=name, percentage=settings.canary_percentage)
        if not feature.own_percentage:
            feature = feature.model_copy(update={"percentage": settings.canary_percentage})
        known = policy.features.get(name) if policy else None
        if known is not None and known.epoch > feature.epoch:
            feature = feature.model_copy(
                update={
                    "epoch": known.epoch,
                    "ramp": known.ramp,
                    "stage": Stage(known.stage),
                    "reason": feature.reason or "decided shortly before the daemon was killed",
                }
            )
        if feature.stage in (Stage.RAMPING, Stage.PAUSED) and not settings.canary_ramp:
            feature = feature.model_copy(update={"stage": Stage.STEADY, "step": 0})
        found[name] = feature
    return found


@dataclass(frozen=True)
class Latches:
    """What turns canaries off and keeps their shares: the fallback, the fleet's kill switch."""

    fallback: FallbackView | None = None
    kills: Kills | None = None

    def share(self, feature: Feature, settings: Settings) -> float:
        """Return the effective share of a feature's canary."""
        if not settings.canary_enabled or self.fallback is not None:
            return 0.0
        if self.kills is not None and self.kills.has_off(feature.name):
            return 0.0
        return feature.share(settings.canary_ramp)


def policy_of(
    features: Iterable[Feature],
    settings: Settings,
    before: CanaryPolicy | None,
    *,
    latches: Latches,
    counted_from: int,
) -> CanaryPolicy:
    """Return the policy for workers."""
    return CanaryPolicy(
        enabled=settings.canary_enabled,
        salt=before.salt if before else secrets.token_hex(16),
        features={
            feature.name: FeaturePolicy(
                share=latches.share(feature, settings),
                epoch=feature.epoch,
                ramp=feature.ramp,
                stage=feature.stage.value,
            )
            for feature in features
        },
        fallback=latches.fallback,
        kills=latches.kills,
        counted_from=counted_from,
        ring_layout=LAYOUT_VERSION,
    )


def with_epochs(
    features: Mapping[str, Feature],
    settings: Settings,
    before: CanaryPolicy | None,
    *,
    latches: Latches,
    fresh: frozenset[str],
    new_epoch: Callable[[], int],
) -> dict[str, Feature]:
    """Return the features, with a new epoch for each one whose share has changed.

    Evidence starts anew for the `fresh` ones, and where calls are drawn at random that were not
    before: a key drawn now may have been in the former ramp already and would count twice.
    """
    found = {}
    for name, feature in features.items():
        found[name] = feature
        share = latches.share(feature, settings)
        policy = before.features.get(name) if before else None
        if policy is None or policy.share != share or name in fresh:
            epoch = new_epoch()
            anew = policy is None or name in fresh or (0 < share < 1 and not 0 < policy.share < 1)
            ramp = epoch if anew else feature.ramp
            found[name] = feature.model_copy(update={"epoch": epoch, "ramp": ramp})
    return found


def current_ramps(policy: CanaryPolicy) -> dict[str, int]:
    """Return the ramps that draw calls at random, by feature: only those gather evidence."""
    return {
        name: feature.ramp for name, feature in policy.features.items() if 0 < feature.share < 1
    }


class PolicyStore:
    """Holds every feature's state and the policy; the only place that changes a share."""

    def __init__(
        self,
        settings: Settings,
        state: StateKeeper,
        evidence: Evidence,
        persistence: CanaryPersistence,
        features: Mapping[str, Feature],
    ) -> None:
        self._settings = settings
        self._state = state
        self._evidence = evidence
        self._persistence = persistence
        self._policy = state.state.canary
        self.features = dict(features)

    @property
    def policy(self) -> CanaryPolicy:
        """The current policy. Raises RuntimeError before the first `apply`."""
        if self._policy is None:
            raise RuntimeError("no canary policy has been applied yet")
        return self._policy

    @property
    def last_fallback(self) -> FallbackView | None:
        """The fallback in the state file, which may lack its numbers; None if there was none."""
        known = self._policy.fallback if self._policy else None
        if known is None and self._state.state.canary_disabled_fallback:
            none = ArmCounts(calls=0, errors=0, error_rate=0.0)
            why = "recorded in the state file without its numbers"
            return FallbackView(since_ts=now(), reason=why, canary=none, stable=none)
        return known

    @property
    def kills(self) -> Kills | None:
        """The fleet's kill switch in the state file; None if it was never set."""
        return self._policy.kills if self._policy else None

    def share(self, feature: str) -> float:
        """Return the effective share of a feature's canary."""
        return self.policy.features[feature].share

    @property
    def is_published(self) -> bool:
        """Whether the state file has the policy; not if a refused change could not be undone."""
        return self._state.state.canary == self._policy

    @seam("canary-policy")
    async def apply(
        self,
        changes: Mapping[str, Change],
        *,
        fallback: FallbackView | None,
        kills: Kills | None = None,
        cause: str = "the settings",
        forget: bool = False,
        make_durable: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Apply changes: state file, memory, database. Raises OSError, and nothing has changed.

        `kills` replaces those in force; None leaves them. `cause` is recorded for epochs of
        features without a change of their own. With `forget`, the fallback no longer counts
        earlier calls. `make_durable` writes the database at once; what it raises is raised, and
        the change is taken back.
        """
        before, newest = self._policy, self._persistence.newest_epoch
        latches = Latches(fallback, kills or self.kills)
        fresh = frozenset(name for name, each in changes.items() if each.fresh)
        features = with_epochs(
            {**self.features, **{name: each.feature for name, each in changes.items()}},
            self._settings,
            before,
            latches=latches,
            fresh=fresh,
            new_epoch=self._persistence.new_epoch,
        )
        oldest = min((feature.epoch for feature in features.values()), default=0)
        counted_from = oldest if forget else (before.counted_from if before else 0)
        policy = policy_of(
            features.values(),
            self._settings,
            before,
            latches=latches,
            counted_from=counted_from,
        )
        try:
            await self._publish(policy)
        except OSError:
            self._persistence.release_epochs(newest)
            raise
        undo = (before, self.features, self._evidence.checkpoint(), self._persistence.queued())
        self._policy, self.features = policy, features
        for name, feature in features.items():
            if self._evidence.epoch(feature.epoch) is None:
                self._start_epoch(feature, changes[name].why if name in changes else cause)
        self._persistence.queue_features(current_ramps(policy).values())
        if make_durable is not None:
            try:
                await make_durable()
            except BaseException:
                await self._take_back(*undo)
                raise
        self._evidence.set_ramps(current_ramps(policy))

    async def _publish(self, policy: CanaryPolicy) -> None:
        """Write the policy to the state file if it has another. Raises OSError."""
        latched = policy.fallback is not None
        state = self._state.state
        if policy != state.canary or latched != state.canary_disabled_fallback:
            await self._state.change(canary=policy, canary_disabled_fallback=latched)
            self._persistence.queue_state(lambda: self._state.state)

    async def _take_back(
        self,
        policy: CanaryPolicy | None,
        features: dict[str, Feature],
        checkpoint: Checkpoint,
        queued: QueuedChanges,
    ) -> None:
        """Undo a change that was published and could not be written to the database."""
        self._policy, self.features = policy, features
        self._evidence.restore(checkpoint)
        self._persistence.restore_queue(queued)
        if policy is not None:
            try:
                await self._publish(policy)
            except OSError as error:
                log.critical("canary_policy_uncertain", why=str(error), instead="tried again")

    def _start_epoch(self, feature: Feature, why: str) -> None:
        row = EpochRow(
            epoch=feature.epoch,
            feature=feature.name,
            ramp=feature.ramp,
            share=self.share(feature.name),
            ts=now().isoformat(),
            cause=why,
        )
        self._evidence.start_epoch(row, fresh=feature.epoch == feature.ramp)
        self._persistence.queue_epoch(row)
