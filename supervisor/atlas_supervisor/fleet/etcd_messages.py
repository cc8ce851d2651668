"""What etcd's JSON gateway sends and takes, as far as the fleet uses it.

Keys and values are base64, 64-bit numbers are strings, and a field that has its type's zero is left
out. An error is an answer with another HTTP status; in a stream, which has begun with 200, it is a
line of its own. Both generations of the gateway (up to etcd 3.5, and from 3.6 on) are read.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from atlas_supervisor.fleet.engine import (
    Delete,
    EngineError,
    EngineUnavailableError,
    GarbledAnswerError,
    Put,
    RefusedByEngineError,
    Unchanged,
)
from atlas_supervisor.system.text import escaped

_EXCERPT = 80
"""Characters of an answer that can't be read that go into its error."""

_NAMED_CLIENT = b"CommonName of client"
"""In the gateway's answer to it, which is no JSON."""
_NAMED_CLIENT_MESSAGE = (
    "etcd's users are on, and its gateway refuses our certificate because it has a CommonName; "
    "FLEET_ETCD_CERT needs one that has a SAN only"
)

# Codes of gRPC.
INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 3, 5, 7
FAILED_PRECONDITION, UNAUTHENTICATED = 9, 16
_NOT_NOW = frozenset({1, 2, 4, 8, 13, 14})
"""Canceled, unknown, too late, exhausted, internal, unavailable: may work later, or elsewhere."""


class Message(BaseModel):
    """A part of an answer. What a newer etcd adds is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", val_json_bytes="base64")


class Header(Message):
    """Of every answer: from which cluster, and as of which revision of its store."""

    cluster_id: int
    revision: int = Field(default=0, ge=0)
    raft_term: int = Field(default=0, ge=0)


class KeyValue(Message):
    """A key as it was last written. `version` counts its writes since it was made."""

    key: bytes
    value: bytes = b""
    mod_revision: int = Field(default=0, ge=0)
    version: int = Field(default=0, ge=0)


class Range(Message):
    """The answer to a range; `count` is of all keys in it, however many were sent."""

    kvs: tuple[KeyValue, ...] = ()
    count: int = Field(default=0, ge=0)


class Headed(Message):
    """Any answer, of which no more is wanted than that it is one."""

    header: Header


class HeadedRange(Range, Headed):
    """The answer to a range that is no part of a transaction."""


class Step(Message):
    """What one operation of a transaction answered."""

    response_range: Range | None = None
    response_put: dict[str, JsonValue] | None = None
    response_delete_range: dict[str, JsonValue] | None = None

    @property
    def is_write(self) -> bool:
        """Whether it wrote, or removed, a key."""
        return self.response_put is not None or self.response_delete_range is not None


class Transaction(Headed):
    """The answer to a transaction."""

    succeeded: bool = False
    responses: tuple[Step, ...] = ()


class Lease(Headed):
    """The answer to a grant, or to a renewal: without a time left, the lease is gone."""

    id: int = Field(default=0, alias="ID")
    ttl: int = Field(default=0, alias="TTL")


class Event(Message):
    """A change in a watch; the key of a removed one has no value."""

    type: str = "PUT"
    kv: KeyValue


class Watched(Headed):
    """A message of a watch. One without events says how far the watch has come."""

    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: tuple[Event, ...] = ()


class Token(Message):
    """The answer to a user's name and password."""

    token: str


class Status(Headed):
    """The answer of one member about itself."""

    version: str
    leader: int = 0


class Fault(Message):
    """Why a request was not done."""

    code: int = Field(validation_alias=AliasChoices("code", "grpc_code"))
    message: str


M = TypeVar("M", bound=Message)


class _Line(Message, Generic[M]):
    result: M | None = None
    error: Fault | None = None


@cache
def _line_of(kind: type[M]) -> type[_Line[M]]:
    """Return the model of a line, which pydantic takes milliseconds to make, and does not keep."""
    return _Line[kind]  # type: ignore[valid-type]


def parsed(kind: type[M], content: bytes) -> M:
    """Return an answer of this kind. Raises GarbledAnswerError."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise garbled(content, error) from None


def parsed_line(kind: type[M], content: bytes) -> M:
    """Return a message of a stream. Raises EngineError: what the line says, or that it is none."""
    line: _Line[M] = parsed(_line_of(kind), content)
    if line.error is not None:
        raise refusal(line.error)
    if line.result is None:
        raise garbled(content, None)
    return line.result


def parsed_fault(status: int, content: bytes) -> Fault:
    """Return the reason of an answer with an error's HTTP status. Raises GarbledAnswerError."""
    if _NAMED_CLIENT in content:
        return Fault(code=PERMISSION_DENIED, message=_NAMED_CLIENT_MESSAGE)
    try:
        return Fault.model_validate_json(content)
    except ValidationError as error:
        raise garbled(b"HTTP %d: %s" % (status, content), error) from None


def refusal(fault: Fault) -> EngineError:
    """Return the error that stands for a fault."""
    if fault.code in _NOT_NOW:
        return EngineUnavailableError(fault.message)
    return RefusedByEngineError(fault.message, fault.code)


def garbled(content: bytes, error: ValidationError | None) -> GarbledAnswerError:
    """Return the error for an answer that can't be read."""
    excerpt = escaped(content[:_EXCERPT].decode(errors="replace"))
    why = ""
    if error is not None:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        why = f" ({where}: {fault['msg']})" if where else ""
    return GarbledAnswerError(f"its answer is not etcd's{why}: {excerpt!r}")


def encoded(key: bytes) -> str:
    """Return bytes as the gateway takes them."""
    return b64encode(key).decode()


def body(content: Mapping[str, Any]) -> bytes:
    """Return a request's body."""
    return json.dumps(content).encode()


def span(prefix: bytes) -> dict[str, str]:
    """Return the fields that ask for all keys with a prefix, which does not end in 0xff."""
    return {"key": encoded(prefix), "range_end": encoded(prefix[:-1] + bytes([prefix[-1] + 1]))}


def condition(prefix: str, unchanged: Unchanged) -> dict[str, str]:
    """Return a transaction's condition. A key that is absent has the revision 0."""
    key = encoded((prefix + unchanged.key).encode())
    revision = str(unchanged.revision)
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def write(prefix: str, wanted: Put | Delete, lease: int = 0) -> dict[str, dict[str, str]]:
    """Return a transaction's write. A key goes away with its lease; with 0 it stays."""
    key = encoded((prefix + wanted.key).encode())
    if isinstance(wanted, Put):
        return {"request_put": {"key": key, "value": encoded(wanted.value), "lease": str(lease)}}
    return {"request_delete_range": {"key": key}}
