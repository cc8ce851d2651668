"""Feature canaries as the API sees them, and the task that looks after them.

It implements `api.ports.Canaries`: reads what workers tell, decides, and does what is asked for.

Where feature canaries begin: from what the last daemon left, and what the settings say now.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import anyio
import structlog

from atlas_supervisor.canary import errors
from atlas_supervisor.canary import report as views
from atlas_supervisor.canary.call_collector import CallCollector
from atlas_supervisor.canary.evidence import Evidence, Moment, Observe, unobserved
from atlas_supervisor.canary.persistence import CanaryPersistence, kept_by, newest_epoch
from atlas_supervisor.canary.policy import PolicyStore, first_features, rules_of
from atlas_supervisor.canary.report import RecentStats, suggestions
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.fallback import Fallback
from atlas_supervisor.canary.stats.ramp import (
    Action,
    Feature,
    Next,
    RampError,
    act,
    judge_ramp,
    reset,
    set_percentage,
)
from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.canary import (
    ArmCounts,
    CanaryReport,
    CanaryStats,
    CanaryView,
    FallbackView,
    FeatureView,
)
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.status import Suggestion
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system.clock import now
from atlas_worker.contract import RINGS_DIRECTORY

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.25
"""How often the rings are read."""

_AFTER_A_BUG_SECONDS = 10.0


class FeatureCanaries:
    """Knows every feature's canary, decides about it, and answers for it."""

    def __init__(
        self,
        *,
        settings: Settings,
        holding: PolicyStore,
        evidence: Evidence,
        intake: CallCollector,
        ledger: CanaryPersistence,
    ) -> None:
        self._settings = settings
        self._rules = rules_of(settings)
        self._fallback = Fallback(settings.canary_error_threshold, settings.canary_min_calls)
        self._holding = holding
        self._evidence = evidence
        self._intake = intake
        self._ledger = ledger
        self._deciding = anyio.Lock()
        self._glance: RecentStats | None = None
        """What the last hour looked like when somebody asked last; None: not any more."""

    # What happens by itself.

    async def start(self) -> None:
        """Tell workers what holds now: the settings may be others than at the last start."""
        async with self._deciding:
            fallback = self._holding.last_fallback
            if fallback is None and self._holding.is_latched:
                fallback = FallbackView(
                    since_ts=now(),
                    reason="the state file says so; the numbers are lost",
                    canary=_counts(Arm()),
                    stable=_counts(Arm()),
                )
            await self._holding.adopt({}, fallback=fallback)

    async def run(self) -> None:
        """Look after the canaries until cancelled."""
        while True:
            try:
                await self._look()
            except OSError as error:  # the state file can't be written: tried again
                log.error("canary_look_failed", why=str(error))
            except Exception:  # a bug of ours, and deploys must go on
                log.exception("canary_look_failed")
                await anyio.sleep(_AFTER_A_BUG_SECONDS)
            await anyio.sleep(LOOK_SECONDS)

    async def _look(self, *, at_once: bool = False) -> None:
        """Read what processes tell, decide, and write it all down, `at_once` if not in time."""
        with anyio.CancelScope(shield=True):  # what was read is taken in, or read again
            async with self._deciding:
                moment = Moment.now()
                for told in await anyio.to_thread.run_sync(self._intake.look):
                    self._evidence.take_in(told.ring, told.events, told.keyed, moment)
                    if told.ended:
                        self._evidence.gone(told.ring, moment)
                changed = self._evidence.settle(moment)
                self._glance = self._glance if not changed else None
                if changed or self._intake.news:
                    self._ledger.owe_counts(at_once=at_once)
                await self._decide(moment)
                await self._write(moment)

    async def _decide(self, moment: Moment) -> None:
        """Let the fallback, and each feature's evidence, lead to what they lead to."""
        policy = self._holding.policy
        if not policy.enabled or policy.fallback is not None:
            return
        canary, stable = self._evidence.spans.arms(moment.unix, policy.counted_from)
        decision = self._fallback.decide(canary, stable)
        if decision.latch:
            await self._latch(canary, stable, decision.reason)
            return
        for feature in list(self._holding.features.values()):
            judgement = self._evidence.judgement(feature.name)
            calls = self._evidence.step_calls(feature.epoch)
            following = judge_ramp(feature, judgement, calls, self._rules, moment.unix)
            if following is not None:
                await self._follow(following, SUPERVISOR, following.feature.stage.value)

    async def _latch(self, canary: Arm, stable: Arm, reason: str) -> None:
        fallback = FallbackView(
            since_ts=now(), reason=reason, canary=_counts(canary), stable=_counts(stable)
        )
        log.error("canary_fallback", why=reason)
        await self._holding.adopt({}, fallback=fallback, cause="the fallback")
        self._ledger.owe_fallback(fallback)

    async def _follow(self, following: Next, actor: Actor, outcome: str) -> None:
        feature = following.feature
        log.warning("canary_changed", feature=feature.name, stage=feature.stage, why=following.why)
        holding = self._holding
        await holding.adopt({feature.name: following}, fallback=holding.policy.fallback)
        share = holding.share(feature.name)
        self._ledger.owe_audit(
            actor, "canary", outcome, feature.name, reason=following.why, share=share
        )

    def close(self) -> None:
        """Let the rings go; what they hold is read by the next daemon."""
        self._intake.close()

    # What can be asked for.

    async def set_percentage(self, feature: str, percentage: float, actor: Actor) -> FeatureView:
        """Give a feature a share of its own. Raises RefusedError."""
        async with self._deciding:
            following = set_percentage(self._known(feature), percentage, actor.name)
            return await self._asked(feature, following, actor, "set")

    async def ramp(
        self, feature: str, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> FeatureView:
        """Do something to a feature's ramp. Raises RefusedError."""
        async with self._deciding:
            known, following = self._known(feature), None
            if not await self._ledger.done_before(key):
                try:
                    following = act(
                        known, Action(action), self._rules, Moment.now().unix, actor.name
                    )
                except RampError as error:
                    raise errors.ramp(error) from error
            view = await self._asked(feature, following, actor, action)
            await self._ledger.remember(key)
            return view

    async def _asked(
        self, feature: str, following: Next | None, actor: Actor, outcome: str
    ) -> FeatureView:
        if following is not None:
            try:
                await self._follow(following, actor, outcome)
            except OSError as error:
                raise errors.not_durable(error) from error
            await self._write(Moment.now())
        return self._feature_view(self._known(feature))

    async def reset(
        self, feature: str | None, actor: Actor, key: IdempotencyKey | None = None
    ) -> CanaryView:
        """Reset one feature to the settings; without one, the fallback. Raises RefusedError."""
        async with self._deciding:
            if feature is not None:
                self._known(feature)
            if not await self._ledger.done_before(key):
                await self._do_reset(feature, actor)
                await self._ledger.remember(key)
            return self.view()

    async def _do_reset(self, feature: str | None, actor: Actor) -> None:
        names = [feature] if feature else list(self._holding.features)
        changes = {name: self._reset(name, actor, whole=feature is not None) for name in names}
        fallback = self._holding.policy.fallback if feature else None
        try:
            await self._holding.adopt(changes, fallback=fallback, forget=feature is None)
        except OSError as error:
            raise errors.not_durable(error) from error
        subject = feature or "fallback"
        log.info("canary_reset", subject=subject, by=actor.name)
        self._ledger.owe_audit(actor, "canary_reset", "done", subject)
        await self._write(Moment.now())

    def _reset(self, name: str, actor: Actor, *, whole: bool) -> Next:
        feature = self._known(name)
        if whole:
            return reset(feature, self._settings.canary_percentage, actor.name)
        since = {"step_since": Moment.now().unix}
        return Next(feature.model_copy(update=since), f"fallback reset by {actor.name}", fresh=True)

    async def _write(self, moment: Moment) -> None:
        features = self._holding.features
        await self._ledger.write(self._evidence, features, self._intake, moment)

    # What there is to know.

    def stats(self) -> CanaryStats:
        """Return the last hour's numbers, from memory."""
        return self._last_hour().stats

    def suggestions(self) -> list[Suggestion]:
        """Return what an operator should do about canaries, if anything; from memory."""
        return list(suggestions(self.view()))

    def view(self) -> CanaryView:
        """Return every feature's canary as it is now, from memory."""
        policy = self._holding.policy
        return CanaryView(
            enabled=policy.enabled and policy.fallback is None,
            canary_disabled_fallback=policy.fallback is not None,
            fallback=policy.fallback,
            dropped_events=self._intake.dropped,
            late_calls=self._evidence.late,
            overflown_calls=self._evidence.overflown,
            features=[self._feature_view(feature) for feature in self._holding.features.values()],
        )

    def _last_hour(self) -> RecentStats:
        """Return the last hour's numbers; they are put together once in a look, or minute."""
        minute = int(Moment.now().unix / 60)
        if self._glance is None or self._glance.minute != minute:
            self._glance = views.glance(self._evidence, minute)
        return self._glance

    async def report(self, hours: int) -> CanaryReport:
        """Return the last hours' numbers of every feature. Raises StoreError."""
        with suppress(OSError):  # it is about what is known
            await self._look(at_once=True)
        until = datetime.fromtimestamp(Moment.now().unix, UTC)
        counts, epochs = await self._ledger.counts(until.timestamp(), hours)
        return await anyio.to_thread.run_sync(
            views.report,
            until,
            hours,
            epochs,
            counts,
            {
                name: (self._evidence.judgement(name), self._evidence.ratios(name))
                for name in self._holding.features
            },
        )

    def _known(self, name: str) -> Feature:
        if name not in self._holding.features:
            raise errors.unknown_feature(name, list(self._holding.features))
        return self._holding.features[name]

    def _feature_view(self, feature: Feature) -> FeatureView:
        return views.feature_view(
            feature,
            self._holding.share(feature.name),
            self._rules,
            self._evidence,
            Moment.now().unix,
            warnings=self._last_hour().warnings.get(feature.name, []),
        )


def _counts(arm: Arm) -> ArmCounts:
    return ArmCounts(calls=arm.calls, errors=arm.errors, error_rate=arm.rate or 0.0)


_FOLDER_MODE = 0o700


async def open_canaries(
    settings: Settings,
    state: StateKeeper,
    database: Database,
    observe: Observe = unobserved,
) -> FeatureCanaries:
    """Return the canaries as they were left; workers are told what holds now.

    Raises StartRefusedError, StoreError.
    """
    kept, features = await kept_by(database, Moment.now().unix)
    try:
        evidence = Evidence(settings, kept, observe)
    except (ValueError, LookupError, TypeError) as error:
        log.error("canary_progress_unreadable", why=repr(error), instead="evidence begins anew")
        evidence = Evidence(settings, kept._replace(progress={}), observe)
    folder = settings.state_dir / RINGS_DIRECTORY
    policy = state.state.canary
    ledger = CanaryPersistence(database, settings, newest_epoch(kept, policy))
    ledger.make_up(policy, features, kept.progress)
    try:
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        intake = CallCollector(folder, await database.canary.rings())
        intake.tidy()
        canaries = FeatureCanaries(
            settings=settings,
            holding=PolicyStore(
                settings, state, evidence, ledger, first_features(settings, features, policy)
            ),
            evidence=evidence,
            intake=intake,
            ledger=ledger,
        )
        await canaries.start()
    except OSError as error:
        raise StartRefusedError(f"{settings.state_dir} can't be written: {error}") from error
    return canaries
