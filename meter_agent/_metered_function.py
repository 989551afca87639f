"""Functions, coroutines and generators, billed when they have ended.

What they return, yield and raise is passed on as it is, and at once.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from meter_agent._metered_call import MeteredCall

__all__ = ["wrapped"]

_Bill = Callable[[MeteredCall], None]


def wrapped(function: Callable[..., Any], bill: _Bill) -> Callable[..., Any]:
    """Return what calls *function*, and then *bill*."""
    if inspect.isasyncgenfunction(function):
        return GeneratorFunction(function, bill, _run_async_generator)
    if inspect.isgeneratorfunction(function):
        return GeneratorFunction(function, bill, _run_generator)
    if inspect.iscoroutinefunction(function):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            call = MeteredCall(function, args, kwargs)
            return await _run_coroutine(function(*args, **kwargs), call, bill)

        return call_async

    def call_now(*args: Any, **kwargs: Any) -> Any:
        call = MeteredCall(function, args, kwargs)
        result = function(*args, **kwargs)
        run = _RUN.get(type(result))
        if run is not None:
            return run(result, call, bill)
        call.result = result
        bill(call)
        return result

    return call_now


class GeneratorFunction:
    """A generator function that runs code of ours when it is called.

    A function that yields runs nothing before its first item is asked for; but whom a generator is
    billed to, and whether its arguments are right, is known when it is made. So this is an object
    that looks like a function: `inspect` goes by the attributes of one, `__code__` above all.
    """

    # Not in `__dict__`, which `functools.wraps` copies: another decorator around this object would
    # get the function and the bill of this one.
    __slots__ = ("__dict__", "_bill", "_function", "_run")

    def __init__(self, function: Callable[..., Any], bill: _Bill, run: Callable[..., Any]) -> None:
        self._function, self._bill, self._run = function, bill, run
        # Those of *function*, if it has them; a partial object has none.
        self.__name__ = self.__qualname__ = "generator"
        self.__code__ = getattr(function, "__code__", run.__code__)
        self.__defaults__ = self.__kwdefaults__ = None
        self.__annotations__: dict[str, Any] = {}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        call = MeteredCall(self._function, args, kwargs)
        return self._run(self._function(*args, **kwargs), call, self._bill)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__  # by its name, as functions are pickled

    def __repr__(self) -> str:
        return f"<metered generator function {self.__qualname__}>"


def _run_generator(
    generator: Generator[Any, Any, Any], call: MeteredCall, bill: _Bill
) -> Generator[Any, Any, Any]:
    step: Callable[[], Any] = generator.__next__
    with _billing(call, bill):
        while True:
            try:
                call.last = step()
            except StopIteration as end:
                call.result = end.value
                break
            call.items += 1
            try:
                step = functools.partial(generator.send, (yield call.last))
            except GeneratorExit:
                generator.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the generator's to handle
                step = functools.partial(generator.throw, error)
    return call.result


async def _run_async_generator(
    generator: AsyncGenerator[Any, Any], call: MeteredCall, bill: _Bill
) -> AsyncGenerator[Any, Any]:
    step: Callable[[], Any] = generator.__anext__
    with _billing(call, bill):
        while True:
            try:
                call.last = await step()
            except StopAsyncIteration:
                break
            call.items += 1
            try:
                step = functools.partial(generator.asend, (yield call.last))
            except GeneratorExit:
                await generator.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - the generator's to handle
                step = functools.partial(generator.athrow, error)


async def _run_coroutine(
    coroutine: Coroutine[Any, Any, Any], call: MeteredCall, bill: _Bill
) -> Any:
    call.result = await coroutine
    bill(call)
    return call.result


# What a call may give back that has not ended yet. Not only a function of its kind gives one: so do
# an object whose `__call__` is one, and the plain function of a decorator around one.
_RUN: dict[type, Callable[..., Any]] = {
    types.CoroutineType: _run_coroutine,
    types.GeneratorType: _run_generator,
    types.AsyncGeneratorType: _run_async_generator,
}


@contextmanager
def _billing(call: MeteredCall, bill: _Bill) -> Iterator[None]:
    """Bill when a generator has ended, or was stopped from outside after it had yielded."""
    try:
        yield
    except Exception:
        raise
    except BaseException:  # closed or cancelled: what was yielded was used
        if call.items:
            bill(call)
        raise
    bill(call)
