"""Decides what workers are told: from every feature's state to the policy in the state file. Pure.

A share never changes under an epoch: whatever changes it begins another one. The state file is
written first and the database follows, so what workers go by is never behind what is remembered.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping

from supervisor.canary.ramp import Feature, Rules, Stage
from supervisor.config import Settings
from supervisor.model.canary import CanaryPolicy, FallbackView, FeaturePolicy


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
