"""Renders the comparison of canary and stable: both arms, their difference and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.canary_status import facts, warnings
from atlas_supervisor.cli.canary_words import (
    ARMS,
    NO_FEATURES,
    VERDICTS,
    difference_in_words,
    ends_in_words,
    own_words,
    rate_in_words,
    unreported,
)
from atlas_supervisor.cli.render_findings import indented
from atlas_supervisor.cli.terminal import Screen, safe, spaced
from atlas_supervisor.cli.units import MISSING, amount, change, latency, local_time, percent
from atlas_supervisor.cli.words import Record, mapping, objects

FEW = 5
"""Up to so many epochs are shown without --strata."""


def report_view(
    screen: Screen, data: Record, *, feature: str | None, everything: bool
) -> RenderableType:
    """Return the report on one feature or on all; with `everything` each of its epochs."""
    until = f"up to {local_time(data.get('until_ts'))}" if data.get("until_ts") else ""
    head = spaced(safe(f"the last {amount(data.get('hours'))} h"), safe(until, "dim"))
    parts: list[RenderableType] = [head]
    for each in objects(data.get("features")):
        if feature in (None, each.get("feature")):
            parts += [Text(), *_feature(screen, each, everything=everything)]
    return Group(*parts) if len(parts) > 1 else safe(NO_FEATURES, "dim")


def simulation_view(data: Record) -> RenderableType:
    """Return how often each ramp promotes a good canary."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("shares", "canary's keys", "good canaries promoted"):
        table.add_column(name, justify="left" if name == "shares" else "right")
    for each in objects(data.get("ramps")):
        shares = each.get("shares")
        listed = [percent(share) for share in shares] if isinstance(shares, list) else []
        table.add_row(
            safe(", ".join(listed)),
            safe(amount(each.get("canary_keys"))),
            safe(percent(each.get("promoted"))),
        )
    head = (
        f"{amount(data.get('keys'))} keys call once on each step; error rate of both arms "
        f"{percent(data.get('error_rate'))}, margin {percent(data.get('margin'))}"
    )
    return Group(safe(head), table)


def _feature(screen: Screen, each: Record, *, everything: bool) -> Iterator[RenderableType]:
    yield safe(each.get("feature") or MISSING, "bold")
    yield indented(_arms(each), 2)
    yield facts(dict(_rows(each)))
    yield from warnings(screen, each)
    strata = objects(each.get("strata"))
    if everything or 1 < len(strata) <= FEW:
        yield from _strata(strata)
    elif len(strata) > FEW:
        words = f"{len(strata)} epochs, compared separately; --strata shows them"
        yield indented(safe(words, "dim"), 2)


def _arms(each: Record) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("arm")
    table.add_column("calls", justify="right")
    table.add_column("error rate (95 %)")
    for name in ("p50", "p95", "p99"):
        table.add_column(name, justify="right")
    for name in ARMS:
        arm = mapping(each.get(name))
        times = mapping(arm.get("latency_ms"))
        table.add_row(
            name,
            amount(arm.get("calls")),
            rate_in_words(arm),
            *(latency(times.get(quantile)) for quantile in ("p50", "p95", "p99")),
        )
    return table


def _rows(each: Record) -> Iterator[tuple[str, Text]]:
    """Yield difference, verdict and reason, each with its name."""
    yield "difference", safe(difference_in_words(mapping(each.get("difference"))))
    judgement = mapping(each.get("judgement"))
    verdict = each.get("verdict") or judgement.get("verdict") or MISSING
    words, style = VERDICTS.get(str(verdict), (verdict, ""))
    yield "verdict", safe(words, style)
    if reason := each.get("reason") or judgement.get("reason"):
        yield "reason", safe(own_words(each.get("feature"), reason))
    if missing := list(unreported(each)):
        yield "unreported", safe(", ".join(missing), "dim")


def _strata(strata: Sequence[Record]) -> Iterator[RenderableType]:
    """Yield each epoch: its start, share and cause, and below it both arms."""
    cells = [
        [*(_of_calls(name, mapping(each.get(name))) for name in ARMS), _short(each)]
        for each in strata
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for each, row in zip(strata, cells, strict=True):
        head = Table.grid(padding=(0, 2))
        head.add_row(
            safe(local_time(each.get("since_ts")), "dim"),
            safe(f"{percent(each.get('share'))} of calls"),
            safe(each.get("cause") or "", "dim"),
        )
        arms = Table.grid(padding=(0, 2))
        for width in widths[:-1]:
            arms.add_column(min_width=width, no_wrap=True)
        arms.add_row(*row)
        yield Group(Text(), indented(head, 2), indented(arms, 2))


def _of_calls(name: str, arm: Record) -> str:
    if not arm.get("calls"):
        return f"{name} no calls"
    return f"{name} {percent(arm.get('error_rate'))} of {amount(arm['calls'])}"


def _short(stratum: Record) -> str:
    interval = mapping(stratum.get("difference"))
    return (
        f"{change(interval.get('estimate'))} ({ends_in_words(interval)})" if interval else MISSING
    )
