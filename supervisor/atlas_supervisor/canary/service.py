"""Feature canaries: polls the rings, decides, and serves the API (`api.ports.Canaries`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import anyio
import structlog

from atlas_supervisor import errors
from atlas_supervisor.canary.call_collector import CallCollector
from atlas_supervisor.canary.evidence import Evidence, Moment, Observe, unobserved
from atlas_supervisor.canary.kills import apply_kills, lifted, refuse_killed
from atlas_supervisor.canary.persistence import CanaryPersistence, newest_epoch, read_saved
from atlas_supervisor.canary.policy import PolicyStore, initial_features, rules_of
from atlas_supervisor.canary.report import (
    FeatureEvidence,
    RecentStats,
    build_report,
    counting_check,
    fallback_view,
    feature_view,
    recent_stats,
    simulation,
    suggestions,
)
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.ramp import (
    NO_STEPS,
    Action,
    Change,
    Fallback,
    Feature,
    RampError,
    Stage,
    act,
    judge_ramp,
    reset,
    set_percentage,
    step_anew,
)
from atlas_supervisor.canary.stats.totals import CanaryTotals
from atlas_supervisor.config import Settings
from atlas_supervisor.errors import RefusedError, StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.canary import (
    CanaryReport,
    CanaryStats,
    CanaryView,
    FeatureView,
    Kills,
    SimulationView,
)
from atlas_supervisor.model.health import Check
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.status import Suggestion
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.account import make_folder
from atlas_supervisor.system.threads import in_thread
from atlas_worker.contract import RINGS_DIRECTORY

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.16
"""How often the rings are read: workers look 50 ms later, and both within a quarter of a second."""

_AFTER_BUG_SECONDS = 10.0
_MAX_NAME = 100  # characters of an unknown feature's name that are quoted


class FeatureCanaries:
    """The canaries of all features. `open_canaries` makes it, `run` keeps it going."""

    def __init__(
        self,
        *,
        settings: Settings,
        policies: PolicyStore,
        evidence: Evidence,
        collector: CallCollector,
        persistence: CanaryPersistence,
    ) -> None:
        self._settings = settings
        self._rules = rules_of(settings)
        self._fallback = Fallback(settings.canary_error_threshold, settings.canary_min_calls)
        self._policies = policies
        self._evidence = evidence
        self._collector = collector
        self._persistence = persistence
        self._lock = anyio.Lock()
        """Held while anything is decided or changed."""
        self._recent: RecentStats | None = None
        """A cache of the last hour's numbers; None after a change."""

    # The loop.

    async def start(self, kills: Kills | None) -> None:
        """Publish the policy by the present settings, which may differ from the last start's."""
        async with self._lock:
            await self._policies.apply({}, fallback=self._policies.last_fallback)
            if kills is not None:
                await apply_kills(self._policies, self._persistence, kills, Moment.now().unix)

    async def run(self) -> None:
        """Poll the rings until cancelled."""
        while True:
            due = anyio.current_time() + POLL_SECONDS
            try:
                await self._poll()
            except OSError as error:  # the state file can't be written; retried
                log.error("canary_poll_failed", why=str(error))
            except Exception:  # a bug must not stop the daemon, which also runs deploys
                log.exception("canary_poll_failed")
                await anyio.sleep(_AFTER_BUG_SECONDS)
            await anyio.sleep_until(due)

    async def _poll(self, *, at_once: bool = False) -> None:
        """Read new events, decide, and write; `at_once` writes even if it is not time yet."""
        with anyio.CancelScope(shield=True):  # events that were read must be added
            async with self._lock:
                moment, more = Moment.now(), True
                while more:  # memory is bounded: a part of the events at a time
                    collected, more = await in_thread(self._collector.poll)
                    for each in collected:
                        self._evidence.add_events(each.ring, each.events, each.keyed, moment)
                        if each.exited:
                            self._evidence.process_exited(each.ring, moment)
                changed = self._evidence.advance(moment)
                if changed:
                    self._recent = None
                if changed or self._collector.has_unwritten:
                    self._persistence.queue_counts(at_once=at_once)
                await self._decide(moment)
                await self._write(moment)

    async def _decide(self, moment: Moment) -> None:
        """Apply the fallback, or else each feature's verdict."""
        policy = self._policies.policy
        if not self._policies.is_published:
            await self._policies.apply({}, fallback=policy.fallback)
        if not policy.enabled or policy.fallback is not None:
            return
        canary, stable = self._evidence.rollups.arms(moment.unix, policy.counted_from)
        if (reason := self._fallback.reason(canary, stable)) is not None:
            await self._fall_back(canary, stable, reason)
            return
        for feature in list(self._policies.features.values()):
            if policy.kills is not None and policy.kills.has_off(feature.name):
                continue
            ramps = feature.stage is Stage.RAMPING
            conclusion = self._evidence.conclusion(feature.name, may_promote=ramps)
            calls = self._evidence.step_calls(feature.epoch)
            change = judge_ramp(feature, conclusion, calls, self._rules, moment.unix)
            if change is not None:
                await self._change(change, SUPERVISOR, change.feature.stage.value)

    async def _fall_back(self, canary: Arm, stable: Arm, reason: str) -> None:
        fallback = fallback_view(canary, stable, reason)
        log.error("canary_fallback", why=reason)
        await self._policies.apply({}, fallback=fallback, cause="the fallback")
        self._persistence.queue_fallback(fallback)

    async def _change(
        self,
        change: Change,
        actor: Actor,
        outcome: str,
        make_durable: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        feature = change.feature

        async def audited() -> None:
            share = self._policies.share(feature.name)
            self._persistence.queue_audit(
                actor, "canary", outcome, feature.name, reason=change.why, share=share
            )
            if make_durable is not None:
                await make_durable()

        fallback = self._policies.policy.fallback
        await self._policies.apply({feature.name: change}, fallback=fallback, make_durable=audited)
        log.warning("canary_changed", feature=feature.name, stage=feature.stage, why=change.why)

    async def _write(self, moment: Moment) -> None:
        features = self._policies.features
        await self._persistence.write(self._evidence, features, self._collector, moment)

    async def _commit(self) -> None:
        """Write everything now. Raises StoreError."""
        features = self._policies.features
        await self._persistence.commit(self._evidence, features, self._collector, Moment.now())

    def close(self) -> None:
        """Close the rings; the next daemon reads the rest."""
        self._collector.close()

    # Requests.

    async def set_percentage(self, feature: str, percentage: float, actor: Actor) -> FeatureView:
        """Set a feature's share. Raises RefusedError."""
        async with self._lock:
            change = set_percentage(self._known(feature), percentage, actor.name)
            if percentage > 0:
                refuse_killed(self._policies.kills, feature)
            return await self._requested(feature, change, actor, "set")

    async def ramp(
        self, feature: str, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> FeatureView:
        """Apply an action to a feature's ramp. Raises RefusedError."""
        async with self._lock:
            known, change = self._known(feature), None
            if not await self._persistence.is_repeated(key):
                if Action(action) not in (Action.PAUSE, Action.ROLLBACK):
                    refuse_killed(self._policies.kills, feature)
                unix = Moment.now().unix
                try:
                    change = act(known, Action(action), self._rules, unix, actor.name)
                except RampError as error:
                    raise errors.RAMP_NOT_POSSIBLE.error(
                        problem=str(error), hint=error.hint
                    ) from error
            view = await self._requested(feature, change, actor, action)
            await self._persistence.remember(key)
            return view

    async def _requested(
        self, feature: str, change: Change | None, actor: Actor, outcome: str
    ) -> FeatureView:
        if change is not None:
            # A rollback is in the state file, which wins after a crash: it must not wait.
            rolled_back = change.feature.stage is Stage.ROLLED_BACK
            make_durable = partial(self._write, Moment.now()) if rolled_back else self._commit
            try:
                await self._change(change, actor, outcome, make_durable)
            except (OSError, StoreError) as error:
                raise _not_durable(error) from error
        return self._feature_view(self._known(feature))

    async def reset(
        self, feature: str | None, actor: Actor, key: IdempotencyKey | None = None
    ) -> CanaryView:
        """Reset one feature to the settings, or without one the fallback. Raises RefusedError."""
        async with self._lock:
            if feature is not None:
                self._known(feature)
            if not await self._persistence.is_repeated(key):
                await self._reset(feature, actor)
                await self._persistence.remember(key)
            return self.view()

    async def _reset(self, feature: str | None, actor: Actor) -> None:
        if feature:
            share = self._settings.canary_percentage
            changes = {feature: reset(self._known(feature), share, actor.name)}
        else:
            unix, why = Moment.now().unix, f"fallback reset by {actor.name}"
            features = self._policies.features.items()
            changes = {name: step_anew(each, unix, why, fresh=True) for name, each in features}
        subject = feature or "fallback"

        async def audited() -> None:
            self._persistence.queue_audit(actor, "canary_reset", "done", subject)
            await self._commit()

        fallback = self._policies.policy.fallback if feature else None
        kills = None
        if feature is None and not self._settings.fleet_etcd_endpoints:
            kills = lifted(self._policies.kills, actor)
        try:
            await self._policies.apply(
                changes,
                fallback=fallback,
                kills=kills,
                forget=feature is None,
                make_durable=audited,
            )
        except (OSError, StoreError) as error:
            raise _not_durable(error) from error
        log.info("canary_reset", subject=subject, by=actor.name)

    async def kill(self, kills: Kills) -> None:
        """Apply the fleet's kill switch; workers read it then. Raises OSError, unchanged then."""
        async with self._lock:
            await apply_kills(self._policies, self._persistence, kills, Moment.now().unix)
            await self._write(Moment.now())

    # Views.

    def totals(self) -> CanaryTotals:
        """Return all calls that were ever counted here, from memory."""
        return self._evidence.totals

    def stats(self) -> CanaryStats:
        """Return the last hour's numbers, from memory."""
        return self._last_hour().stats

    def suggestions(self) -> list[Suggestion]:
        """Return problems with canaries and their remedies, from memory."""
        return list(suggestions(self.view()))

    def view(self) -> CanaryView:
        """Return the present state of every feature, from memory."""
        policy = self._policies.policy
        return CanaryView(
            enabled=policy.enabled and policy.fallback is None,
            canary_disabled_fallback=policy.fallback is not None,
            fallback=policy.fallback,
            kills=policy.kills,
            dropped_events=self._collector.dropped,
            problems=self._collector.problems(),
            late_calls=self._evidence.late,
            overflown_calls=self._evidence.overflown,
            features=[self._feature_view(feature) for feature in self._policies.features.values()],
        )

    def _last_hour(self) -> RecentStats:
        """Return the last hour's numbers; they are computed once per minute and change."""
        minute = int(Moment.now().unix / 60)
        if self._recent is None or self._recent.minute != minute:
            self._recent = recent_stats(self._evidence, minute)
        return self._recent

    async def report(self, hours: int) -> CanaryReport:
        """Return the last hours' numbers of every feature. Raises StoreError."""
        with suppress(OSError):  # the report is of what is known
            await self._poll(at_once=True)
        until = datetime.fromtimestamp(Moment.now().unix, UTC)
        counts, epochs = await self._persistence.counts(until.timestamp(), hours)
        known = {
            name: FeatureEvidence.of(self._evidence, feature, self._rules)
            for name, feature in self._policies.features.items()
        }
        build = partial(build_report, fallback=self._policies.policy.fallback)
        return await in_thread(build, until, hours, epochs, counts, known)

    async def simulate(
        self, keys: int, error_rate: float, shares: tuple[float, ...] | None
    ) -> SimulationView:
        """Return how often a ramp promotes a good canary; None: CANARY_RAMP.

        Raises RefusedError.
        """
        shares = shares or self._settings.canary_ramp
        if not shares or shares[0] >= 1:
            raise errors.RAMP_NOT_POSSIBLE.error(problem="there is no share below 1", hint=NO_STEPS)
        return await in_thread(simulation, self._settings, keys, error_rate, shares)

    def check(self) -> Check:
        """Return whether the calls of all processes are counted, from memory."""
        return counting_check(self._collector.problems().values(), self._persistence.failure)

    def _known(self, name: str) -> Feature:
        if name not in self._policies.features:
            listed = ", ".join(self._policies.features) or "none"
            raise errors.UNKNOWN_FEATURE.error(name=name[:_MAX_NAME], known=listed)
        return self._policies.features[name]

    def _feature_view(self, feature: Feature) -> FeatureView:
        return feature_view(
            feature,
            self._policies.share(feature.name),
            self._rules,
            self._evidence,
            Moment.now().unix,
            warnings=self._last_hour().warnings.get(feature.name, []),
            policy=self._policies.policy,
        )


def _not_durable(error: Exception) -> RefusedError:
    problem = "the canary policy could not be saved and is unchanged"
    return errors.NOT_DURABLE.error(problem=problem, error=error)


async def open_canaries(
    settings: Settings,
    state: StateKeeper,
    database: Database,
    observe: Observe = unobserved,
    kills: Kills | None = None,
) -> FeatureCanaries:
    """Restore the canaries of the last daemon and publish their policy.

    `kills` is the fleet's kill switch as this machine knew it last. Raises StartRefusedError,
    StoreError.
    """
    saved, features = await read_saved(database, Moment.now().unix)
    try:
        evidence = Evidence(settings, saved, observe)
    except (ValueError, LookupError, TypeError) as error:
        log.error("canary_progress_unreadable", why=repr(error), instead="evidence starts anew")
        evidence = Evidence(settings, saved._replace(progress={}), observe)
    policy = state.state.canary
    persistence = CanaryPersistence(database, settings, newest_epoch(saved, policy))
    persistence.queue_unaudited(policy, features, saved.progress)
    features = initial_features(settings, features, policy)
    folder = settings.state_dir / RINGS_DIRECTORY
    try:
        make_folder(folder, settings.worker_account)
        counts = saved.progress.get("dropped", "[0, 0]")
        collector = CallCollector(folder, await database.canary.rings(), counts)
        collector.prepare()
        canaries = FeatureCanaries(
            settings=settings,
            policies=PolicyStore(settings, state, evidence, persistence, features),
            evidence=evidence,
            collector=collector,
            persistence=persistence,
        )
        await canaries.start(kills)
    except OSError as error:
        raise StartRefusedError(f"{settings.state_dir} can't be written: {error}") from error
    return canaries
