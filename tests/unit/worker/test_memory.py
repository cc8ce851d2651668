from __future__ import annotations

import sqlite3
from pathlib import Path

from atlas_worker.app.memory import MIGRATIONS
from tests.unit.worker.app_support import running_app


async def test_notes_of_a_version_without_the_index_are_found(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        await site.post("/memory/notes", {"text": "Crème brûlée, twice"})
        with sqlite3.connect(tmp_path / "worker" / "memory.db") as db:
            db.execute("INSERT INTO notes (text, created_ts) VALUES ('a note from before', 'now')")
            db.execute("UPDATE notes SET text = 'Creme brulee, once' WHERE id = 1")
        db.close()
        for query, found in (("before", 1), ("brûlée", 1), ("BRULEE once", 1), ("twice", 0)):
            _, body = await site.get(f"/memory/notes?q={query}")
            assert len(body["notes"]) == found, query


async def test_notes_from_before_the_index_are_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    with sqlite3.connect(folder / "memory.db") as db:
        db.execute(MIGRATIONS[0])
        db.execute("INSERT INTO notes (text, created_ts) VALUES ('old but gold', 'then')")
        db.execute("PRAGMA user_version = 1")
    db.close()
    async with running_app(tmp_path) as site:
        _, body = await site.get("/memory/notes?q=gold")
        assert [note["text"] for note in body["notes"]] == ["old but gold"]


async def test_notes_are_kept_found_and_forgotten(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        for text in ("The quick brown fox", "jumps over", "100% of the dog_s"):
            status, note = await site.post("/memory/notes", {"text": text})
            assert (status, note["text"]) == (201, text)
        assert await site.get(f"/memory/notes/{note['id']}") == (200, note)

        async def texts(query: str) -> list[str]:
            _, body = await site.get(f"/memory/notes?{query}")
            return [note["text"] for note in body["notes"]]

        assert await texts("q=QUICK") == ["The quick brown fox"]
        assert await texts("q=brown the") == ["The quick brown fox"]
        assert await texts("q=the bro") == ["The quick brown fox"]
        assert await texts("q=rown") == []
        assert await texts("q=%25") == ["100% of the dog_s"]
        assert await texts('q="NEAR(%22*') == []
        assert await texts("limit=1") == ["100% of the dog_s"]
        assert (await site.delete(f"/memory/notes/{note['id']}"))[0] == 204
        assert (await site.delete(f"/memory/notes/{note['id']}"))[0] == 404
        assert (await site.get(f"/memory/notes/{note['id']}"))[0] == 404
        assert await texts("q=dog") == []


async def test_notes_outlive_the_worker(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        await site.post("/memory/notes", {"text": "remember me"})
    async with running_app(tmp_path) as site:
        _, body = await site.get("/memory/notes?q=remember")
        assert [note["text"] for note in body["notes"]] == ["remember me"]
