"""The promises of the daemon under what a seed draws, in virtual time; docs/adr/0067."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.run import Player
from tests.simulation.seams import Seams

SEEDS = range(1, 201)
PIECES = [SEEDS[start : start + 20] for start in range(0, len(SEEDS), 20)]


@pytest.fixture
def player() -> Iterator[Player]:
    with Player() as player:
        yield player


@pytest.mark.parametrize("seeds", PIECES, ids=lambda seeds: f"{seeds[0]}..{seeds[-1]}")
def test_no_seed_breaks_a_promise(player: Player, seeds: range) -> None:
    for seed in seeds:
        played = player.play(seed)
        assert not played.broken, played.text


def test_the_same_seed_tells_the_same_story(player: Player) -> None:
    first = player.play(7)
    player.play(8)
    assert player.play(7) == first


def test_a_broken_promise_is_found_and_its_story_told(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def careless(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(Seams, "_smoke", careless)
    # The first ones find it at present; what seeds draw changes with what can be drawn.
    stories = (player.play(seed).text for seed in (61, 101, *range(102, 160)))
    assert any("has traffic, and never passed its gates" in story for story in stories)
