"""The words of the route table: one row says all there is to know about one request.

The router and the OpenAPI document are both built from the rows, so they can't disagree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from atlas_supervisor.api.ports import Control
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey


class Access(Enum):
    """What a request asks for; `security` decides who may."""

    READ = "read"
    SENSITIVE = "sensitive"
    CHANGE = "change"


class Nothing(BaseModel):
    """The query or body of a request that takes none."""

    model_config = ConfigDict(extra="forbid")


Q = TypeVar("Q", bound=BaseModel)
B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Request(Generic[Q, B]):
    """One admitted request, taken apart and checked."""

    control: Control
    actor: Actor
    query: Q
    body: B
    path: Mapping[str, str]
    key: IdempotencyKey | None = None
    """The request's `Idempotency-Key`, where the route takes one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of the route's header parameters that were given."""


@dataclass(frozen=True)
class Reply:
    """What a handler answers: a model as JSON, or bytes of some type."""

    payload: BaseModel | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class StreamSource(Protocol):
    """Where the parts of an answer without an end come from."""

    async def next(self) -> bytes | None:
        """Wait for the next part; None: there is no more."""

    def close(self) -> None:
        """End it, from anywhere and at any time; whoever waits for the next is told at once."""


@dataclass(frozen=True)
class StreamReply:
    """What a handler answers that goes on. Whoever gets it closes its source."""

    source: StreamSource
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResponseSpec:
    """One answer that a route can give, for the document.

    A `model` of None means that the body is not JSON but of `content_type`. That of server-sent
    events is one event.
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

    `parameters` describes what stands in braces in `path`; `headers` has the JSON schema of each
    header that is a parameter.
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
    access: Access = Access.READ
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keyed: bool = False
    """Whether it takes an `Idempotency-Key`: asked for again, it does nothing twice."""


AnyRoute = Route[Any, Any]
