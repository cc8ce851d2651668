from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from atlas_worker.app.jobs import JobStore
from atlas_worker.role import InstanceRole
from tests.unit.worker.app_support import Site, running_app
from tests.unit.worker.support import until


async def test_home_names_the_instance(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get("/")
        assert status == 200
        assert body.pop("instance")
        assert body == {
            "name": "atlas-worker",
            "status": "ok",
            "version": "1.2.3",
            "slot": "green",
            "pid": os.getpid(),
            "channel": "stable",
        }


async def test_health_names_its_checks(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get("/health")
        assert status == 200
        assert body["status"] == "ok"
        assert {name: check["status"] for name, check in body["checks"].items()} == {
            "llm_latency": "skipped",
            "scheduler": "pass",
            "memory": "pass",
            "db_integrity": "pass",
        }
        for check in body["checks"].values():
            assert check.keys() == {"status", "value", "unit", "message"}
        assert body["uptime_seconds"] >= 0
        assert (body["version"], body["slot"]) == ("1.2.3", "green")


async def test_disabled_modules_are_skipped_by_health_and_not_found(tmp_path: Path) -> None:
    async with running_app(tmp_path, scheduler_enabled=False, memory_enabled=False) as site:
        status, body = await site.get("/health")
        assert status == 200
        assert {check["status"] for check in body["checks"].values()} == {"skipped"}
        for path in ("/jobs", "/memory/notes"):
            status, body = await site.get(path)
            assert status == 404
            assert body["error"]["code"] == "module_off"
    assert not (tmp_path / "worker").exists()


async def test_jobs_that_need_the_disabled_memory_are_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path, memory_enabled=False) as site:
        status, body = await site.post("/jobs", {"kind": "remember", "payload": {"text": "a"}})
        assert status == 400
        assert body["error"]["hint"] == "kind is one of checksum, wait"


async def test_a_broken_database_fails_the_health_check(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        with sqlite3.connect(tmp_path / "worker" / "memory.db") as db:
            db.execute("DROP TABLE touched")
            db.execute("DROP TABLE notes")
        db.close()
        status, body = await site.get("/health")
        assert status == 503
        assert body["status"] == "fail"
        assert body["checks"]["memory"]["status"] == "fail"
        status, body = await site.get("/memory/notes")
        assert status == 503
        assert body["error"]["code"] == "storage_unavailable"


async def test_a_locked_database_does_not_fail_the_health_check(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        db = sqlite3.connect(tmp_path / "worker" / "memory.db", isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        posted = asyncio.create_task(site.post("/memory/notes", {"text": "after the lock"}))
        # Readers do not wait behind the writer.
        assert (await site.get("/health"))[0] == 200
        assert (await site.get("/memory/notes"))[1] == {"notes": []}
        db.execute("ROLLBACK")
        db.close()
        assert (await posted)[0] == 201


@pytest.mark.parametrize("path", ["/nope", "/features/telepathy", "/jobs/x/y", "/memory/notes/x"])
async def test_unknown_paths_get_a_structured_error(tmp_path: Path, path: str) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get(path)
        assert status == 404
        assert body["error"].keys() == {"code", "message", "hint"}


async def test_a_wrong_method_gets_the_allowed_ones(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.delete("/jobs")
        assert status == 405
        assert body["error"]["hint"] == "use GET, HEAD, POST"


async def test_echo_returns_the_body_byte_for_byte(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        body = os.urandom(16 * 1024)
        assert await site.post("/echo", data=body) == (200, body)
        assert (await site.post("/echo", data=b""))[0] == 200


async def test_an_echo_over_its_limit_is_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.post("/echo", data=io.BytesIO(bytes(64 * 1024 * 1024 + 1)))
        assert status == 413
        assert body["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?seconds=",
        "?seconds=x",
        "?seconds=-1",
        "?seconds=31",
        "?seconds=nan",
        "?seconds=inf",
        "?seconds=1e400",
    ],
)
async def test_slow_refuses_a_bad_time(tmp_path: Path, query: str) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get(f"/slow{query}")
        assert status == 400
        assert body["error"]["field"] == "seconds"


async def test_slow_answers_after_its_delay(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get("/slow?seconds=0.01")
        assert (status, body["slept_seconds"]) == (200, 0.01)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b'{"text": NaN}',
        b"[" * 50_000,
        b'{"text": "a", "more": 1}',
        b'{"text": 1}',
        b'{"text": "  "}',
        b'{"text": "\\ud800"}',
        b"{}",
    ],
)
async def test_a_bad_note_is_refused(tmp_path: Path, data: bytes) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.post("/memory/notes", data=data)
        assert status == 400
        assert body["error"]["field"] in ("body", "text")
        assert (await site.get("/memory/notes"))[1] == {"notes": []}


async def test_a_huge_JSON_body_is_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.post("/jobs", data=io.BytesIO(b" " * (1024 * 1024 + 1)))
        assert (status, body["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("limit", ["0", "-1", "501", "x", "1.5", "nan"])
async def test_a_bad_limit_is_refused(tmp_path: Path, limit: str) -> None:
    async with running_app(tmp_path) as site:
        for path in ("/memory/notes", "/jobs"):
            status, body = await site.get(f"{path}?limit={limit}")
            assert (status, body["error"]["field"]) == (400, "limit")


async def job_ended(site: Site, job_id: str) -> dict[str, Any]:
    async def ended() -> Any:
        _, job = await site.get(f"/jobs/{job_id}")
        return job if job["state"] in ("done", "failed") else None

    job: dict[str, Any] = await until(ended)
    return job


async def test_jobs_run(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        _, posted = await site.post("/jobs", {"kind": "checksum", "payload": {"text": "atlas"}})
        job = await job_ended(site, posted["id"])
        digest = hashlib.sha256(b"atlas").hexdigest()
        assert job["result"] == {"sha256": digest, "bytes": 5}
        _, posted = await site.post("/jobs", {"kind": "remember", "payload": {"text": "by a job"}})
        await job_ended(site, posted["id"])
        _, body = await site.get("/memory/notes?q=by a job")
        assert len(body["notes"]) == 1
        _, posted = await site.post("/jobs", {"kind": "reindex"})
        assert (await job_ended(site, posted["id"]))["result"] == {"updated": 0}
        _, body = await site.get("/jobs")
        assert {job["state"] for job in body["jobs"]} == {"done"}


async def test_a_job_waits_for_its_time(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        payload = {"text": "later"}
        _, late = await site.post(
            "/jobs", {"kind": "checksum", "payload": payload, "run_at": "2999-01-01T00:00:00Z"}
        )
        _, now = await site.post("/jobs", {"kind": "checksum", "payload": payload, "run_at": 0})
        await job_ended(site, now["id"])
        _, job = await site.get(f"/jobs/{late['id']}")
        assert (job["state"], job["run_at"]) == ("queued", "2999-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": "conquer"}, "kind"),
        ({"kind": ["checksum"]}, "kind"),
        ({"kind": "checksum"}, "text"),
        ({"kind": "checksum", "payload": "text"}, "payload"),
        ({"kind": "checksum", "payload": {"text": "a", "more": 1}}, "payload"),
        ({"kind": "checksum", "payload": {"text": "a" * 300_000}}, "text"),
        ({"kind": "reindex", "payload": {"all": True}}, "payload"),
        ({"kind": "wait", "payload": {"seconds": 31}}, "payload.seconds"),
        ({"kind": "wait", "payload": {"seconds": True}}, "payload.seconds"),
        ({"kind": "wait", "payload": {"seconds": 1e400}}, "body"),
        ({"kind": "reindex", "run_at": "tomorrow"}, "run_at"),
        ({"kind": "reindex", "run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"kind": "reindex", "run_at": "0001-01-01T00:00:00+23:59"}, "run_at"),
        ({"kind": "reindex", "run_at": "9999-12-31T23:59:59-23:59"}, "run_at"),
        ({"kind": "reindex", "run_at": 1e300}, "run_at"),
        ({"kind": "reindex", "run_at": True}, "run_at"),
        ({"kind": "reindex", "when": 1}, "body"),
    ],
)
async def test_a_bad_job_is_refused_and_its_field_named(
    tmp_path: Path, body: dict[str, object], field: str
) -> None:
    async with running_app(tmp_path) as site:
        status, answer = await site.post("/jobs", body)
        assert (status, answer["error"]["field"]) == (400, field)
        assert (await site.get("/jobs"))[1] == {"jobs": []}


async def test_an_unknown_job_is_not_found(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.get("/jobs/nobody")
        assert (status, body["error"]["code"]) == (404, "unknown_job")


async def test_smoke_tests_leave_no_data_behind(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        _, note = await site.post("/memory/notes", {"text": "to stay"})
        status, smoke = await site.post("/memory/notes", {"text": "smoke"}, smoke=True)
        assert (status, smoke["text"]) == (201, "smoke")
        assert (await site.delete(f"/memory/notes/{note['id']}", smoke=True))[0] == 204
        for body in (
            {"kind": "remember", "payload": {"text": "smoke job"}},
            {"kind": "checksum", "payload": {"text": "smoke"}},
            {"kind": "reindex"},
        ):
            status, job = await site.post("/jobs", body, smoke=True)
            assert (status, job["state"]) == (201, "done")
            assert job["result"] is not None
        assert (await site.get("/memory/notes"))[1] == {"notes": [note]}
        assert (await site.get("/jobs"))[1] == {"jobs": []}


async def test_a_smoke_job_runs_in_an_instance_that_is_not_active_yet(tmp_path: Path) -> None:
    async with running_app(tmp_path, role=InstanceRole.STAGING) as site:
        status, job = await site.post(
            "/jobs", {"kind": "checksum", "payload": {"text": "a"}}, smoke=True
        )
        assert (status, job["state"]) == (201, "done")


async def test_jobs_run_in_the_active_instance_only(tmp_path: Path) -> None:
    async with running_app(tmp_path, role=InstanceRole.STAGING) as site:
        _, posted = await site.post("/jobs", {"kind": "reindex"})
        async with running_app(tmp_path, role=InstanceRole.ACTIVE) as active:
            job = await job_ended(active, posted["id"])
            _, health = await active.get("/health")
        assert job["instance"] == health["instance"]


async def test_a_drain_finishes_running_jobs_and_claims_no_more(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        _, running = await site.post("/jobs", {"kind": "wait", "payload": {"seconds": 0.3}})

        async def has_begun() -> bool:
            return bool((await site.get(f"/jobs/{running['id']}"))[1]["state"] == "running")

        await until(has_begun)
        site.drain.stop()
        _, waiting = await site.post("/jobs", {"kind": "reindex"})
    store = JobStore(tmp_path / "worker", instance="a reader", lease_seconds=1)
    await store.open()
    jobs = {job["id"]: job["state"] for job in await store.newest(10)}
    await store.close()
    assert jobs == {running["id"]: "done", waiting["id"]: "queued"}
