"""Renders the current canaries, and the effect of an operator's action."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.render_findings import indented
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe, spaced
from atlas_supervisor.cli.units import MISSING, age, amount, percent
from atlas_supervisor.cli.words import Record, mapping, objects

NO_FEATURES = "no features; CANARY_FEATURES in the env file lists them"
VERDICTS = {
    "pass": ("pass: promote", "green"),
    "fail": ("fail: roll back", "red"),
    "inconclusive": ("inconclusive: hold", "yellow"),
}

_OFF = "off: CANARY_ENABLED=false in the env file, so every call is stable"
_WAY_OUT = "Fix the cause, then turn them on again with `atlasctl canary reset`."
_STAGE_STYLES = {"ramping": "cyan", "paused": "yellow", "promoted": "green", "rolled_back": "red"}
_ON_A_STEP = ("ramping", "paused")


def canaries(screen: Screen, data: Record) -> RenderableType:
    """Return whether canaries are on, and each feature."""
    parts: list[RenderableType] = [*_whole(screen, data)]
    features = objects(data.get("features"))
    for each in features:
        parts += [Text(), *_feature(screen, each)]
    return Group(*parts) if features else Group(*parts, safe(NO_FEATURES, "dim"))


def changed(screen: Screen, feature: Record) -> RenderableType:
    """Return a feature after an operator's action on it."""
    grid = Table.grid(padding=(0, 1))
    share, stage = _meant(feature), str(feature.get("stage"))
    name = feature.get("feature") or MISSING
    grid.add_row(screen.sign(OK), safe(f"{name}: {_of_calls(share)} ({_stage(feature)})", "bold"))
    if stage in _ON_A_STEP and feature.get("waits_for"):
        grid.add_row("", safe(f"waits for {feature['waits_for']}", "dim"))
    if not _is_in_force(feature):
        grid.add_row("", safe("Canaries are off, so for now every call is stable.", "yellow"))
        grid.add_row("", safe("`atlasctl canary status` shows why.", "dim"))
    return grid


def restored(screen: Screen, data: Record, *, feature: str | None) -> RenderableType:
    """Return the effect of a reset of one feature, or without one of the fallback."""
    if feature is None:
        done = "the fallback is reset; earlier calls no longer count, and the evidence starts again"
    else:
        found = [each for each in objects(data.get("features")) if each.get("feature") == feature]
        share = f": {_of_calls(_meant(found[0]))}" if found else ""
        done = f"{feature} is reset to the settings{share}; its evidence starts again"
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(OK), safe(done, "bold"))
    return Group(grid, *_whole(screen, data))


def own_words(feature: object, sentence: object) -> str:
    """Return the daemon's sentence without the feature's name, which is shown above it."""
    return str(sentence).removeprefix(f"{feature}: ")


def warnings(screen: Screen, feature: Record) -> Iterator[RenderableType]:
    """Yield reasons not to trust a feature's numbers, unless its verdict has them already."""
    found = feature.get("warnings")
    reason = str(mapping(feature.get("judgement")).get("reason"))
    for each in found if isinstance(found, list) else ():
        if str(each) not in reason:
            yield indented(note(screen, each, None), 2)


def facts(rows: dict[str, Text]) -> RenderableType:
    """Return named facts of a feature, indented below its name."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, value)
    return indented(grid, 2)


def _whole(screen: Screen, data: Record) -> Iterator[RenderableType]:
    """Yield whether canaries are on; after a fallback, why not and what to do."""
    if data.get("canary_disabled_fallback"):
        yield from _fallback(screen, mapping(data.get("fallback")))
    elif data.get("enabled"):
        yield Text.assemble("canaries are ", ("on", "green"))
    else:
        yield Text.assemble("canaries are ", safe(_OFF, "yellow"))
    if data.get("dropped_events"):
        lost = f"{amount(data['dropped_events'])} events were lost and are not counted"
        yield note(screen, lost, None)
    if data.get("late_calls"):
        late = f"{amount(data['late_calls'])} outcomes came too late to be evidence"
        yield note(screen, late, None)
    if data.get("overflown_calls"):
        beyond = f"{amount(data['overflown_calls'])} calls are of keys beyond the limit of a ramp"
        yield note(screen, f"{beyond}: counted, but not evidence", None)


def _fallback(screen: Screen, fallback: Record) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    since = f" {age(fallback['since_ts'])} ago" if fallback.get("since_ts") else ""
    head = f"canaries are off: turned off by the fallback{since}"
    grid.add_row(screen.sign(BAD), safe(head, "bold red"))
    if fallback.get("reason"):
        grid.add_row("", safe(fallback["reason"], "red"))
    arms = Table.grid(padding=(0, 2))
    for arm in ("canary", "stable"):
        counts = mapping(fallback.get(arm))
        if counts:
            failed = f"{amount(counts.get('errors'))} of {amount(counts.get('calls'))} calls failed"
            arms.add_row(arm, safe(percent(counts.get("error_rate"))), safe(failed))
    if arms.row_count:
        grid.add_row("", arms)
    grid.add_row("", safe(_WAY_OUT, "dim"))
    yield grid


def _feature(screen: Screen, feature: Record) -> Iterator[RenderableType]:
    stage = str(feature.get("stage"))
    since = f"for {age(feature.get('since_ts'))}" if feature.get("since_ts") else ""
    yield spaced(
        safe(feature.get("feature") or MISSING, "bold"),
        safe(_share(feature)),
        safe(_stage(feature), _STAGE_STYLES.get(stage, "")),
        safe(since, "dim"),
    )
    yield facts(dict(_rows(feature)))
    yield from warnings(screen, feature)


def _rows(feature: Record) -> Iterator[tuple[str, Text]]:
    """Yield the facts of a feature, each with its name."""
    judgement = mapping(feature.get("judgement"))
    name, reason = feature.get("feature"), judgement.get("reason")
    if feature.get("reason") and feature["reason"] != reason:
        yield "why", safe(own_words(name, feature["reason"]))
    if feature.get("stage") in _ON_A_STEP and (steps := _steps(feature)):
        yield "ramp", safe(steps)
    if reason:
        words, style = VERDICTS.get(str(judgement.get("verdict")), ("", ""))
        yield "verdict", safe(words or judgement.get("verdict") or MISSING, style)
        yield "evidence", safe(own_words(name, reason))
    if waits := _waits(feature, judgement):
        yield "waits for", safe(waits)
    if feature.get("pending_calls"):
        yield "pending", safe(f"{amount(feature['pending_calls'])} calls, not evidence yet", "dim")


def _waits(feature: Record, judgement: Record) -> str:
    """Return the condition waited for, and about how many calls it still needs if not named yet."""
    waits, needs = feature.get("waits_for"), judgement.get("needs")
    sentences = f"{judgement.get('reason')} {waits}"
    parts = [str(waits)] if waits else []
    if needs is not None and not any(
        f"about {n} more" in sentences for n in (needs, amount(needs))
    ):
        parts.append(f"about {amount(needs)} more canary calls to a verdict")
    return "; ".join(parts)


def _share(feature: Record) -> str:
    if not _is_in_force(feature):
        return f"no calls ({percent(_meant(feature))} when on)"
    return _some(feature.get("share"))


def _is_in_force(feature: Record) -> bool:
    """Return whether the feature has the share of its stage; not while canaries are off."""
    return bool(feature.get("share")) or not _meant(feature)


def _meant(feature: Record) -> object:
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


def _of_calls(share: object) -> str:
    return f"{_some(share)} go to the canary"


def _some(share: object) -> str:
    """Return a share of calls in words."""
    if share in (0, 1):
        return "all calls" if share else "no calls"
    return f"{percent(share)} of calls"


def _stage(feature: Record) -> str:
    """Return the stage in words, with the step of a ramp, counted from 1."""
    words = str(feature.get("stage") or "unknown").replace("_", " ")
    steps, step = feature.get("steps"), feature.get("step")
    if isinstance(step, int) and isinstance(steps, list):
        return f"{words}, step {step + 1} of {len(steps)}"
    return words


def _steps(feature: Record) -> str:
    """Return the shares of the ramp, the current one in brackets."""
    steps, step = feature.get("steps"), feature.get("step")
    shares = [percent(each) for each in steps] if isinstance(steps, list) else []
    return "  ".join(f"[{each}]" if n == step else each for n, each in enumerate(shares))
