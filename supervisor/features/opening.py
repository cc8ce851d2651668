"""Where feature canaries begin: from what the last daemon left, and what the settings say now."""

from __future__ import annotations

import structlog

from supervisor.config import Settings
from supervisor.errors import StartRefusedError
from supervisor.features.evidence import Evidence, Moment, Observe, unobserved
from supervisor.features.holding import Holding
from supervisor.features.intake import Intake
from supervisor.features.ledger import Ledger, kept_by, newest_epoch
from supervisor.features.policy import first_features
from supervisor.features.service import FeatureCanaries
from supervisor.store.database import Database
from supervisor.store.state_keeper import StateKeeper
from worker.contract import RINGS_DIRECTORY

log = structlog.get_logger(__name__)

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
    ledger = Ledger(database, settings, newest_epoch(kept, policy))
    ledger.make_up(policy, features, kept.progress)
    try:
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        intake = Intake(folder, await database.canary_rings())
        intake.tidy()
        canaries = FeatureCanaries(
            settings=settings,
            holding=Holding(
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
