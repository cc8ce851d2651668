"""What can be gone back to, from the record of what served."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.deploy.rollback import Target, chosen, targets
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store import deploys
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import versions_changed

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def served(
    name: str, *, hours_ago: float | None = 1, irreversible: bool = False, **more: Any
) -> Version:
    version = name.partition("@")[0]  # 1@a and 1@b are two releases of version 1
    path = Path("/srv") / name
    release = Release(name=name, path=path, version=version, irreversible=irreversible)
    until = NOW - timedelta(hours=hours_ago) if hours_ago is not None else None
    return Version(SlotName.BLUE, release, until=until, **more)


def active(name: str, **more: Any) -> Version:
    return served(name, hours_ago=None, **more)


def names(found: list[Target]) -> list[str | None]:
    return [each.version.release.name for each in found]


def test_the_last_five_other_versions_are_listed_once_each_the_latest_first() -> None:
    record = [active("9"), *(served(str(n), hours_ago=9 - n) for n in (8, 7, 8, 9, 6, 5, 4, 3))]
    assert names(targets(record)) == ["8", "7", "6", "5", "4"]
    assert [each.is_next for each in targets(record)] == [True, False, False, False, False]


def test_one_that_was_taken_away_is_listed_where_it_served_last() -> None:
    record = [
        served("3", hours_ago=1, undone=True),
        active("2"),
        served("1", hours_ago=5),
    ]
    assert names(targets(record)) == ["3", "1"]
    assert [(each.taken_away, each.is_next) for each in targets(record)] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("record", [[], [active("1")]])
def test_without_an_earlier_version_there_is_nothing_to_go_back_to(record: list[Version]) -> None:
    assert targets(record) == []
    with pytest.raises(RefusedError, match="no earlier version"):
        chosen(record, None)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("3", "version_is_active", "'3' is active"),
        ("4", "unknown_version", "there is: 2, 1"),
        ("", "unknown_version", "there is: 2, 1"),
    ],
)
def test_a_version_that_can_not_be_gone_back_to_is_refused_with_those_that_can(
    name: str, code: str, said: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        chosen([active("3"), served("2"), served("1", hours_ago=2)], name)
    assert refused.value.code == code
    assert said in refused.value.message


def test_of_two_releases_with_one_version_the_newest_is_taken_and_the_record_says_so() -> None:
    record = [active("2"), served("1@b"), served("1@a", hours_ago=2)]
    target = chosen(record, "1")
    assert target.version is record[1]
    assert target.remark == "of 2 with this version the newest, release 1@b"
    assert chosen(record, "1@a").version is record[2]


def test_the_version_before_is_that_of_the_stack_and_not_the_one_that_served_last() -> None:
    record = [served("3", undone=True), active("2"), served("1", hours_ago=30)]
    assert chosen(record, None).version.release.name == "1"


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (served("1"), None),
        (served("1", hours_ago=23.9), None),
        (served("1", hours_ago=24.1), "it served last at 2026-01-04 11:54 UTC, over 24 h ago"),
        (served("1", hours_ago=-30), "over 24 h ago"),
        (served("1", hours_ago=None), "it is not known when it served last"),
        (served("1", complaint="its worker crashed"), "its worker crashed"),
        (served("1", undone=True), "a rollback went past it"),
    ],
)
def test_gates_are_skipped_only_for_a_version_that_ran_without_complaint_within_a_day(
    version: Version, why: str | None
) -> None:
    found = Target(version, (), taken_away=False, is_next=True).why_not_fast(NOW)
    assert found is why is None or (why is not None and found is not None and why in found)


def test_irreversible_versions_since_are_named_and_do_not_forbid_it() -> None:
    record = [
        active("4", irreversible=True),
        served("3"),
        served("2", irreversible=True),
        served("1"),
    ]
    target = chosen(record, "1")
    assert target.past == ("4", "2")
    assert target.remark == "past irreversible 4, 2"
    assert chosen(record, "2").past == ("4",)


def test_an_irreversible_version_that_is_gone_back_to_may_be_reverted() -> None:
    back = chosen([active("3"), served("2", irreversible=True)], "2")
    assert not back.release.irreversible
    again = chosen([served("3", irreversible=True, undone=True), active("2")], "3")
    assert again.release.irreversible


async def stacked(database: Database, change: VersionChange) -> list[str | None]:
    await database.statements.write(*versions_changed(change))
    return [each.release.name for each in await database.versions.all()]


async def test_the_record_follows_deploys_reverts_and_rollbacks(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        for name in "1234":
            stack = await stacked(database, VersionChange(served(name)))
        assert stack == ["4", "3", "2", "1"]
        assert await stacked(database, VersionChange(back=True, complaint="guard")) == list("321")
        # Two further, and to one that was taken away.
        assert await stacked(database, VersionChange(served("1"), back=True)) == ["1"]
        assert await stacked(database, VersionChange(served("3"), back=True)) == ["3", "1"]
        # The same release twice: a rollback takes one of them.
        assert await stacked(database, VersionChange(served("3"))) == ["3", "3", "1"]
        assert await stacked(database, VersionChange(served("3"), back=True)) == ["3", "1"]
        record = {(row.release.name, row.undone): row for row in await database.versions.served()}
        assert record["4", True].complaint == "guard"
        assert record["3", False].until is None
        assert record["2", True].until is not None
        # A complaint changes nothing else, and the active one keeps the traffic.
        assert await stacked(database, VersionChange(complaint="held")) == ["3", "1"]
        (first, *_) = await database.versions.all()
        assert (first.complaint, first.until) == ("held", None)


async def test_versions_that_were_taken_away_never_push_the_stack_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploys, "_VERSIONS_KEPT", 3)
    async with open_database(tmp_path / "atlas.db") as (database, _):
        await stacked(database, VersionChange(served("1")))
        for _ in range(5):
            await stacked(database, VersionChange(served("2")))
            assert await stacked(database, VersionChange(back=True)) == ["1"]
        assert len(await database.versions.served()) <= 5
