"""Functions, coroutines and generators, billed when they have ended.

What they return, yield and raise is passed on as it is, and at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from meter_agent._metered_call import MeteredCall

__all__ = ["wrapped"]

_Bill = Callable[[MeteredCall], None]


def wrapped(function: Callable[..., Any], bill: _Bill) -> Callable[..., Any]:
    """Return what calls *function*, and then *bill*."""
    if inspect.isasyncgenfunction(function):
        return lambda *args, **kwargs: _run_async_generator(
            function(*args, **kwargs), MeteredCall(function, args, kwargs), bill
        )
    if inspect.isgeneratorfunction(function):
        return lambda *args, **kwargs: _run_generator(
            function(*args, **kwargs), MeteredCall(function, args, kwargs), bill
        )
    if inspect.iscoroutinefunction(function):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            call = MeteredCall(function, args, kwargs)
            call.result = await function(*args, **kwargs)
            bill(call)
            return call.result

        return call_async

    def call_now(*args: Any, **kwargs: Any) -> Any:
        call = MeteredCall(function, args, kwargs)
        call.result = function(*args, **kwargs)
        bill(call)
        return call.result

    return call_now


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
