from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_worker.app.errors import RequestError
from atlas_worker.app.features.optimizer import evaluate, fill_knapsack, minimum
from atlas_worker.app.features.vision import look_at
from atlas_worker.app.features.web import read_page
from tests.unit.worker.app_support import chunk, filtered, png, running_app


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"P5\n2 1\n255\n\x00\xff", ("pgm", 2, 1, 0.5)),
        (b"P5 2 1 65535 \x00\x00\xff\xff", ("pgm", 2, 1, 0.5)),
        (b"P6\n# a comment\n1 1\n255\n\xff\x00\x00", ("ppm", 1, 1, 0.333333)),
        (b"P2\n3 1\n# depth\n10\n0 5 10 # the end\n", ("pgm", 3, 1, 0.5)),
        (b"P3 1 1 1\n1 1 0", ("ppm", 1, 1, 0.666667)),
        (png(2, 1, b"\x00\x00\xff"), ("png", 2, 1, 0.5)),
        (png(1, 1, b"\x00\xff\x00\x00", colour=2), ("png", 1, 1, 0.333333)),
        (png(1, 1, b"\x00\xff\x00\x00\x80", colour=6), ("png", 1, 1, 0.333333)),
        (png(1, 1, b"\x00\xff\x00", colour=4), ("png", 1, 1, 1.0)),
    ],
)
def test_images_are_measured(image: bytes, expected: tuple[Any, ...]) -> None:
    seen = look_at(image)
    assert (seen["format"], seen["width"], seen["height"], seen["mean_brightness"]) == expected


@pytest.mark.parametrize("methods", list(itertools.product(range(5), repeat=2)))
def test_every_filter_of_png_is_undone(methods: tuple[int, int]) -> None:
    pixels = [[10, 200, 30, 255, 5, 90], [250, 0, 128, 7, 66, 1]]
    image = png(2, 2, filtered(pixels, list(methods), 3), colour=2)
    mean = sum(map(sum, pixels)) / (12 * 255)
    assert look_at(image)["mean_brightness"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    "image",
    [png(1, 1, b"\x00\x00", colour=3), png(8, 1, b"\x00\x00", depth=1), png(1, 1, b"", interlace=1),
     png(60_000, 60_000, b"", colour=6)],
)  # fmt: skip
def test_a_png_that_is_not_decoded_is_measured_with_a_reason(image: bytes) -> None:
    seen = look_at(image)
    assert seen["width"] > 0
    assert seen["mean_brightness"] is None
    assert seen["note"]


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"GIF89a",
        b"P5",
        b"P5 1 1",
        b"P5 0 1 255 ",
        b"P5 1 1 0 \x00",
        b"P5 1 1 65536 \x00\x00",
        b"P5 2 2 255 \x00",
        b"P5 1 1 10 \xff",
        b"P2 1 1 255 x",
        b"P2 2 1 255 1",
        b"P2 1 1 255 256",
        b"P6 999999999 999999999 255 x",
        b"\x89PNG\r\n\x1a\n",
        png(1, 1, b"\x00\x00")[:-20],
        png(1, 1, b"\x00\x00").replace(b"IHDR", b"IHDX"),
        png(0, 1, b"\x00"),
        png(1, 1, b"\x00\x00", colour=5),
        png(1, 1, b"\x07\x00"),
        png(9, 9, b"\x00\x00"),
        png(1, 1, b"\x00\x00").replace(chunk(b"IEND", b""), b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0xFFFFFFFF) + b"IHDR" + b"0" * 20,
    ],
)
def test_a_bad_image_is_refused(image: bytes) -> None:
    with pytest.raises(RequestError):
        look_at(image)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_do_not_break_the_image_reader(data: bytes) -> None:
    for magic in (b"", b"P2 ", b"P6 1 ", b"\x89PNG\r\n\x1a\n"):
        try:
            look_at(magic + data)
        except RequestError as error:
            assert error.status in (400, 415)  # noqa: PT017 - either outcome is right


def test_a_page_is_read() -> None:
    page = b"""<!doctype html><html><head><title> Atlas &amp;
        Co </title><style>not seen</style></head><body>
        <h1>Two words</h1><script>var not = "seen"</script>
        <a href="/one">one</a> <a href='http://two/?a=1&amp;b=2'>two</a> <a name=x>no link</a>
        </body></html>"""
    assert read_page(page, "utf-8") == {
        "title": "Atlas & Co",
        "links": ["/one", "http://two/?a=1&b=2"],
        "link_count": 2,
        "word_count": 6,
    }


def test_a_page_without_a_title_has_none() -> None:
    assert read_page("schön".encode("latin-1"), "latin-1")["title"] is None


@pytest.mark.parametrize(
    ("page", "charset"),
    [(b"", "utf-8"), (b"  \n", "utf-8"), (b"a", "klingon"), (b"a", "hex"), (b"a", "a\0b"),
     (b"<a " * 5000, "utf-8"), (b"<![<![", "utf-8")],
)  # fmt: skip
def test_a_bad_page_is_refused(page: bytes, charset: str) -> None:
    with pytest.raises(RequestError):
        read_page(page, charset)


@given(st.text(alphabet="<>/!-['\"=& a&#;x?", max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_text_does_not_break_the_page_reader(page: str) -> None:
    try:
        read_page(page.encode(), "utf-8")
    except RequestError as error:
        assert error.status == 400  # noqa: PT017 - either outcome is right


items = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 12)), min_size=0, max_size=7)


@given(items, st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_no_other_choice_fills_a_knapsack_better(
    chosen_from: list[tuple[int, int]], capacity: int
) -> None:
    values = [value for value, _ in chosen_from]
    weights = [weight for _, weight in chosen_from]
    chosen = fill_knapsack(values, weights, capacity)
    assert sum(weights[index] for index in chosen) <= capacity
    best = max(
        sum(values[index] for index in choice)
        for size in range(len(values) + 1)
        for choice in itertools.combinations(range(len(values)), size)
        if sum(weights[index] for index in choice) <= capacity
    )
    assert sum(values[index] for index in chosen) == best


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=7), st.integers(-5, 5), st.integers(0, 10)
)
@settings(max_examples=100, deadline=None)
def test_no_other_place_has_a_lower_value(coefficients: list[int], low: int, length: int) -> None:
    x = minimum(coefficients, low, low + length)
    assert low <= x <= low + length
    least = evaluate(coefficients, x)
    for step in range(201):
        other = evaluate(coefficients, low + length * step / 200)
        assert least <= other + 1e-9 * max(1.0, abs(other))


async def test_features_answer_over_http(tmp_path: Path) -> None:
    async with running_app(tmp_path) as site:
        status, body = await site.post("/features/vision", data=b"P5 1 1 255 \xff")
        assert (status, body["mean_brightness"]) == (200, 1.0)
        status, body = await site.post("/features/web", data=b"<title>t</title>")
        assert (status, body["title"]) == (200, "t")
        status, body = await site.post(
            "/features/optimizer",
            {"problem": "polynomial", "coefficients": [0, -4, 1], "interval": [0, 10]},
        )
        assert status == 200
        assert (body["x"], body["value"]) == (pytest.approx(2), pytest.approx(-4))
        knapsack = {
            "problem": "knapsack",
            "capacity": 10,
            "items": [{"value": 9, "weight": 7}, {"value": 6, "weight": 5, "name": "b"},
                      {"value": 5, "weight": 5}],
        }  # fmt: skip
        status, body = await site.post("/features/optimizer", knapsack)
        assert (body["chosen"], body["value"], body["weight"]) == ([1, 2], 11, 10)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "problem"),
        ({"problem": ["knapsack"]}, "problem"),
        ({"problem": "knapsack"}, "capacity"),
        ({"problem": "knapsack", "capacity": -1, "items": []}, "capacity"),
        ({"problem": "knapsack", "capacity": 10**30, "items": []}, "capacity"),
        ({"problem": "knapsack", "capacity": True, "items": []}, "capacity"),
        ({"problem": "knapsack", "capacity": 1.5, "items": []}, "capacity"),
        ({"problem": "knapsack", "capacity": 1}, "items"),
        ({"problem": "knapsack", "capacity": 1, "items": [1]}, "items[0]"),
        ({"problem": "knapsack", "capacity": 1, "items": [{"value": 1}]}, "items[0].weight"),
        ({"problem": "knapsack", "capacity": 1, "items": [{"value": "1", "weight": 1}]},
         "items[0].value"),
        ({"problem": "knapsack", "capacity": 100_000, "items": [{"value": 1, "weight": 1}] * 100},
         "capacity"),
        ({"problem": "knapsack", "capacity": 1, "items": [], "interval": [0, 1]}, "interval"),
        ({"problem": "polynomial", "coefficients": []}, "coefficients"),
        ({"problem": "polynomial", "coefficients": [1] * 22}, "coefficients"),
        ({"problem": "polynomial", "coefficients": [None]}, "coefficients[0]"),
        ({"problem": "polynomial", "coefficients": [1]}, "interval"),
        ({"problem": "polynomial", "coefficients": [1], "interval": [1]}, "interval"),
        ({"problem": "polynomial", "coefficients": [1], "interval": [2, 1]}, "interval"),
        ({"problem": "polynomial", "coefficients": [1], "interval": [0, 1e300]}, "interval[1]"),
    ],
)  # fmt: skip
async def test_a_bad_problem_is_refused_and_its_field_named(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    async with running_app(tmp_path) as site:
        status, answer = await site.post("/features/optimizer", body)
        assert (status, answer["error"]["field"]) == (400, field)
