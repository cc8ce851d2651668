"""The memory: notes that are stored, found by their words, and deleted on request."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from atlas_worker.app.database import ModuleDatabase
from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.app.requests import is_smoke, is_storable, query_count, read_object, text_field

NOTE_CHARACTERS = 64 * 1024
QUERY_CHARACTERS = 1024

# `source` is unique if it is set: a job stores its note once, even if it runs again because its
# instance was killed between the note and the record of the job.
MIGRATIONS = (
    """CREATE TABLE notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        text TEXT NOT NULL,
        created_ts TEXT NOT NULL,
        source TEXT UNIQUE,
        words INTEGER
    )""",
    # Triggers maintain the index, so that notes of an older version are in it.
    """CREATE VIRTUAL TABLE notes_index USING fts5(
        text, content = 'notes', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
    )""",
    """CREATE TRIGGER notes_indexed AFTER INSERT ON notes BEGIN
        INSERT INTO notes_index (rowid, text) VALUES (new.id, new.text);
    END""",
    """CREATE TRIGGER notes_forgotten AFTER DELETE ON notes BEGIN
        INSERT INTO notes_index (notes_index, rowid, text) VALUES ('delete', old.id, old.text);
    END""",
    """CREATE TRIGGER notes_changed AFTER UPDATE OF text ON notes BEGIN
        INSERT INTO notes_index (notes_index, rowid, text) VALUES ('delete', old.id, old.text);
        INSERT INTO notes_index (rowid, text) VALUES (new.id, new.text);
    END""",
    "INSERT INTO notes_index (notes_index) VALUES ('rebuild')",
    # One row that the health check writes.
    "CREATE TABLE touched (id INTEGER PRIMARY KEY CHECK (id = 1), ts REAL NOT NULL)",
)

_WORD = re.compile(r"\w+")


class Memory:
    """The notes of all instances, in one file."""

    def __init__(self, directory: Path) -> None:
        self._database = ModuleDatabase(directory / "memory.db", MIGRATIONS)
        self._trying: asyncio.Task[float] | None = None

    async def open(self) -> None:
        """Open the file; raises sqlite3.Error or OSError."""
        await self._database.open()

    async def close(self) -> None:
        """Close the file."""
        if self._trying is not None:
            await asyncio.wait({self._trying})
        await self._database.close()

    async def remember(
        self, text: str, *, source: str | None = None, keep: bool = True
    ) -> dict[str, Any]:
        """Store a note and return it; for a `source` with a note, return that one."""

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            row = db.execute(
                "INSERT INTO notes (text, created_ts, source, words) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (source) DO NOTHING RETURNING *",
                (text, datetime.now(UTC).isoformat(), source, len(text.split())),
            ).fetchone()
            if row is None:
                row = db.execute("SELECT * FROM notes WHERE source = ?", (source,)).fetchone()
            return _note(row)

        return await self._database.write(work, keep=keep)

    async def find(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Return the notes with every word of the text as a prefix, the best match first.

        Case and accents are ignored. A text without words matches the newest notes that contain
        it literally.
        """
        terms = " ".join(f'"{word}"*' for word in _WORD.findall(text.replace("_", " ")))
        pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            if terms:
                rows = db.execute(
                    "SELECT notes.* FROM notes_index JOIN notes ON notes.id = notes_index.rowid"
                    " WHERE notes_index MATCH ? ORDER BY rank, notes.id DESC LIMIT ?",
                    (terms, limit),
                )
            else:
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
        """Delete a note; return whether it existed."""

        def work(db: sqlite3.Connection) -> bool:
            return db.execute("DELETE FROM notes WHERE id = ?", (note_id,)).rowcount == 1

        return await self._database.write(work, keep=keep)

    async def try_write(self) -> float:
        """Commit a write, and return its duration in seconds.

        Concurrent callers share one write: on a locked file they would pile up.
        """
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._touch(), name="memory-touch")
        return await asyncio.shield(self._trying)

    async def _touch(self) -> float:
        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO touched (id, ts) VALUES (1, ?)", (time.time(),))

        begun = time.monotonic()
        await self._database.write(work)
        return time.monotonic() - begun

    async def reindex(self, *, keep: bool = True) -> int:
        """Count the words of all notes and rebuild the index; return the number of new counts."""

        def work(db: sqlite3.Connection) -> int:
            stale = [
                (len(row["text"].split()), row["id"])
                for row in db.execute("SELECT id, text, words FROM notes")
                if row["words"] != len(row["text"].split())
            ]
            db.executemany("UPDATE notes SET words = ? WHERE id = ?", stale)
            db.execute("INSERT INTO notes_index (notes_index) VALUES ('rebuild')")
            return len(stale)

        return await self._database.write(work, keep=keep)


MEMORY: web.AppKey[Memory] = web.AppKey("memory", Memory)
routes = web.RouteTableDef()


@routes.post("/memory/notes")
async def post_note(request: web.Request) -> web.Response:
    """Store a note."""
    memory = _memory(request)
    body = await read_object(request, fields=frozenset({"text"}))
    text = text_field(body, "text", limit=NOTE_CHARACTERS)
    note = await memory.remember(text, keep=not is_smoke(request))
    headers = {"Location": f"notes/{note['id']}"}  # relative: holds behind a path prefix
    return web.json_response(note, status=201, headers=headers)


@routes.get("/memory/notes")
async def get_notes(request: web.Request) -> web.Response:
    """Search the notes."""
    memory = _memory(request)
    text = request.query.get("q", "")
    if len(text) > QUERY_CHARACTERS or not is_storable(text):
        raise bad_field("q", "is invalid", f"a text of at most {QUERY_CHARACTERS} characters")
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
    """Delete one note."""
    note_id = int(request.match_info["id"])
    if not await _memory(request).forget(note_id, keep=not is_smoke(request)):
        raise _no_note(request)
    return web.Response(status=204)


def _memory(request: web.Request) -> Memory:
    memory = request.app.get(MEMORY)
    if memory is None:
        raise RequestError(
            "module_off", "the memory is disabled", hint="set MEMORY_ENABLED=true", status=404
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
