"""Solves two problems exactly: fills a knapsack, minimises a polynomial over an interval.

The knapsack is solved by dynamic programming over its capacity. The polynomial's minimum is at an
end of the interval or where its derivative is zero, and those zeros are found by bisection between
the zeros of the next derivative, where it is monotonic.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from atlas_worker.app.errors import bad_field
from atlas_worker.app.requests import is_number

MAX_CAPACITY = 100_000
MAX_ITEMS = 200
MAX_CELLS = 2_000_000
MAX_DEGREE = 20
_MAX_NUMBER = 1e9
_FIELDS = {
    "knapsack": {"problem", "capacity", "items"},
    "polynomial": {"problem", "coefficients", "interval"},
}

_Fill = Callable[[Sequence[float], Sequence[int], int], list[int]]


def optimize(body: dict[str, Any]) -> dict[str, Any]:
    """Solve the posted problem; raises `RequestError` with the invalid field."""
    return _optimize(body, fill_knapsack)


def optimize_by_steps(body: dict[str, Any]) -> dict[str, Any]:
    """Do the same; a knapsack is filled by the steps of its best value alone."""
    return _optimize(body, fill_knapsack_by_steps)


def _optimize(body: dict[str, Any], fill: _Fill) -> dict[str, Any]:
    problem = body.get("problem")
    if not isinstance(problem, str) or problem not in _FIELDS:
        raise bad_field("problem", "is missing or unknown", "knapsack or polynomial")
    foreign = sorted(body.keys() - _FIELDS[problem])
    if foreign:
        raise bad_field(foreign[0], f"does not belong to {problem}", "left out")
    return _knapsack(body, fill) if problem == "knapsack" else _polynomial(body)


def _knapsack(body: dict[str, Any], fill: _Fill) -> dict[str, Any]:
    capacity = _whole(body.get("capacity"), "capacity", 0, MAX_CAPACITY)
    items = body.get("items")
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise bad_field("items", "is missing or too long", f"a list of at most {MAX_ITEMS} items")
    if len(items) * (capacity + 1) > MAX_CELLS:
        raise bad_field(
            "capacity", "is too large for so many items", f"at most {MAX_CELLS} / the items"
        )
    values, weights = [], []
    for index, item in enumerate(items):
        name = f"items[{index}]"
        if not isinstance(item, dict) or item.keys() - {"name", "value", "weight"}:
            raise bad_field(
                name, "is not an item", '{"name", "value", "weight"}, the name optional'
            )
        values.append(_number(item.get("value"), f"{name}.value", 0, _MAX_NUMBER))
        weights.append(_whole(item.get("weight"), f"{name}.weight", 0, int(_MAX_NUMBER)))
    chosen = fill(values, weights, capacity)
    return {
        "problem": "knapsack",
        "chosen": chosen,
        "items": [items[index] for index in chosen],
        "value": sum(values[index] for index in chosen),
        "weight": sum(weights[index] for index in chosen),
    }


def fill_knapsack(values: Sequence[float], weights: Sequence[int], capacity: int) -> list[int]:
    """Return the indices of the items of greatest value that fit together, in order."""
    best = [0.0] * (capacity + 1)
    taken: list[bytearray] = []
    for value, weight in zip(values, weights, strict=True):
        row = bytearray(capacity + 1)
        for room in range(capacity, weight - 1, -1):
            with_item = best[room - weight] + value
            if with_item > best[room]:
                best[room] = with_item
                row[room] = 1
        taken.append(row)
    chosen = []
    room = capacity
    for index in range(len(taken) - 1, -1, -1):
        if taken[index][room]:
            chosen.append(index)
            room -= weights[index]
    return chosen[::-1]


def fill_knapsack_by_steps(
    values: Sequence[float], weights: Sequence[int], capacity: int
) -> list[int]:
    """Return the same indices as `fill_knapsack`.

    The best value grows with the room in steps, and only those are kept: the weight where each
    starts, and its value (Nemhauser and Ullmann, 1969). Where there are few, this is quicker.
    """
    before = []
    rooms, best = array("q", [0]), array("d", [0.0])
    for value, weight in zip(values, weights, strict=True):
        before.append((rooms, best))
        with_item = [
            (room + weight, total + value)
            for room, total in zip(rooms, best, strict=True)
            if room + weight <= capacity
        ]
        steps = heapq.merge(zip(rooms, best, strict=True), with_item)
        rooms, best = array("q"), array("d")
        for room, total in steps:
            if not best or total > best[-1]:
                if rooms and rooms[-1] == room:
                    best[-1] = total
                else:
                    rooms.append(room)
                    best.append(total)
    chosen = []
    room = capacity
    for index in range(len(before) - 1, -1, -1):
        without = _best_within(*before[index], room)
        left = room - weights[index]
        if left >= 0 and _best_within(*before[index], left) + values[index] > without:
            chosen.append(index)
            room = left
    return chosen[::-1]


def _best_within(rooms: Sequence[int], best: Sequence[float], room: int) -> float:
    return best[bisect_right(rooms, room) - 1]


def _polynomial(body: dict[str, Any]) -> dict[str, Any]:
    numbers = body.get("coefficients")
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_DEGREE + 1:
        raise bad_field(
            "coefficients",
            "is missing or too long",
            f"1 to {MAX_DEGREE + 1} numbers, constant first",
        )
    coefficients = [
        _number(number, f"coefficients[{index}]", -_MAX_NUMBER, _MAX_NUMBER)
        for index, number in enumerate(numbers)
    ]
    interval = body.get("interval")
    if not isinstance(interval, list) or len(interval) != 2:
        raise bad_field("interval", "is missing or not a pair", "[low, high]")
    low, high = (
        _number(end, f"interval[{index}]", -1e6, 1e6) for index, end in enumerate(interval)
    )
    if low > high:
        raise bad_field("interval", "runs backwards", "[low, high], low first")
    x = minimum(coefficients, low, high)
    return {"problem": "polynomial", "x": x, "value": evaluate(coefficients, x)}


def minimum(coefficients: Sequence[float], low: float, high: float) -> float:
    """Return where in [low, high] the polynomial (constant first) is least."""
    candidates = [low, *roots(derivative(coefficients), low, high), high]
    return min(candidates, key=lambda x: evaluate(coefficients, x))


def evaluate(coefficients: Sequence[float], x: float) -> float:
    """Return the polynomial's value at x."""
    value = 0.0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def derivative(coefficients: Sequence[float]) -> list[float]:
    """Return the derivative's coefficients, constant first."""
    return [power * coefficient for power, coefficient in enumerate(coefficients)][1:]


def roots(coefficients: Sequence[float], low: float, high: float) -> list[float]:
    """Return where the polynomial is zero or touches zero within [low, high]; none for a constant.

    The zeros of the derivative are returned too where they may be double roots.
    """
    if len(coefficients) < 2:
        return []
    turning = roots(derivative(coefficients), low, high)
    found = list(turning)
    stops = [low, *turning, high]
    for left, right in itertools.pairwise(stops):
        root = _bisect(coefficients, left, right)
        if root is not None:
            found.append(root)
    return sorted(found)


def _bisect(coefficients: Sequence[float], left: float, right: float) -> float | None:
    at_left, at_right = evaluate(coefficients, left), evaluate(coefficients, right)
    if at_left == 0:
        return left
    if at_right == 0:
        return right
    if (at_left < 0) == (at_right < 0):
        return None
    for _ in range(100):
        middle = (left + right) / 2
        if (evaluate(coefficients, middle) < 0) == (at_left < 0):
            left = middle
        else:
            right = middle
    return (left + right) / 2


def _number(value: Any, field: str, low: float, high: float) -> float:
    if not is_number(value) or not low <= value <= high:
        raise bad_field(field, "is missing or out of range", f"a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any, field: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise bad_field(field, "is missing or out of range", f"a whole number from {low} to {high}")
    return value
