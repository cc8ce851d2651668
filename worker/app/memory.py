"""The memory: notes that are kept, found by a part of their text, and forgotten on request."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from worker.app.database import Database
from worker.app.errors import RequestError, bad_field
from worker.app.requests import is_smoke, is_storable, query_count, read_object, text_field

NOTE_CHARACTERS = 64 * 1024
QUERY_CHARACTERS = 1024

# `source` is unique where it is set: what a job remembers is remembered once, even if the job
# is run again after its instance was killed between the note and the job's own record.
MIGRATIONS = (
    """CREATE TABLE notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        text TEXT NOT NULL,
        created_ts TEXT NOT NULL,
        source TEXT UNIQUE,
        words INTEGER
    )""",
)


class Memory:
    """The notes of all instances, in one file."""

    def __init__(self, directory: Path) -> None:
        self._database = Database(directory / "memory.db", MIGRATIONS)

    async def open(self) -> None:
        """Open the file; raises sqlite3.Error or OSError."""
        await self._database.open()

    async def close(self) -> None:
        """Let go of the file."""
        await self._database.close()

    async def remember(
        self, text: str, *, source: str | None = None, keep: bool = True
    ) -> dict[str, Any]:
        """Keep a note and return it; a `source` that has left one before gets that one."""

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            db.execute(
                "INSERT INTO notes (text, created_ts, source, words) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (source) DO NOTHING",
                (text, datetime.now(UTC).isoformat(), source, len(text.split())),
            )
            last = "id = last_insert_rowid()" if source is None else "source = :source"
            row = db.execute(f"SELECT * FROM notes WHERE {last}", {"source": source})  # noqa: S608 - one of two constants
            return _note(row.fetchone())

        return await self._database.write(work, keep=keep)

    async def find(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Return the newest notes that contain the text, ASCII letters in either case."""
        pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = db.execute(
                "SELECT * FROM notes WHERE text LIKE ? ESCAPE '\\' ORDER BY id DESC LIMIT ?",
                (f"%{pattern}%", limit),
            )
            return [_note(row) for row in rows]

        return await self._database.read(work)

    async def get(self, note_id: int) -> dict[str, Any] | None:
        """Return one note, or None."""

        def work(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = db.execute("SELECT * FROM notes WHERE id = ?", (note_id,)).fetchone()
            return _note(row) if row else None

        return await self._database.read(work)

    async def forget(self, note_id: int, *, keep: bool = True) -> bool:
        """Delete a note; returns whether there was one."""

        def work(db: sqlite3.Connection) -> bool:
            return db.execute("DELETE FROM notes WHERE id = ?", (note_id,)).rowcount == 1

        return await self._database.write(work, keep=keep)

    async def count(self) -> int:
        """Return how many notes there are."""

        def work(db: sqlite3.Connection) -> int:
            return int(db.execute("SELECT count(*) FROM notes").fetchone()[0])

        return await self._database.read(work)

    async def reindex(self, *, keep: bool = True) -> int:
        """Count each note's words anew; returns how many notes were not up to date."""

        def work(db: sqlite3.Connection) -> int:
            stale = [
                (len(row["text"].split()), row["id"])
                for row in db.execute("SELECT id, text, words FROM notes")
                if row["words"] != len(row["text"].split())
            ]
            db.executemany("UPDATE notes SET words = ? WHERE id = ?", stale)
            return len(stale)

        return await self._database.write(work, keep=keep)


MEMORY: web.AppKey[Memory] = web.AppKey("memory", Memory)
routes = web.RouteTableDef()


@routes.post("/memory/notes")
async def post_note(request: web.Request) -> web.Response:
    """Keep a note."""
    memory = _memory(request)
    body = await read_object(request, fields=frozenset({"text"}))
    text = text_field(body, "text", limit=NOTE_CHARACTERS)
    note = await memory.remember(text, keep=not is_smoke(request))
    headers = {"Location": f"/memory/notes/{note['id']}"}
    return web.json_response(note, status=201, headers=headers)


@routes.get("/memory/notes")
async def get_notes(request: web.Request) -> web.Response:
    """Search the notes."""
    memory = _memory(request)
    text = request.query.get("q", "")
    if len(text) > QUERY_CHARACTERS or not is_storable(text):
        raise bad_field("q", "is unusable", f"a text of at most {QUERY_CHARACTERS} characters")
    limit = query_count(request, "limit", default=50, high=500)
    return web.json_response({"notes": await memory.find(text, limit)})


@routes.get(r"/memory/notes/{id:[0-9]{1,18}}")
async def get_note(request: web.Request) -> web.Response:
    """Return one note."""
    note = await _memory(request).get(int(request.match_info["id"]))
    if note is None:
        raise _no_note(request)
    return web.json_response(note)


@routes.delete(r"/memory/notes/{id:[0-9]{1,18}}")
async def delete_note(request: web.Request) -> web.Response:
    """Forget one note."""
    note_id = int(request.match_info["id"])
    if not await _memory(request).forget(note_id, keep=not is_smoke(request)):
        raise _no_note(request)
    return web.Response(status=204)


def _memory(request: web.Request) -> Memory:
    memory = request.app.get(MEMORY)
    if memory is None:
        raise RequestError(
            "module_off", "the memory is off", hint="set MEMORY_ENABLED=true", status=404
        )
    return memory


def _no_note(request: web.Request) -> RequestError:
    return RequestError(
        "unknown_note",
        f"there is no note {request.match_info['id']}",
        hint="GET /memory/notes lists them",
        status=404,
    )


def _note(row: sqlite3.Row) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "text", "words", "created_ts")}
