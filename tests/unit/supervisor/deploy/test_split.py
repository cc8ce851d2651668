"""The split on real sockets, slots and files: durable, undone on failure, ended in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor.config import Settings, Sticky
from atlas_supervisor.deploy.switch import NoSplitError, split_of
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.traffic import Split
from tests.unit.supervisor.deploy.support import Ready, kill, ready

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


def has_share(it: Ready, weight: float) -> bool:
    """Return whether steering and file both give green this share."""
    held = it.file.read()
    assert held is not None
    assert held == it.state.state
    return it.bench.plane.policy.split.weight == held.staging_weight == weight


async def test_a_share_is_steered_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        with pytest.raises(NoSplitError):
            await it.switch.set_weight(0.5)
        await it.switch.open_split("d1")
        assert has_share(it, 0)
        await it.switch.set_weight(0.25)
        assert has_share(it, 0.25)
        assert it.has(BLUE)
        await it.switch.open_split("d1")  # the activity of its phase begins anew
        assert has_share(it, 0.25)
        assert await it.switch.close_split()
        assert has_share(it, 0)
        assert not await it.switch.close_split()


async def test_a_share_that_can_not_be_written_is_not_steered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        await it.switch.open_split("d1")
        await it.switch.set_weight(0.25)
        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        with pytest.raises(OSError, match="directory"):
            await it.switch.set_weight(0.5)
        assert has_share(it, 0.25)
        outcome = await it.switch.flip()
        assert not outcome.has_passed
        assert has_share(it, 0.25)  # a failed switch leaves the split as it was
        in_the_way.rmdir()
        assert (await it.switch.flip()).has_passed
        assert has_share(it, 0)
        assert it.has(GREEN)


async def test_the_version_before_is_held_back_and_a_way_back_ends_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        assert (await it.switch.flip()).has_passed
        assert await it.switch.hold_back("d1", 0.02) is None
        assert has_share(it, 0.02)
        assert it.bench.plane.policy.weights == {"blue": 0.02, "green": 0.98}
        assert it.has(GREEN)
        assert await it.switch.close_split()
        assert has_share(it, 0)

        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        assert "directory" in (await it.switch.hold_back("d1", 0.02) or "")
        assert has_share(it, 0)
        in_the_way.rmdir()
        assert await it.switch.hold_back("d1", 0.02) is None
        assert (await it.switch.flip()).has_passed
        assert has_share(it, 0)
        assert it.has(BLUE)
        await kill(it.bench.green)
        assert await it.switch.hold_back("d1", 0.02) == "the version before is not alive"
        assert has_share(it, 0)


async def test_a_dead_worker_gets_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        await it.switch.open_split("d1")
        await it.switch.set_weight(0.5)
        await kill(it.bench.green)
        with pytest.raises(NoSplitError):
            await it.switch.set_weight(0.6)
        assert await it.switch.close_split()
        assert has_share(it, 0)
        assert it.has(BLUE)
        assert it.bench.blue.state is SlotState.RUNNING


def test_each_deploy_begins_with_other_addresses(tmp_path: Path) -> None:
    settings = Settings(base_dir=tmp_path, traffic_sticky=Sticky.ADDRESS)
    one, other = (split_of(settings, deploy_id, 0.1) for deploy_id in ("d1", "d2"))
    assert one == split_of(settings, "d1", 0.1) == Split(0.1, True, one.salt)
    assert one.salt != other.salt
