"""Answers of the API for the sections, made of the examples of its document."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from atlas_supervisor.api import examples
from atlas_supervisor.dashboard import page
from atlas_supervisor.dashboard.answers import Answers, Audience
from atlas_supervisor.model.requests import RequestHour, TrafficSwitch, VersionMinute

AT = datetime(2026, 1, 5, 9, 31, tzinfo=UTC)
NOW = datetime(2026, 1, 5, 11, 59, 48, tzinfo=UTC)
"""The end of the hour that `hour` is of."""
_HOUR_BEGAN = datetime(2026, 1, 5, 11, 0, tzinfo=UTC)
STATUS, EARLIER = "/deploy/status", "/deploy/rollback"


def as_json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def status(**changes: Any) -> dict[str, Any]:
    return {**as_json(examples.STATUS), **changes}


def slot(index: int, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = as_json(examples.STATUS)["slots"][index]
    return {**found, **changes}


def answers(
    found: dict[str, Any] | None = None, audience: Audience = Audience.OPERATOR, **changes: Any
) -> Answers:
    """Return answers with this status; `found` are further requests."""
    given = {STATUS: status(**changes), EARLIER: as_json(examples.EARLIER), **(found or {})}
    return Answers(given, at=AT, audience=audience)


def html(name: str, given: Answers) -> str:
    return page.render_section(name, page.SECTIONS[name].view(given), given)


def minute(
    number: int, version: str, requests: int, *, failed: int = 0, seconds: float = 60
) -> VersionMinute:
    """Return a minute of the hour, by its number."""
    return VersionMinute(
        ts=_HOUR_BEGAN + timedelta(minutes=number),
        seconds=seconds,
        version=version,
        requests=requests,
        failed=failed,
        error_share=failed / requests if requests else None,
        p50_ms=8.0 if requests else None,
        p95_ms=20.0 if requests else None,
        p99_ms=30.0 if requests else None,
    )


def hour(
    minutes: Iterable[VersionMinute] = (),
    *,
    switches: Iterable[tuple[float, str]] = (),
    taken_back: Iterable[tuple[float, str]] = (),
    uncounted: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the answer of `GET /deploy/requests`; switches are minutes with versions."""
    minutes = list(minutes)
    moments = [(*each, False) for each in switches] + [(*each, True) for each in taken_back]
    return RequestHour(
        since_ts=_HOUR_BEGAN,
        until_ts=NOW,
        minutes=minutes,
        versions={each: n for n, each in enumerate(dict.fromkeys(m.version for m in minutes))},
        switches=[
            TrafficSwitch(
                ts=_HOUR_BEGAN + timedelta(minutes=number),
                deploy_id=f"d{number:g}",
                version=version,
                taken_back=back,
                recycled=False,
            )
            for number, version, back in sorted(moments)
        ],
        uncounted=list(uncounted),
    ).model_dump(mode="json")
