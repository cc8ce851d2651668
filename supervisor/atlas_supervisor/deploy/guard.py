"""The guard: the new version has the traffic, and is watched while the old one is still warm.

It is reverted if its probes fail, or if its users' requests show that it is worse than the old one:
by the old one's record (`requests.old_record`), and in a holdback by both at the same time
(`requests.comparison`). A crash is not the guard's affair: it comes as an event of its own.

What the evidence goes by is saved once it is fixed: a daemon that was killed goes on with it, and a
version has no second chance, nor a second risk.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import ActiveDeploy
from atlas_supervisor.deploy.machine import StepOutcome
from atlas_supervisor.deploy.probe_streak import ProbeStreak
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.model.deploy import GuardDetail
from atlas_supervisor.model.judgement import Judgement
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.comparison import Comparison
from atlas_supervisor.requests.old_record import OldRecord, RecordEvidence, Tally
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch, steady_time
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

_HOUR_SECONDS, _DAY_SECONDS = 3600, 86400
_COMPARED_AFTER_SECONDS = 10.0
"""By then the old version's clients from before the switch have left it."""
_SAVE_SECONDS = 5.0


class Guard:
    """Watches the version of one deploy."""

    def __init__(
        self,
        deploy: ActiveDeploy,
        since: Stopwatch,
        *,
        settings: Settings,
        slots: Slots,
        switch: Switch,
        prober: HttpProber,
        requests: RequestCollector,
    ) -> None:
        """`since` is the moment of the switch."""
        self._deploy = deploy
        self._deploy_id = deploy.record.deploy_id
        self._since = since
        self._settings = settings
        self._slots = slots
        self._switch = switch
        self._requests = requests
        self._new, self._old = slots.active.instance, slots.staging.instance
        self._streak = ProbeStreak(settings, prober, slots.active)
        self._holdback = 0.0
        self._evidence: RecordEvidence | None = None
        self._comparison: Comparison | None = None
        self._compared: dict[str, Any] | None = None
        """What the comparison goes on with: that of the ramp, or of the last daemon."""
        self._saved = Stopwatch()

    async def watch(self, seconds: float) -> StepOutcome:
        """Watch until so long after the switch, or until there is a reason to revert."""
        if share := self._settings.guard_holdback:
            await self._hold_back(share)
        else:  # the last daemon may have had other settings
            await self._switch.close_split()
        while (left := seconds - self._since.seconds) > 0:
            await anyio.sleep(min(self._streak.interval_seconds, left))
            if self._holdback and not self._slots.staging.can_serve:
                await self._end_holdback("the old version is not alive any more")
            failed = await self._probe() or await self._look()
            if failed is not None:
                return self._failed(*failed)
        message = f"{self._streak.probes} probes in {seconds:g} s, no reason to revert"
        seen = self._deploy.record.guard or GuardDetail(probes=self._streak.probes)
        if seen.requests is not None:
            message = f"{message}; {seen.message}"
        return StepOutcome.passed(message, seen.model_copy(update={"guarded_seconds": seconds}))

    def _failed(self, why: str, detail: GuardDetail) -> StepOutcome:
        """Return the outcome of a version that is to be reverted: the only place that does."""
        output = self._slots.active.log.last_lines()
        return StepOutcome.failed(why, detail.model_copy(update={"output": output}))

    async def _probe(self) -> tuple[str, GuardDetail] | None:
        """Probe once; return the failure if there were too many in a row."""
        failed = await self._streak.probe()
        if failed is None:
            return None
        why, result = failed
        seen = self._deploy.record.guard or GuardDetail()
        update = {"probes": self._streak.probes, "failed_probe": result}
        return why, seen.model_copy(update=update)

    # What requests say.

    async def _look(self) -> tuple[str, GuardDetail] | None:
        """Look at the requests so far; return the failure if they show that it is worse."""
        await self._requests.poll()
        totals = self._requests.totals(self._new.name) if self._new else None
        if totals is None or not (totals.counts.begun or self._evidence):
            return None  # nothing is counted, or nothing has come yet
        try:
            return await self._judge(totals)
        except StoreError as error:  # tried again at the next look
            log.warning("guard_evidence_not_saved", why=str(error))
        except Exception:  # a bug of ours is no fault of the version
            log.exception("guard_evidence_failed")
        return None

    async def _judge(self, totals: RequestTotals) -> tuple[str, GuardDetail] | None:
        evidence = self._evidence or await self._begin(totals)
        tally = Tally.of(totals, evidence.record.slow_ms)
        started = evidence.add_start(tally, self._since.seconds)
        compared = self._compare()
        if started or (self._comparison and self._saved.seconds >= _SAVE_SECONDS):
            await self._save(evidence)
        detail = self._detail(evidence, tally, compared)
        self._deploy.record = self._deploy.record.model_copy(update={"guard": detail})
        self._deploy.note(detail)
        if evidence.odds(tally) >= evidence.needed:
            return detail.message, detail
        if evidence.slow_odds(tally) >= evidence.needed_slow:
            return evidence.slower_in_words(tally), detail
        if compared is not None and compared.verdict is Verdict.FAIL:
            return f"worse than the version beside it: {compared.why}", detail
        return None

    async def _begin(self, totals: RequestTotals) -> RecordEvidence:
        """Return the evidence of the last daemon, or begin: with the switch, and the old record."""
        alpha, margin = self._settings.alpha_of_a_test, self._settings.guard_margin
        saved = await self._requests.store.evidence(self._deploy_id)
        if saved is not None:
            self._compared = saved.pop("compared")
            self._evidence = RecordEvidence.restored(saved)
            return self._evidence
        if ramp := self._deploy.record.ramp:
            self._compared = ramp.saved.get("comparison")
        switched = steady_time() - self._since.seconds
        version = self._old.release.version if self._old else ""
        hours = [
            await self._requests.record(version, until - _HOUR_SECONDS, until)
            for until in (switched, switched - _DAY_SECONDS)
        ]
        record = OldRecord.of(hours, alpha=alpha, margin=margin)
        evidence = RecordEvidence(record, alpha, [self._start(totals)])
        await self._save(evidence)
        self._evidence = evidence
        return evidence

    def _start(self, totals: RequestTotals) -> Tally:
        """Return the counts of before the switch: of testers' requests, or of a share."""
        since = int(time.monotonic() - self._since.seconds)
        seconds = self._requests.seconds(self._new.name, since) if self._new else []
        before = totals.counts - RequestCounts.sum(each.counts for each in seconds)
        return Tally.of(RequestTotals(before), None)

    async def _save(self, evidence: RecordEvidence) -> None:
        comparison = self._comparison
        self._saved = Stopwatch()
        await self._requests.store.save_evidence(
            self._deploy_id,
            {
                **evidence.saved(),
                "compared": comparison.saved() if comparison else self._compared,
            },
        )

    def _detail(
        self, evidence: RecordEvidence, tally: Tally, compared: Judgement | None
    ) -> GuardDetail:
        record, (requests, failed) = evidence.record, evidence.since_switch(tally)
        more: dict[str, Any] = {}
        if record.slow_ms is not None and len(evidence.starts) > 1:
            more = {
                "slow": tally.slow - evidence.starts[1].slow,
                "slow_ms": round(record.slow_ms),
                "allowed_slow": round(record.allowed_slow, 4),
                "slow_odds": round(evidence.slow_odds(tally), 2),
            }
        if self._holdback:
            more["holdback"] = self._holdback
        if compared is not None:
            more["comparison"] = compared
        message = evidence.in_words(tally, self._since.seconds)
        if compared is not None:
            message += f"; beside the old version: {compared.why}"
        return GuardDetail(
            message=message,
            probes=self._streak.probes,
            seconds=round(self._since.seconds, 1),
            requests=requests,
            failed=failed,
            error_rate=round(failed / requests, 6) if requests else None,
            old_requests=record.requests,
            old_failed=record.failed,
            old_error_rate=None if record.error_rate is None else round(record.error_rate, 6),
            allowed_error_rate=round(record.allowed, 6),
            odds=round(evidence.odds(tally), 2),
            odds_needed=round(evidence.needed, 2),
            **more,
        )

    # The holdback.

    async def _hold_back(self, share: float) -> None:
        """Leave a share of new connections with the old version, if it is there to take them."""
        why = await self._switch.hold_back(self._deploy_id, share)
        if why is None:
            self._holdback = share
        else:
            log.warning("no_holdback", why=why)

    async def _end_holdback(self, why: str) -> None:
        log.warning("holdback_ended", why=why)
        self._holdback, self._comparison = 0.0, None
        await self._switch.close_split()

    def _compare(self) -> Judgement | None:
        """Compare both versions' requests; None without a holdback."""
        if not self._holdback or self._new is None or self._old is None:
            return None
        if self._comparison is None:
            if self._since.seconds < _COMPARED_AFTER_SECONDS:
                return None
            self._comparison = Comparison(
                self._requests, new=self._new.name, old=self._old.name, saved=self._compared
            )
            self._comparison.set_weight(1 - self._holdback)
        return self._comparison.look()
