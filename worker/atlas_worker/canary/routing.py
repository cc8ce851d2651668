"""`canary.route`: a call of a routed function lasts until what it returned has ended.

How a function was declared does not show whether its work is done when it returns: a decorator, a
lambda or an object may return a coroutine. So the result is examined. A coroutine, a generator or
an async generator is replaced by one of the same type that runs it and then reports the outcome; a
future reports it by a callback, and is returned itself; another awaitable is returned in a proxy.
Everything else has ended. Where the functions are declared as coroutine or generator functions, so
is the routed one: frameworks examine it.

A coroutine or generator that is closed before it starts never runs, so its replacement can't report
that. `_Unstarted` does: it is an argument of the replacement, and is deleted with its frame.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import CoroutineType, GeneratorType
from typing import Any, ParamSpec, TypeVar

from atlas_worker.canary.calls import Call

P = ParamSpec("P")
T = TypeVar("T")
Begin = Callable[..., tuple[Call, Any]]
"""Returns a call that has started, and what the implementation returned."""

_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
_ITERABLE_COROUTINE = 0x100  # the flag of a generator that `types.coroutine` made awaitable


def route(feature: str, *, stable: Callable[P, T]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate the canary of a feature: each call is served by it or by `stable`.

    A call ends when what it returned has ended: an awaitable when it was awaited, a generator when
    it is exhausted or closed. If either is an async function, so is the routed one. Raises
    TypeError when decorating for what can't be called, and for a generator beside a coroutine.
    """

    def decorate(new: Callable[P, T]) -> Callable[P, T]:
        if isinstance(new, classmethod | staticmethod):
            wrapped: Any = type(new)(decorate(new.__func__))
            return wrapped  # type: ignore[no-any-return]  # a class attribute, called once bound
        old = stable.__func__ if isinstance(stable, classmethod | staticmethod) else stable
        declared = [_declared(new), _declared(old)]
        kinds = {kind for kind in declared if kind is not None}
        if len(kinds) > 1:
            raise TypeError(f"{feature}: canary and stable must return the same kind of result")

        def begin(*args: Any, **kwargs: Any) -> tuple[Call, Any]:
            call = Call(feature).__enter__()
            try:
                return call, (new if call.is_canary else old)(*args, **kwargs)
            except BaseException as error:
                _end(call, error)
                raise

        if _coroutine in kinds or (kinds and None not in declared):
            routed = kinds.pop()(begin)
        else:

            def routed(*args: Any, **kwargs: Any) -> Any:
                return _followed(*begin(*args, **kwargs))

        return functools.wraps(new)(routed)

    return decorate


def _declared(function: Any) -> Callable[[Begin], Callable[..., Any]] | None:
    """Return the factory for what a function is declared as; None if it may return anything."""
    import inspect  # noqa: PLC0415 - most applications never decorate anything

    if not callable(function):
        raise TypeError(f"{function!r} is not a function")
    for each in (function, type(function).__call__):  # an object may have an `async __call__`
        if inspect.iscoroutinefunction(each):
            return _coroutine
        if inspect.isasyncgenfunction(each):
            return _async_generator
        if inspect.isgeneratorfunction(each):
            return _generator
    return None


def _end(call: Call, error: BaseException | None = None) -> None:
    call.__exit__(None if error is None else type(error), error, None)


# Functions that report the outcome of what they run.


def _coroutine(begin: Begin) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        call, result = begin(*args, **kwargs)
        if _is_awaitable(result):
            try:
                result = await result
            except BaseException as error:
                _end(call, error)
                raise
        return _followed(call, result)

    return coroutine


def _generator(begin: Begin) -> Callable[..., Generator[Any, Any, Any]]:
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call, inner = begin(*args, **kwargs)
        try:
            result = yield from inner
        except BaseException as error:
            _end(call, error)
            raise
        _end(call)
        return result

    return generator


def _async_generator(begin: Begin) -> Callable[..., AsyncGenerator[Any, Any]]:
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call, inner = begin(*args, **kwargs)
        try:
            value = await inner.__anext__()
            while True:
                try:
                    sent = yield value
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown by the consumer
                    value = await inner.athrow(error)
                else:
                    value = await inner.asend(sent)
        except StopAsyncIteration:
            _end(call)
        except BaseException as error:
            _end(call, error)
            raise

    return generator


class _Unstarted:
    """The call of a replacement that has not started; ends it if it never does.

    A replacement that is closed or thrown into is alive when its frame is deleted, and its call was
    cancelled. One that is deleted was never awaited: its call stays open, so it fails after 60 s.
    For a generator that is the same as being closed.
    """

    __slots__ = ("call", "inner", "replacement")
    replacement: weakref.ref[Any]

    def __init__(self, call: Call, inner: Any) -> None:
        self.call: Call | None = call
        self.inner = inner

    def begin(self) -> tuple[Call, Any]:
        call, self.call = self.call, None
        inner, self.inner = self.inner, None
        if call is None:
            raise RuntimeError("the replacement has started before")
        return call, inner

    def __del__(self) -> None:
        if self.call is None:
            return
        call, inner = self.begin()
        try:
            if close := getattr(inner, "close", None):
                close()
        finally:
            if self.replacement() is not None or not _is_awaitable(inner):
                _end(call, GeneratorExit())


_run_coroutine = _coroutine(_Unstarted.begin)
_run_generator = _generator(_Unstarted.begin)
_run_async_generator = _async_generator(_Unstarted.begin)


# What a call returned.


def _followed(call: Call, result: Any) -> Any:
    """Return the result, or what stands for it, such that the call ends with it."""
    if type(result) in _PLAIN:
        _end(call)
    elif _is_future(result):
        result.add_done_callback(functools.partial(_on_done, call))
    elif _is_awaitable(result):
        return _replaced_awaitable(call, result)
    elif isinstance(result, Generator):
        return _replaced(_run_generator, call, result)
    elif isinstance(result, AsyncGenerator):
        return _replaced(_run_async_generator, call, result)
    else:
        _end(call)
    return result


def _replaced_awaitable(call: Call, result: Any) -> Any:
    if hasattr(type(result), "__aenter__"):
        return _AwaitableContext(call, result)
    if isinstance(result, Coroutine | GeneratorType):
        return _replaced(_run_coroutine, call, result)
    return _Awaitable(call, result)


def _replaced(run: Callable[[_Unstarted], Any], call: Call, inner: Any) -> Any:
    unstarted = _Unstarted(call, inner)
    replacement = run(unstarted)
    unstarted.replacement = weakref.ref(replacement)
    for name in ("__name__", "__qualname__"):
        setattr(replacement, name, getattr(inner, name, type(inner).__name__))
    return replacement


def _is_awaitable(result: Any) -> bool:
    kind = type(result)
    if kind is GeneratorType:
        return bool(result.gi_code.co_flags & _ITERABLE_COROUTINE)
    return kind is CoroutineType or hasattr(kind, "__await__")


def _is_future(result: Any) -> bool:
    if hasattr(type(result), "_asyncio_future_blocking"):
        return True
    futures = sys.modules.get("concurrent.futures")
    return futures is not None and isinstance(result, futures.Future)


def _on_done(call: Call, future: Any) -> None:
    if future.cancelled():
        _end(call, GeneratorExit())
    else:
        # `exception()` would keep asyncio from logging an exception that is never retrieved.
        _end(call, future._exception)  # noqa: SLF001


class _Awaitable:
    """Stands for an awaitable object that is not a coroutine; everything else is its own."""

    def __init__(self, call: Call, inner: Any) -> None:
        self._atlas_call = call
        self._atlas_inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._atlas_inner, name)

    @property  # type: ignore[misc]  # mypy takes it for a type; `isinstance` asks for it
    def __class__(self) -> Any:
        return type(self._atlas_inner)

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            result = yield from self._atlas_inner.__await__()
        except BaseException as error:
            _end(self._atlas_call, error)
            raise
        return _followed(self._atlas_call, result)


class _AwaitableContext(_Awaitable):
    """One that is an async context manager too, as of aiohttp's client; leaving it ends the call.

    Some are coroutines by their methods, so a task can be made of them.
    """

    async def __aenter__(self) -> Any:
        try:
            return await self._atlas_inner.__aenter__()
        except BaseException as error:
            _end(self._atlas_call, error)
            raise

    async def __aexit__(self, *raised: Any) -> Any:
        try:
            return await self._atlas_inner.__aexit__(*raised)
        except BaseException as error:
            _end(self._atlas_call, error)
            raise
        finally:
            _end(self._atlas_call, raised[1])

    def send(self, value: Any) -> Any:
        return self._step(self._atlas_inner.send, value)

    def throw(self, *raised: Any) -> Any:
        return self._step(self._atlas_inner.throw, *raised)

    def close(self) -> None:
        self._atlas_inner.close()
        _end(self._atlas_call, GeneratorExit())

    def _step(self, step: Callable[..., Any], *values: Any) -> Any:
        try:
            return step(*values)
        except StopIteration:
            _end(self._atlas_call)
            raise
        except BaseException as error:
            _end(self._atlas_call, error)
            raise
