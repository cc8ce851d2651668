"""Answers of the API for the sections, made of the examples of its document."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from atlas_supervisor.api import examples
from atlas_supervisor.dashboard import page
from atlas_supervisor.dashboard.answers import Answers, Audience

AT = datetime(2026, 1, 5, 9, 31, tzinfo=UTC)
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
