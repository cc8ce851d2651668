"""What the API answers at one moment to one audience: all that a section may use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any

Record = dict[str, Any]


class Audience(Enum):
    """Who looks at the page; each sees one rendering of it."""

    READER = "reader"
    """Anyone on this machine: no logs, no audit trail, no word of a worker."""
    VIEWER = "viewer"
    """With the view token: sees everything, and has no buttons."""
    OPERATOR = "operator"

    @property
    def may_change(self) -> bool:
        """Whether the page has buttons."""
        return self is Audience.OPERATOR

    @property
    def sees_all(self) -> bool:
        """Whether logs and audit trail may be read."""
        return self is not Audience.READER


class Answers:
    """The JSON of each request (`/deploy/history?limit=20`), and when it was asked."""

    def __init__(self, found: Mapping[str, Record], *, at: datetime, audience: Audience) -> None:
        self._found = found
        self.at = at
        self.audience = audience

    def __getitem__(self, request: str) -> Record:
        """Return the JSON object that a request was answered with; empty if it was refused."""
        answer = self._found.get(request, {})
        return {} if "error" in answer else answer

    def error(self, request: str) -> Record | None:
        """Return the `error` of a refused request; None if it was answered."""
        return self._found.get(request, {}).get("error")
