"""What a worker's own body tells, and that no body does harm."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.worker_text import quoted
from atlas_supervisor.probes.health_probe import (
    BODY_LIMIT,
    MESSAGE_LIMIT,
    REPORTED,
    complaint,
    reported_checks,
)
from atlas_supervisor.probes.http_client import HttpResponse

FAIL, SKIPPED = CheckStatus.FAIL, CheckStatus.SKIPPED
DEEP = b'{"checks": {"memory": ' + b"[" * 30_000
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
)
CHECK_OF_SORTS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["pass", "warn", "fail", "skipped", "PASS", ""]) | ANY_JSON,
        "value": ANY_JSON,
        "unit": ANY_JSON,
        "message": ANY_JSON,
    },
)


def answer(body: bytes | dict[str, Any], *, cut: bool = False) -> HttpResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpResponse(200, {}, data, cut)


def one(name: str, check: Any) -> Check:
    return reported_checks(answer({"checks": {name: check}}))[name]


def harmless(checks: dict[str, Check]) -> None:
    assert list(checks) == list(REPORTED)
    for check in checks.values():
        assert check.value is None or math.isfinite(check.value)
        assert len(check.message) <= MESSAGE_LIMIT + 2
        assert check.message.isprintable() or not check.message
        assert len(check.unit or "") <= 8
        json.loads(check.model_dump_json())


def test_a_check_is_reported_as_the_worker_reports_it() -> None:
    reported = {"status": "warn", "value": 11.5, "unit": "s", "message": "no turn for 11 s"}
    assert one("scheduler", reported) == Check(
        status=CheckStatus.WARN, value=11.5, unit="s", message=quoted("no turn for 11 s")
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"<html>fine</html>",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"17",
        b'{"status": "ok"}',
        b'{"checks": null}',
        b'{"checks": [{"status": "fail"}]}',
        b'{"checks": {"scheduler": [{"status": "fail"}]}}',
        b'{"checks": {"memory": ' + b"9" * 5000 + b"}}",
        DEEP,
    ],
)
def test_a_foreign_servers_answer_skips_every_worker_check(body: bytes) -> None:
    assert {check.status for check in reported_checks(answer(body)).values()} == {SKIPPED}
    assert complaint(answer(body)) is None


def test_a_body_that_goes_on_beyond_the_limit_is_not_read() -> None:
    begun = b'{"checks": {"memory": {"status": "fail"}}}'.ljust(BODY_LIMIT)
    assert reported_checks(answer(begun, cut=True))["memory"].status is SKIPPED


def test_a_body_of_the_full_size_is_read() -> None:
    full = b'{"checks": {"memory": {"status": "fail"}}}'.ljust(BODY_LIMIT)
    assert reported_checks(answer(full))["memory"].status is FAIL


@pytest.mark.parametrize("status", [None, True, 1, "", "ok", "FAIL", ["fail"], {"fail": 1}])
def test_a_check_with_no_word_of_the_four_is_skipped(status: Any) -> None:
    found = one("memory", {"status": status, "message": "well"})
    assert found.status is SKIPPED
    assert "no readable memory" in found.message


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"7"', "[1]"])
def test_a_value_that_is_no_number_is_dropped_and_the_rest_is_kept(value: str) -> None:
    body = f'{{"checks": {{"memory": {{"status": "fail", "value": {value}}}}}}}'.encode()
    found = reported_checks(answer(body))["memory"]
    assert (found.status, found.value) == (FAIL, None)


def test_an_integer_that_no_float_holds_is_none() -> None:
    assert one("memory", {"status": "pass", "value": 10**400}).value is None


@pytest.mark.parametrize("evil", ["\x1b[2J", "\u202e", "\x00", "\ud800", "\x9b2J", "a\r\nb"])
def test_no_control_character_comes_through(evil: str) -> None:
    found = one("memory", {"status": "fail", "message": f"a{evil}b", "unit": evil})
    assert found.message
    assert found.message.isprintable()
    assert found.unit is None or found.unit.isprintable()
    assert found.model_dump_json()


def test_a_long_message_is_cut() -> None:
    found = one("memory", {"status": "fail", "message": "long " * 10_000})
    assert len(found.message) == MESSAGE_LIMIT + 2
    assert found.message.endswith("…⟧")


def test_checks_of_other_names_are_not_read() -> None:
    body = answer({"checks": {"port_active": {"status": "pass"}, "weather": {"status": "fail"}}})
    assert list(reported_checks(body)) == list(REPORTED)
    assert complaint(body) is None


@pytest.mark.parametrize("name", ["scheduler", "memory", "db_integrity"])
def test_a_failed_gate_check_is_a_complaint(name: str) -> None:
    reported = {"status": "fail", "message": "the file is gone"}
    body = {"checks": {name: reported, "llm_latency": {"status": "pass"}}}
    assert complaint(answer(body)) == f"{name} failed: ⟦the file is gone⟧"


@pytest.mark.parametrize("status", ["warn", "pass", "skipped"])
def test_nothing_less_than_a_failure_is_a_complaint(status: str) -> None:
    assert complaint(answer({"checks": {"memory": {"status": status}}})) is None


def test_a_language_model_that_is_down_is_no_complaint_about_the_release() -> None:
    assert complaint(answer({"checks": {"llm_latency": {"status": "fail"}}})) is None


def test_every_failed_check_is_named() -> None:
    body = {"checks": {name: {"status": "fail"} for name in REPORTED}}
    found = complaint(answer(body)) or ""
    assert [part.split()[0] for part in found.split("; ")] == [
        "scheduler",
        "memory",
        "db_integrity",
    ]


@given(st.binary(max_size=300))
@example(b'{"checks": {"memory": {"status": "fail", "message": "\\ud800\\u001b"}}}')
def test_no_bytes_do_harm(body: bytes) -> None:
    harmless(reported_checks(answer(body)))
    complaint(answer(body))


@given(st.dictionaries(st.sampled_from(REPORTED), CHECK_OF_SORTS | ANY_JSON))
def test_no_checks_of_any_shape_do_harm(checks: dict[str, Any]) -> None:
    body = answer({"checks": checks})
    harmless(reported_checks(body))
    complaint(body)
