"""Renders the current canaries, and the effect of an operator's action."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.canary_words import (
    NO_FEATURES,
    OFF,
    ON_A_STEP,
    VERDICTS,
    WAY_OUT,
    is_in_force,
    meant_share,
    of_calls,
    own_words,
    share_in_words,
    stage_in_words,
    steps_in_words,
    waits,
)
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.render_findings import indented
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe, spaced
from atlas_supervisor.cli.units import MISSING, age, amount, percent
from atlas_supervisor.cli.words import Record, mapping, objects

_STAGE_STYLES = {"ramping": "cyan", "paused": "yellow", "promoted": "green", "rolled_back": "red"}


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
    share, stage = meant_share(feature), str(feature.get("stage"))
    name = feature.get("feature") or MISSING
    grid.add_row(
        screen.sign(OK), safe(f"{name}: {of_calls(share)} ({stage_in_words(feature)})", "bold")
    )
    if stage in ON_A_STEP and feature.get("waits_for"):
        grid.add_row("", safe(f"waits for {feature['waits_for']}", "dim"))
    if feature.get("shortage") and str(feature["shortage"]) not in str(feature.get("waits_for")):
        grid.add_row("", safe(f"can't be promoted by evidence: {feature['shortage']}", "yellow"))
    if not is_in_force(feature):
        grid.add_row("", safe("Canaries are off, so for now every call is stable.", "yellow"))
        grid.add_row("", safe("`atlasctl canary status` shows why.", "dim"))
    return grid


def restored(screen: Screen, data: Record, *, feature: str | None) -> RenderableType:
    """Return the effect of a reset of one feature, or without one of the fallback."""
    if feature is None:
        done = "the fallback is reset; earlier calls no longer count, and the evidence starts again"
    else:
        found = [each for each in objects(data.get("features")) if each.get("feature") == feature]
        share = f": {of_calls(meant_share(found[0]))}" if found else ""
        done = f"{feature} is reset to the settings{share}; its evidence starts again"
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(OK), safe(done, "bold"))
    return Group(grid, *_whole(screen, data))


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
        yield Text.assemble("canaries are ", safe(OFF, "yellow"))
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
    grid.add_row("", safe(WAY_OUT, "dim"))
    yield grid


def _feature(screen: Screen, feature: Record) -> Iterator[RenderableType]:
    stage = "rolled_back" if feature.get("killed") else str(feature.get("stage"))
    since = f"for {age(feature.get('since_ts'))}" if feature.get("since_ts") else ""
    yield spaced(
        safe(feature.get("feature") or MISSING, "bold"),
        safe(share_in_words(feature)),
        safe(stage_in_words(feature), _STAGE_STYLES.get(stage, "")),
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
    if feature.get("stage") in ON_A_STEP and (steps := steps_in_words(feature)):
        yield "ramp", safe(steps)
    if reason:
        words, style = VERDICTS.get(str(judgement.get("verdict")), ("", ""))
        yield "verdict", safe(words or judgement.get("verdict") or MISSING, style)
        yield "evidence", safe(own_words(name, reason))
    if wanted := waits(feature, judgement):
        yield "waits for", safe(wanted)
    if feature.get("pending_calls"):
        yield "pending", safe(f"{amount(feature['pending_calls'])} calls, not evidence yet", "dim")
