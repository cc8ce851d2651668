"""The fleet's kill switch on this machine's canaries: a killed feature's share is 0.

It is a latch like the fallback, of one feature or of all. Shares, stages and steps stay as they
are, so that the end of a kill brings them back; a ramp's time on its step then begins anew. A
share that changes begins a new epoch, and evidence starts anew once calls are drawn again.
"""

from __future__ import annotations

import structlog

from atlas_supervisor import errors
from atlas_supervisor.canary.persistence import CanaryPersistence
from atlas_supervisor.canary.policy import PolicyStore
from atlas_supervisor.canary.stats.ramp import Stage, step_anew
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.canary import Kills

log = structlog.get_logger(__name__)


async def apply_kills(
    policies: PolicyStore, persistence: CanaryPersistence, kills: Kills, now: float
) -> None:
    """Publish the kill switch to workers, and audit it. Raises OSError, and nothing has changed.

    It does not wait for the database: a full disk there must not delay a kill.
    """
    if kills == policies.kills and policies.is_published:
        return
    before, changes = policies.kills, {}
    for name, feature in policies.features.items():
        was = before is not None and before.has_off(name)
        if was and not kills.has_off(name) and feature.stage in (Stage.RAMPING, Stage.PAUSED):
            why = f"the fleet's kill switch was reset by {kills.by}"
            changes[name] = step_anew(feature, now, why)
    cause = f"the fleet's kill switch, set by {kills.by}"
    await policies.apply(changes, fallback=policies.policy.fallback, kills=kills, cause=cause)
    unknown = sorted(set(kills.features) - policies.features.keys())
    detail = {"every_feature": kills.every_feature, "features": list(kills.features)}
    log.warning("fleet_kill_applied", epoch=kills.epoch, by=kills.by, unknown=unknown, **detail)
    persistence.queue_audit(
        SUPERVISOR,
        "fleet_kill",
        "applied" if kills.every_feature or kills.features else "lifted",
        None,
        epoch=kills.epoch,
        by=kills.by,
        unknown=unknown,
        **detail,
    )


def lifted(kills: Kills | None, actor: Actor) -> Kills | None:
    """Return the kill switch with nothing off: on a machine that has left its fleet."""
    if kills is None:
        return None
    return kills.model_copy(update={"every_feature": False, "features": (), "by": actor.name})


def refuse_killed(kills: Kills | None, feature: str) -> None:
    """Raise RefusedError if a feature is killed: it can't be given calls."""
    if kills is not None and kills.has_off(feature):
        raise errors.FEATURE_KILLED.error(
            name=feature, since=f"{kills.since_ts:%F %T}Z", by=kills.by
        )
