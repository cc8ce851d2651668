"""A deploy of the version before the active one, left by a dead daemon: whose turn it is then.

Such a deploy takes a version away from the list of those that had the traffic. v2 runs in green
and v1 is brought back in blue; reverted, v2 has the traffic again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.state import ActiveRelease
from tests.unit.supervisor.deploy.support import (
    AFTER_SWITCH,
    BEFORE_SWITCH,
    BLUE,
    GREEN,
    PORT,
    Left,
    left,
)

V1, V2 = ("v1", BLUE), ("v2", GREEN)
BEFORE = {"active_port": PORT[GREEN], "staging_port": PORT[BLUE]}
AFTER = {"active_port": PORT[BLUE], "staging_port": PORT[GREEN]}
V2_RUNS = {"active_release": ActiveRelease(name="v2", version="v2")}


async def rolling_back(it: Left, phase: Phase, **changes: Any) -> None:
    await it.deploy(phase, release="v1", rollback=True, **changes)


@pytest.mark.parametrize("phase", [*BEFORE_SWITCH, Phase.SWITCH])
async def test_a_rollback_that_has_not_switched_removes_no_version(
    tmp_path: Path, phase: Phase
) -> None:
    async with left(tmp_path) as it:
        await it.versions(V1, V2)
        await rolling_back(it, phase, **BEFORE)
        state, waiting = await it.recover(GREEN, **V2_RUNS)
        assert (waiting, state.mode) == (None, Mode.BLUEGREEN)
        assert (await it.ended()).result == "aborted"
        assert await it.stack() == [V1, V2]


@pytest.mark.parametrize(
    ("phase", "noted"),
    # Taken away before its transition was written: an earlier supervisor did that.
    [(Phase.SWITCH, False), (Phase.SWITCH, True), *((phase, True) for phase in AFTER_SWITCH)],
)
async def test_a_rollback_that_has_switched_removes_the_replaced_version_once(
    tmp_path: Path, phase: Phase, noted: bool
) -> None:
    async with left(tmp_path) as it:
        await it.versions(V1, *([] if noted else [V2]))
        await rolling_back(it, phase, **(BEFORE if phase is Phase.SWITCH else AFTER))
        await it.recover(BLUE, active_release=ActiveRelease(name="v1", version="v1"))
        record = await it.ended()
        assert (record.result, record.active_port) == ("switched", PORT[BLUE])
        assert await it.stack() == [V1]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("phase", [Phase.REVERT, Phase.GUARD, Phase.WARM])
async def test_a_rollback_that_was_reverted_adds_the_removed_version_again(
    tmp_path: Path, phase: Phase, noted: bool
) -> None:
    async with left(tmp_path) as it:
        await it.versions(V1, *([V2] if noted else []))
        await rolling_back(it, phase, **AFTER)
        await it.recover(GREEN, **V2_RUNS)
        record = await it.ended()
        assert (record.result, record.active_port) == ("rolled_back", PORT[GREEN])
        assert await it.stack() == [V1, V2]
        kept = await it.database.state.load()
        assert noted or (kept is not None and kept.active_release == V2_RUNS["active_release"])


async def test_a_revert_that_was_only_intended_is_none(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(V1)
        await rolling_back(it, Phase.REVERT, **AFTER)
        await it.recover(BLUE, active_release=ActiveRelease(name="v1", version="v1"))
        assert (await it.ended()).result == "switched"
        assert await it.stack() == [V1]


async def test_a_state_file_that_names_no_release_adds_no_version(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(V1)
        await rolling_back(it, Phase.REVERT, **AFTER)
        await it.recover(GREEN)
        assert (await it.ended()).result == "rolled_back"
        assert await it.stack() == [V1]


async def test_recovering_a_rollback_twice_removes_one_version(tmp_path: Path) -> None:
    async with left(tmp_path) as it:
        await it.versions(("v0", GREEN), V1, V2)
        await rolling_back(it, Phase.SWITCH, **BEFORE)
        for _ in range(2):
            await it.recover(BLUE)
            assert await it.stack() == [("v0", GREEN), V1]
