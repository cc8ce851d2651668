"""`canary.route`: a call ends when what it returned has ended, however it was declared."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import types
import warnings
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import Any, Protocol, TypeVar

import pytest

from atlas_worker import canary
from atlas_worker.contract import bucket_milliseconds
from atlas_worker.contract.ring import EventKind, Outcome
from tests.unit.worker.canary_support import Canaries, canaries

__all__ = ["canaries"]

T = TypeVar("T")


@pytest.fixture
def on(canaries: Canaries) -> Canaries:
    canaries.decide({"vision": 1})
    return canaries


class Calls:
    """Started calls, and ended ones by their outcome, as the daemon reads them."""

    def __init__(self, canaries: Canaries) -> None:
        self._canaries = canaries
        self._found: Counter[tuple[EventKind, Outcome]] = Counter()

    def so_far(self) -> tuple[int, dict[Outcome, int]]:
        for event in self._canaries.events():
            self._found[EventKind(event.kind), Outcome(event.outcome)] += 1
        ended = {
            outcome: self._found[EventKind.ENDED, outcome]
            for outcome in Outcome
            if self._found[EventKind.ENDED, outcome]
        }
        return self._found[EventKind.STARTED, Outcome.OK], ended


OPEN: dict[Outcome, int] = {}
GOOD = {Outcome.OK: 1}
FAILED = {Outcome.ERROR: 1}
CANCELLED = {Outcome.CANCELLED: 1}


@pytest.fixture
def calls(on: Canaries) -> Calls:
    return Calls(on)


def routed(new: Any, beside: Any = print) -> Any:
    return canary.route("vision", stable=beside)(new)


async def waits(fails: bool = False) -> str:
    await asyncio.sleep(0)
    if fails:
        raise ValueError("broken")
    return "done"


def behind_a_decorator(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def behind_wraps(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(behind_a_decorator(function))


class AsyncCallable:
    async def __call__(self, fails: bool = False) -> str:
        return await waits(fails)


class Lazy:
    """An awaitable that is no coroutine; it can be awaited again, and has a value of its own."""

    limit = 7

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __await__(self) -> Generator[Any, Any, str]:
        return waits(self.fails).__await__()


@types.coroutine
def old_style(fails: bool = False) -> Generator[Any, Any, str]:
    return (yield from waits(fails).__await__())


class Typed(Protocol):
    def __call__(self, new: T) -> T: ...


beside_waits: Typed = canary.route("vision", stable=waits)  # type: ignore[assignment]  # methods


class Service:
    @beside_waits
    async def plain(self, fails: bool = False) -> str:
        assert isinstance(self, Service)
        return await waits(fails)

    @classmethod
    @beside_waits
    async def of_class(cls, fails: bool = False) -> str:
        assert cls is Service
        return await waits(fails)

    @beside_waits
    @classmethod
    async def of_class_inside(cls, fails: bool = False) -> str:
        assert cls is Service
        return await waits(fails)

    @beside_waits
    @staticmethod
    async def static(fails: bool = False) -> str:
        return await waits(fails)


WAYS: dict[str, Callable[..., Awaitable[str]]] = {
    "async function": routed(waits),
    "behind a decorator": routed(behind_a_decorator(waits)),
    "behind functools.wraps": routed(behind_wraps(behind_a_decorator(waits))),
    "object with async __call__": routed(AsyncCallable()),
    "partial of such an object": routed(functools.partial(AsyncCallable())),
    "lambda": routed(lambda fails=False: waits(fails)),
    "partial": routed(functools.partial(waits)),
    "future": routed(lambda *args: asyncio.ensure_future(waits(*args))),
    "awaitable object": routed(lambda fails=False: Lazy(fails)),
    "types.coroutine": routed(old_style),
    "async function that returns a coroutine": routed(behind_a_decorator(waits)),
    "method": Service().plain,
    "classmethod": Service.of_class,
    "classmethod inside": Service.of_class_inside,
    "staticmethod inside": Service.static,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_ends_when_its_awaitable_has_ended(calls: Calls, way: str) -> None:
    result = WAYS[way]()
    assert calls.so_far()[1] == OPEN
    assert inspect.isawaitable(result)
    assert await result == "done"
    await asyncio.sleep(0)  # a future reports by a callback
    assert calls.so_far() == (1, GOOD)


@pytest.mark.parametrize("way", WAYS)
async def test_an_awaitable_that_raises_is_a_failure(calls: Calls, way: str) -> None:
    with pytest.raises(ValueError, match="broken"):
        await WAYS[way](True)
    await asyncio.sleep(0)
    assert calls.so_far() == (1, FAILED)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("started", [True, False])
async def test_a_cancelled_awaitable_is_no_failure(calls: Calls, way: str, started: bool) -> None:
    async def wait() -> None:
        await WAYS[way]()

    task = asyncio.ensure_future(wait() if started else WAYS[way]())
    if started:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await asyncio.sleep(0)
    if not started and inspect.iscoroutinefunction(WAYS[way]):
        assert calls.so_far() == (0, OPEN)  # the function never began
    elif not started and way == "awaitable object":
        assert calls.so_far()[1] == OPEN  # it was never awaited
    else:
        assert calls.so_far() == (1, CANCELLED)


async def test_an_async_route_measures_until_the_awaitable_has_ended(on: Canaries) -> None:
    @routed
    @behind_a_decorator
    async def new() -> str:
        await asyncio.sleep(0.02)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await new()

    ended = next(event for event in on.events() if event.kind == EventKind.ENDED)
    assert ended.outcome == Outcome.ERROR
    assert bucket_milliseconds(ended.bucket) > 19


@pytest.mark.parametrize("way", ["behind a decorator", "lambda", "partial of such an object"])
def test_a_coroutine_that_is_never_awaited_is_never_a_success(calls: Calls, way: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WAYS[way]()
        gc.collect()
    assert calls.so_far() == (1, OPEN)  # which is a failure after 60 s
    assert ["was never awaited" in str(each.message) for each in caught] == [True]


def test_a_coroutine_closed_before_it_starts_is_cancelled(calls: Calls) -> None:
    coroutine: Any = WAYS["lambda"]()
    coroutine.close()
    del coroutine
    assert calls.so_far() == (1, CANCELLED)


async def test_a_coroutine_stays_a_coroutine_and_a_future_the_same_future(calls: Calls) -> None:
    made: Any = WAYS["lambda"]()
    assert inspect.iscoroutine(made)
    assert isinstance(made, Coroutine)
    assert made.__qualname__ == "waits"
    assert await asyncio.create_task(made) == "done"

    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert routed(lambda: future)() is future
    future.set_result("done")
    await asyncio.sleep(0)
    lazy: Any = WAYS["awaitable object"]()
    assert isinstance(lazy, Lazy)
    assert lazy.limit == 7
    assert [await lazy, await lazy] == ["done", "done"]
    assert calls.so_far() == (3, {Outcome.OK: 3})


async def test_an_exception_of_a_future_that_is_never_retrieved_is_still_logged(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    task = WAYS["future"](True)
    await asyncio.wait([task])  # type: ignore[type-var]  # a task
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert calls.so_far() == (1, FAILED)
    assert "was never retrieved" in caplog.text


def test_a_future_of_an_executor_ends_with_its_work(calls: Calls) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        good = routed(lambda: pool.submit(str, 1))()
        assert good.result(10) == "1"
        bad = routed(lambda: pool.submit(int, "x"))()
        assert isinstance(bad.exception(10), ValueError)
    assert calls.so_far() == (2, GOOD | FAILED)


class Request:
    """As of aiohttp's client: awaitable, a coroutine by its methods, and a context manager."""

    def __init__(self) -> None:
        self._coroutine = waits()

    def __await__(self) -> Generator[Any, Any, str]:
        return self._coroutine.__await__()

    def send(self, value: None) -> Any:
        return self._coroutine.send(value)

    def throw(self, *raised: Any) -> Any:
        return self._coroutine.throw(*raised)

    def close(self) -> None:
        self._coroutine.close()

    async def __aenter__(self) -> str:
        return await self._coroutine

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)


async def test_an_awaitable_context_manager_can_be_used_in_each_way(calls: Calls) -> None:
    request = routed(Request)
    async with request() as text:
        assert text == "done"
        assert calls.so_far() == (1, OPEN)
    assert await request() == "done"
    assert await asyncio.create_task(request()) == "done"
    with pytest.raises(ValueError, match="inside"):
        async with request():
            raise ValueError("inside")
    request().close()
    assert calls.so_far() == (5, {Outcome.OK: 3, Outcome.ERROR: 1, Outcome.CANCELLED: 1})


# Generators.


def gives(fails: bool = False) -> Generator[int, int | None, str]:
    got = yield 1
    if fails:
        raise ValueError("broken")
    yield got or 2
    return "end"


async def streams(fails: bool = False) -> AsyncGenerator[int, int | None]:
    got = yield 1
    if fails:
        raise ValueError("broken")
    await asyncio.sleep(0)
    yield got or 2


def generator(declared: bool) -> Any:
    return routed(gives, beside=gives if declared else print)


def async_generator(declared: bool) -> Any:
    return routed(streams, beside=streams if declared else print)


both = pytest.mark.parametrize("declared", [True, False])


@both
def test_a_generator_ends_when_it_is_exhausted(calls: Calls, declared: bool) -> None:
    made = generator(declared)()
    assert isinstance(made, types.GeneratorType)
    assert next(made) == 1
    assert calls.so_far() == (1, OPEN)
    assert made.send(5) == 5
    with pytest.raises(StopIteration) as caught:
        next(made)
    assert caught.value.value == "end"
    assert calls.so_far() == (1, GOOD)
    with pytest.raises(ValueError, match="broken"):
        list(generator(declared)(True))
    assert calls.so_far() == (2, GOOD | FAILED)


@both
@pytest.mark.parametrize("end", ["close", "collect"])
def test_a_generator_closed_early_is_cancelled(calls: Calls, declared: bool, end: str) -> None:
    made = generator(declared)()
    next(made)
    if end == "close":
        made.close()
    del made
    assert calls.so_far() == (1, CANCELLED)


@both
@pytest.mark.parametrize("end", ["close", "collect"])
def test_a_generator_that_never_starts_is_no_success(
    calls: Calls, declared: bool, end: str
) -> None:
    made = generator(declared)()
    if end == "close":
        made.close()
    del made
    assert calls.so_far() == ((0, OPEN) if declared else (1, CANCELLED))


@both
def test_an_exception_thrown_into_a_generator_reaches_it(calls: Calls, declared: bool) -> None:
    def catches() -> Iterator[str]:
        try:
            yield "first"
        except KeyError:
            yield "caught"

    made: Any = routed(catches, catches if declared else print)()
    next(made)
    assert made.throw(KeyError()) == "caught"
    assert list(made) == []
    made = generator(declared)()
    next(made)
    with pytest.raises(KeyError):
        made.throw(KeyError())
    assert calls.so_far() == (2, GOOD | FAILED)


@both
async def test_an_async_generator_ends_when_it_is_exhausted(calls: Calls, declared: bool) -> None:
    made = async_generator(declared)()
    assert isinstance(made, types.AsyncGeneratorType)
    assert await made.__anext__() == 1
    assert calls.so_far() == (1, OPEN)
    assert await made.asend(5) == 5
    assert [each async for each in made] == []
    assert calls.so_far() == (1, GOOD)
    with pytest.raises(ValueError, match="broken"):
        _ = [each async for each in async_generator(declared)(True)]
    assert calls.so_far() == (2, GOOD | FAILED)


@both
@pytest.mark.parametrize("end", ["close", "collect"])
@pytest.mark.parametrize("started", [True, False])
async def test_an_async_generator_closed_early_is_cancelled(
    calls: Calls, declared: bool, end: str, started: bool
) -> None:
    made = async_generator(declared)()
    if started:
        await made.__anext__()
    if end == "close":
        await made.aclose()
    del made
    gc.collect()
    for _ in range(5):  # the loop closes what was collected
        await asyncio.sleep(0)
    assert calls.so_far() == ((1, CANCELLED) if started or not declared else (0, OPEN))


@both
async def test_an_async_generator_cleans_up_when_its_consumer_is_cancelled(
    calls: Calls, declared: bool
) -> None:
    cleaned: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(60)
        finally:
            cleaned.append("inner")

    async def consume() -> None:
        async for _ in routed(endless, endless if declared else print)():
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["inner"]
    assert calls.so_far() == (1, CANCELLED)


@both
async def test_an_async_generator_serves_as_a_context_manager(calls: Calls, declared: bool) -> None:
    async def resource() -> AsyncIterator[str]:
        with contextlib.suppress(KeyError):
            yield "open"

    made: Any = routed(resource, resource if declared else print)
    async with contextlib.asynccontextmanager(made)() as value:
        assert value == "open"
        raise KeyError
    assert calls.so_far() == (1, GOOD)


async def test_a_generator_that_an_async_function_returned_is_followed(calls: Calls) -> None:
    @routed
    async def new() -> AsyncGenerator[int, int | None]:
        return streams()

    stream = await new()
    assert calls.so_far() == (1, OPEN)
    assert [each async for each in stream] == [1, 2]
    assert calls.so_far() == (1, GOOD)


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError])
def test_a_call_left_by_a_closed_generator_is_no_success(
    calls: Calls, kind: type[BaseException]
) -> None:
    def stream() -> Iterator[int]:
        with canary.call("vision"):
            yield 1
            yield 2

    made: Any = stream()
    next(made)
    with contextlib.suppress(asyncio.CancelledError):
        made.close() if kind is GeneratorExit else made.throw(kind)
    assert calls.so_far() == (1, CANCELLED)


# Plain functions.


def test_a_route_calls_the_arm_that_was_decided(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})

    def old(number: int, *, twice: bool = False) -> str:
        return f"old {number} {twice}"

    @canary.route("vision", stable=old)
    def new(number: int, *, twice: bool = False) -> str:
        """Documented."""
        return f"new {number} {twice}"

    assert new.__doc__ == "Documented."
    assert {new(1, twice=True) for _ in range(200)} == {"old 1 True", "new 1 True"}
    assert canaries.kinds() == {EventKind.STARTED: 200, EventKind.ENDED: 200}


@pytest.mark.parametrize("result", [None, 0, "text", object(), [1], iter([1]), {}])
def test_any_other_result_is_returned_as_it_is_and_has_ended(calls: Calls, result: Any) -> None:
    assert routed(lambda: result)() is result
    assert calls.so_far() == (1, GOOD)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(ValueError, FAILED), (StopIteration, FAILED), (KeyboardInterrupt, CANCELLED)],
)
def test_a_plain_function_that_raises_has_ended(
    calls: Calls, kind: type[BaseException], outcome: dict[Outcome, int]
) -> None:
    def new() -> None:
        raise kind

    with pytest.raises(kind):
        routed(new)()
    assert calls.so_far() == (1, outcome)


# The kind of function.


def test_a_routed_function_is_declared_as_its_implementations_are() -> None:
    assert inspect.iscoroutinefunction(routed(waits))
    assert inspect.iscoroutinefunction(routed(functools.partial(waits)))
    assert inspect.iscoroutinefunction(routed(AsyncCallable()))
    assert inspect.iscoroutinefunction(routed(print, beside=waits))
    assert inspect.iscoroutinefunction(Service().plain)
    assert inspect.isasyncgenfunction(async_generator(declared=True))
    assert inspect.isgeneratorfunction(generator(declared=True))
    assert not inspect.iscoroutinefunction(routed(behind_a_decorator(waits)))
    assert not inspect.isgeneratorfunction(routed(print))


async def test_an_async_canary_beside_a_plain_stable_is_awaited(canaries: Canaries) -> None:
    canaries.decide({"vision": 0})
    assert await routed(waits, beside=lambda: "old")() == "old"


@pytest.mark.parametrize(
    ("new", "stable"), [(print, 7), (7, print), (gives, waits), (streams, gives), (waits, streams)]
)
def test_a_route_that_can_not_be_used_is_refused_when_decorating(new: Any, stable: Any) -> None:
    with pytest.raises(TypeError):
        canary.route("vision", stable=stable)(new)
