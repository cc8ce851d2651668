"""The `Idempotency-Key`: its syntax, and the fingerprint of the request."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from atlas_supervisor.api.deploy import DeployBody, DeployQuery
from atlas_supervisor.api.messages import IDEMPOTENCY_KEY, read_key
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey

ALICE = Actor(name="uid:1000", origin="unix")


def read(
    *values: str,
    method: str = "POST",
    path: str = "/deploy/bluegreen",
    actor: Actor = ALICE,
    release: str | None = "v2",
    **query: Any,
) -> IdempotencyKey | None:
    headers = CIMultiDict((IDEMPOTENCY_KEY, value) for value in values)
    request = make_mocked_request(method, path, headers=headers)
    return read_key(request, actor, DeployQuery(**query), DeployBody(release=release))


def known(*values: str, **more: Any) -> IdempotencyKey:
    key = read(*values, **more)
    assert key is not None
    return key


def test_without_the_header_there_is_no_key() -> None:
    assert read() is None


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("k", "k"),
        ('"k"', "k"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('"', '"'),
        ('"half', '"half'),
        ("!~", "!~"),
        ("x" * 255, "x" * 255),
        (f'"{"x" * 255}"', "x" * 255),
    ],
)
def test_a_key_is_visible_ascii_bare_or_quoted(given: str, value: str) -> None:
    key = known(given)
    assert (key.value, key.repeated) == (value, False)
    assert key.fingerprint == known("another").fingerprint


@pytest.mark.parametrize(
    "given", ["", '""', "two words", '"two words"', "tab\there", "caf\u00e9", "x" * 256, "\x7f"]
)
def test_an_invalid_key_is_refused_with_what_is_expected(given: str) -> None:
    with pytest.raises(RefusedError, match="1 to 255 visible ASCII") as refused:
        read(given)
    assert (refused.value.status, refused.value.code) == (400, "invalid_header")
    assert refused.value.extra == {"field": IDEMPOTENCY_KEY}


@pytest.mark.parametrize("second", ["k1", "k2"])
def test_two_keys_are_refused(second: str) -> None:
    with pytest.raises(RefusedError, match="one key"):
        read("k1", second)


@pytest.mark.parametrize(
    "other",
    [
        {"method": "PUT"},
        {"path": "/deploy/rollback"},
        {"actor": Actor(name="uid:1001", origin="unix")},
        {"release": "v3"},
        {"release": None},
        {"dry_run": True},
    ],
)
def test_a_key_stands_for_one_request(other: dict[str, Any]) -> None:
    assert known("k", **other).fingerprint != known("k").fingerprint


def test_wait_and_explicit_defaults_do_not_change_the_fingerprint() -> None:
    fingerprint = known("k").fingerprint
    assert known("k", wait=False).fingerprint == fingerprint
    assert known("k", dry_run=False).fingerprint == fingerprint
    assert known("k", path="/deploy/bluegreen?wait=false").fingerprint == fingerprint
