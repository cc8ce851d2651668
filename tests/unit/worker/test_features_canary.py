"""The canaries of the bundled worker's features: the same answers, and which arm gave them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_worker.app.errors import RequestError
from atlas_worker.app.features.arms import serve
from atlas_worker.app.features.optimizer import fill_knapsack, fill_knapsack_by_steps
from atlas_worker.app.features.vision import look_at, look_at_quickly
from atlas_worker.app.features.web import read_page, read_page_at_once
from atlas_worker.contract.ring import EventKind, Outcome
from tests.unit.worker.app_support import filtered, png, running_app
from tests.unit.worker.canary_support import Canaries, canaries

__all__ = ["canaries"]

item = st.tuples(st.sampled_from([0, 1, 2, 2.5, 3, 0.1, 0.2]), st.integers(0, 12))


@given(st.lists(item, max_size=12), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_both_arms_fill_a_knapsack_alike_including_ties(
    chosen_from: list[tuple[float, int]], capacity: int
) -> None:
    values = [value for value, _ in chosen_from]
    weights = [weight for _, weight in chosen_from]

    assert fill_knapsack_by_steps(values, weights, capacity) == fill_knapsack(
        values, weights, capacity
    )


@pytest.mark.parametrize("methods", list(itertools.product(range(5), repeat=2)))
def test_both_arms_read_the_same_in_an_image(methods: tuple[int, int]) -> None:
    pixels = [[10, 200, 30, 255, 5, 90], [250, 0, 128, 7, 66, 1]]
    image = png(2, 2, filtered(pixels, list(methods), 3), colour=2)

    assert look_at_quickly(image) == look_at(image)


@given(st.text(alphabet="<>/!-['\"=& aâ\n#;xtilescrp", max_size=200))
@settings(max_examples=200, deadline=None)
def test_both_arms_read_the_same_in_a_page(page: str) -> None:
    try:
        expected = read_page(page.encode(), "utf-8")
    except RequestError:
        with pytest.raises(RequestError):
            read_page_at_once(page.encode(), "utf-8")
    else:
        assert read_page_at_once(page.encode(), "utf-8") == expected


@pytest.mark.parametrize(("share", "arm"), [(0, "stable"), (1, "canary")])
async def test_the_answer_names_the_arm(canaries: Canaries, share: int, arm: str) -> None:
    canaries.decide({"vision": share, "web": share, "optimizer": share})
    problem = {"problem": "knapsack", "capacity": 5, "items": [{"value": 1, "weight": 5}]}

    async with running_app(canaries.folder) as site:
        _, seen = await site.post("/features/vision", data=b"P5 1 1 255 \xff")
        _, read = await site.post("/features/web", data=b"<title>t</title> two words")
        _, solved = await site.post("/features/optimizer", problem)

    assert [answer["arm"] for answer in (seen, read, solved)] == [arm] * 3
    assert (seen["mean_brightness"], read["word_count"], solved["chosen"]) == (1.0, 2, [0])
    ended = [event for event in canaries.events() if event.kind == EventKind.ENDED]
    assert {event.is_canary for event in ended} == {arm == "canary"}
    assert len(ended) == 3


async def test_bad_input_is_not_a_failure_of_the_arm_but_a_fault_is(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    async with running_app(canaries.folder) as site:
        status, _ = await site.post("/features/vision", data=b"GIF")
        assert status == 415

    def broken(_: bytes) -> dict[str, object]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve("vision", look_at, broken, b"")

    ended = [event.outcome for event in canaries.events() if event.kind == EventKind.ENDED]
    assert sorted(ended) == [Outcome.OK, Outcome.ERROR]


async def test_without_a_supervisor_the_stable_arm_serves(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, seen = await site.post("/features/vision", data=b"P5 1 1 255 \xff")
    assert (status, seen["arm"]) == (200, "stable")
