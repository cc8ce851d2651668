"""Words for feature canaries, for every client: what stage, what share, what it waits for."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_supervisor.cli.units import MISSING, amount, change, percent
from atlas_supervisor.cli.words import Record, mapping

NO_FEATURES = "no features; CANARY_FEATURES in the env file lists them"
OFF = "off: CANARY_ENABLED=false in the env file, so every call is stable"
WAY_OUT = "Fix the cause, then turn them on again with `atlasctl canary reset`."
VERDICTS = {
    "pass": ("pass: promote", "green"),
    "fail": ("fail: roll back", "red"),
    "inconclusive": ("inconclusive: hold", "yellow"),
}
"""What a verdict means, and its colour."""
ON_A_STEP = ("ramping", "paused")
ARMS = ("canary", "stable")


def own_words(feature: object, sentence: object) -> str:
    """Return the daemon's sentence without the feature's name, which is shown above it."""
    return str(sentence).removeprefix(f"{feature}: ")


def waits(feature: Record, judgement: Record) -> str:
    """Return the condition waited for, and about how many calls it still needs if not named yet."""
    condition, needs = feature.get("waits_for"), judgement.get("needs")
    sentences = f"{judgement.get('reason')} {condition}"
    parts = [str(condition)] if condition else []
    if needs is not None and not any(
        f"about {n} more" in sentences for n in (needs, amount(needs))
    ):
        parts.append(f"about {amount(needs)} more canary calls to a verdict")
    return "; ".join(parts)


def share_in_words(feature: Record) -> str:
    """Return the share of calls that goes to a feature's canary now."""
    if not is_in_force(feature):
        return f"no calls ({percent(meant_share(feature))} when on)"
    return _some(feature.get("share"))


def is_in_force(feature: Record) -> bool:
    """Return whether the feature has the share of its stage; not while canaries are off."""
    return bool(feature.get("share")) or not meant_share(feature)


def meant_share(feature: Record) -> object:
    """Return the share of the feature's stage."""
    stage, share = feature.get("stage"), feature.get("share")
    if share or stage == "rolled_back":
        return share
    if stage == "steady":
        return feature.get("percentage")
    if stage == "promoted":
        return 1
    steps, step = feature.get("steps"), feature.get("step")
    if isinstance(steps, list) and isinstance(step, int) and 0 <= step < len(steps):
        return steps[step]
    return share


def of_calls(share: object) -> str:
    """Return where a share of calls goes."""
    return f"{_some(share)} go to the canary"


def _some(share: object) -> str:
    """Return a share of calls in words."""
    if share in (0, 1):
        return "all calls" if share else "no calls"
    return f"{percent(share)} of calls"


def stage_in_words(feature: Record) -> str:
    """Return the stage in words, with the step of a ramp, counted from 1."""
    words = str(feature.get("stage") or "unknown").replace("_", " ")
    if feature.get("killed"):
        words = f"killed in the whole fleet; {words}"
    steps, step = feature.get("steps"), feature.get("step")
    if isinstance(step, int) and isinstance(steps, list):
        return f"{words}, step {step + 1} of {len(steps)}"
    return words


def steps_in_words(feature: Record) -> str:
    """Return the shares of the ramp, the current one in brackets."""
    steps, step = feature.get("steps"), feature.get("step")
    shares = [percent(each) for each in steps] if isinstance(steps, list) else []
    return "  ".join(f"[{each}]" if n == step else each for n, each in enumerate(shares))


def rate_in_words(arm: Record) -> str:
    """Return an error rate with its interval; none without calls."""
    if not arm.get("calls"):
        return MISSING
    interval = mapping(arm.get("error_rate_interval"))
    if not interval:
        return percent(arm.get("error_rate"))
    span = f"{percent(interval.get('low'))} to {percent(interval.get('high'))}"
    return f"{percent(arm.get('error_rate'))} ({span})"


def difference_in_words(interval: Record) -> str:
    """Return how many more or fewer of its calls the canary fails, with the interval."""
    if not interval:
        return "none: the arms can't be compared"
    estimate = change(interval.get("estimate"))
    if estimate[0] not in "+-" or estimate == MISSING:
        return f"{estimate} ({ends_in_words(interval)})"
    way = "more" if estimate[0] == "+" else "fewer"
    return f"{estimate[1:]} {way} ({ends_in_words(interval)}) of the canary's calls fail"


def ends_in_words(interval: Record) -> str:
    """Return both ends of a difference's interval."""
    return f"{change(interval.get('low'))} to {change(interval.get('high'))}"


def unreported(each: Record) -> Iterator[str]:
    """Yield the number of decisions without an outcome, for each arm that has some."""
    for name in ARMS:
        arm = mapping(each.get(name))
        if arm.get("unreported"):
            yield f"{amount(arm['unreported'])} of {amount(arm.get('assigned'))} {name} decisions"
