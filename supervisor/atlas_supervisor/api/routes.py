"""The types of the route table: one row describes one request completely.

The router, the OpenAPI document and docs/api.md are all built from the rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from atlas_supervisor import errors
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.sessions import Rank, Session
from atlas_supervisor.errors import ErrorSpec
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey


class Access(Enum):
    """What a request needs permission for; `security` decides who has it."""

    PUBLIC = "public"
    """Nothing of the daemon: the page to sign in on."""
    READ = "read"
    SENSITIVE = "sensitive"
    CHANGE = "change"
    FORM = "form"
    """A change by a form of the dashboard: a session is enough, with the form's token."""


class Nothing(BaseModel, extra="forbid"):
    """The query or body of a request that takes none."""


Q = TypeVar("Q", bound=BaseModel)
B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Request(Generic[Q, B]):
    """One admitted request, parsed and validated."""

    control: Control
    actor: Actor
    query: Q
    body: B
    path: Mapping[str, str]
    trusted: bool = False
    """Whether the caller may read the logs, and with them what workers print."""
    rank: Rank = Rank.STRANGER
    session: Session | None = None
    """The session of the dashboard that the caller has shown."""
    reads: bool = True
    """Whether the caller may have what `Access.READ` is for; of a public route, it may not."""
    key: IdempotencyKey | None = None
    """The request's `Idempotency-Key`; None without one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The route's header parameters that the request has."""


@dataclass(frozen=True)
class Reply:
    """A handler's answer: a model as JSON, or bytes of `content_type`."""

    payload: BaseModel | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    kept: bool = False
    """Whether the bytes are kept for other answers, too: they take no memory of their own."""


class StreamSource(Protocol):
    """Yields the parts of an open-ended answer."""

    async def next(self) -> bytes | None:
        """Wait for the next part; None at the end. Raises AtlasError."""

    def close(self) -> None:
        """End the source at any time; a pending `next` returns at once."""


@dataclass(frozen=True)
class StreamReply:
    """A handler's open-ended answer. Its receiver closes the source."""

    source: StreamSource
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    ends_itself: bool = False
    """Whether the source says by itself that its session has ended."""


@dataclass(frozen=True)
class ResponseSpec:
    """One answer that a route can give.

    A `model` of None means that the body is not JSON but of `content_type`. The model of
    server-sent events describes one event.
    """

    status: int
    description: str
    model: type[BaseModel] | None
    example: BaseModel | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True)
class Route(Generic[Q, B]):
    """One row of the table.

    `parameters` describes the placeholders of `path`; `headers` has the JSON schema of each header
    that is a parameter. `errors` are those of this route alone; `errors_of` adds the common ones.
    """

    method: str
    path: str
    handler: Callable[[Request[Q, B]], Awaitable[Reply | StreamReply]]
    summary: str
    description: str
    tag: str | None
    query: type[Q]
    body: type[B]
    answers: tuple[ResponseSpec, ...]
    errors: tuple[ErrorSpec, ...] = ()
    access: Access = Access.READ
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    form: bool = False
    """Its body is what a form of the dashboard sends, not JSON."""
    heavy: bool = False
    """Takes the daemon a while: untrusted callers are answered one at a time."""
    keyed: bool = False
    """Takes an `Idempotency-Key`: a repeated request is not executed twice."""


AnyRoute = Route[Any, Any]


def errors_of(route: AnyRoute) -> tuple[ErrorSpec, ...]:
    """Return every error of a route: its own, and those of any request of its kind."""
    found = [
        *route.errors,
        errors.INVALID_QUERY,
        errors.TOKEN_REQUIRED,
        errors.TOKEN_WRONG,
        errors.FOREIGN_ORIGIN,
        errors.TOO_SLOW,
        errors.BODY_TOO_LARGE,
        errors.WRONG_HOST,
        errors.INTERNAL_ERROR,
        errors.UNAVAILABLE,
    ]
    if route.body is not Nothing:
        found += [errors.INVALID_BODY, errors.UNSUPPORTED_MEDIA_TYPE]
    if route.headers:
        found.append(errors.INVALID_HEADER)
    if route.keyed:
        found += [errors.INVALID_IDEMPOTENCY_KEY, errors.IDEMPOTENCY_KEY_REUSED]
    if route.access in {Access.SENSITIVE, Access.CHANGE, Access.FORM}:
        found.append(errors.NOT_PERMITTED)
    if route.access in {Access.CHANGE, Access.FORM}:
        found.append(errors.VIEW_ONLY)
    if route.access is Access.FORM:
        found.append(errors.FORM_EXPIRED)
    return tuple(found)
