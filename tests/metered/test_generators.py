"""Coroutines and generators: when they are billed, and that everything passes through."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest

import meter_agent
from meter_agent import MeteredCall, metered
from meter_agent.testing import RecordedEvents
from tests.metered.conftest import billed

# -- coroutines --------------------------------------------------------------------------------


@metered("chats", customer="cus_1", value=lambda call: len(call.result))
async def chat(prompt: str) -> str:
    await asyncio.sleep(0)
    if not prompt:
        raise LookupError
    return prompt


def test_a_coroutine_is_billed_when_it_has_returned(events: RecordedEvents) -> None:
    assert inspect.iscoroutinefunction(chat), "frameworks ask"
    coroutine = chat("four")
    assert events.all == []
    assert asyncio.run(coroutine) == "four"
    assert billed(events) == [("chats", "cus_1", "4")]


def test_a_coroutine_that_raises_or_is_cancelled_is_not_billed(events: RecordedEvents) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(chat("four"))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(LookupError):
        asyncio.run(chat(""))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert events.all == []


# -- generators --------------------------------------------------------------------------------


def sums(call: MeteredCall) -> Any:
    return f"{call.items}.{call.last or 0}"


@metered("chunks", customer="cus_1", value=sums)
def count(until: int, *, fail: bool = False) -> Generator[int, Any, str]:
    got = 0
    while got < until:
        try:
            sent = yield got + 1
            got = sent or got + 1
        except KeyError:
            got = until - 1
    if fail:
        raise LookupError
    return "done"


def test_a_generator_is_billed_when_it_has_ended(events: RecordedEvents) -> None:
    generator = count(3)
    assert [next(generator), next(generator)] == [1, 2]
    assert events.all == []
    assert list(generator) == [3]
    assert billed(events) == [("chunks", "cus_1", "3.3")]


def test_what_is_sent_thrown_and_returned_passes_through(events: RecordedEvents) -> None:
    result: list[Any] = []

    def outer() -> Generator[int, Any, None]:
        result.append((yield from count(9)))

    generator = outer()
    assert [next(generator), generator.send(5), generator.throw(KeyError())] == [1, 6, 9]
    assert list(generator) == []
    assert result == ["done"]
    assert billed(events) == [("chunks", "cus_1", "3.9")]


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_generator_that_is_stopped_early_is_billed_for_what_it_yielded(
    events: RecordedEvents, how: str
) -> None:
    generator = count(3)
    next(generator)
    if how == "close":
        generator.close()
    del generator
    gc.collect()
    assert billed(events) == [("chunks", "cus_1", "1.1")]


def test_a_generator_that_fails_or_is_never_run_is_not_billed(events: RecordedEvents) -> None:
    with pytest.raises(LookupError):
        list(count(2, fail=True))
    generator = count(2)
    next(generator)
    with pytest.raises(ZeroDivisionError):
        generator.throw(ZeroDivisionError())
    count(2).close()
    assert events.all == []


def test_a_generator_that_yields_nothing_is_billed_when_it_ended_by_itself(
    events: RecordedEvents,
) -> None:
    assert list(count(0)) == []
    assert billed(events) == [("chunks", "cus_1", "0")]


def test_a_generator_that_will_not_close_says_so_as_ever(events: RecordedEvents) -> None:
    @metered("chunks", customer="cus_1")
    def stubborn() -> Generator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()
    assert events.all == []


def test_a_generator_is_billed_to_the_block_in_which_it_was_made(events: RecordedEvents) -> None:
    @metered("chunks")
    def stream() -> Generator[int]:
        yield 1

    @metered("chunks")
    async def stream_async() -> AsyncGenerator[int]:
        yield 1

    async def run(generator: AsyncGenerator[int]) -> None:
        async for _ in generator:
            pass

    with meter_agent.customer("cus_1"):
        made, made_async = stream(), stream_async()
    list(made)
    asyncio.run(run(made_async))
    assert len(events.assert_recorded("chunks", customer="cus_1")) == 2


# -- async generators --------------------------------------------------------------------------


@metered("chunks", customer="cus_1", value=sums)
async def acount(until: int) -> AsyncGenerator[int, Any]:
    got = 0
    while got < until:
        try:
            sent = yield got + 1
            got = sent or got + 1
        except KeyError:
            got = until - 1
        await asyncio.sleep(0)
    if until == 13:
        raise LookupError


def run(steps: Callable[[AsyncGenerator[int, Any]], Any], until: int = 3) -> Any:
    async def main() -> Any:
        return await steps(acount(until))

    return asyncio.run(main())


async def drain(generator: AsyncGenerator[int, Any]) -> list[int]:
    return [item async for item in generator]


def test_an_async_generator_is_billed_when_it_has_ended(events: RecordedEvents) -> None:
    assert run(drain) == [1, 2, 3]
    assert billed(events) == [("chunks", "cus_1", "3.3")]


def test_what_is_sent_and_thrown_into_an_async_generator_passes_through(
    events: RecordedEvents,
) -> None:
    async def steps(generator: AsyncGenerator[int, Any]) -> list[int]:
        first, second = await generator.__anext__(), await generator.asend(5)
        return [first, second, await generator.athrow(KeyError()), *await drain(generator)]

    assert run(steps, until=9) == [1, 6, 9]
    assert billed(events) == [("chunks", "cus_1", "3.9")]


def test_an_async_generator_that_is_closed_early_is_billed_for_what_it_yielded(
    events: RecordedEvents,
) -> None:
    async def steps(generator: AsyncGenerator[int, Any]) -> None:
        await generator.__anext__()
        await generator.aclose()

    run(steps)
    assert billed(events) == [("chunks", "cus_1", "1.1")]


def test_an_async_generator_that_is_closed_has_run_its_own_end(events: RecordedEvents) -> None:
    ended: list[int] = []

    @metered("chunks", customer="cus_1")
    async def stream() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(len(events.all))

    async def main() -> None:
        generator = stream()
        await generator.__anext__()
        await generator.aclose()
        assert ended == [0]

    asyncio.run(main())
    assert len(events.all) == 1


@pytest.mark.parametrize(("after", "expected"), [(0, []), (1, [("chunks", "cus_1", "1.1")])])
def test_a_task_that_is_cancelled_in_an_async_generator_pays_for_what_it_got(
    events: RecordedEvents, after: int, expected: list[tuple[str, str, str]]
) -> None:
    @metered("chunks", customer="cus_1", value=sums)
    async def stream() -> AsyncGenerator[int]:
        for number in range(after):
            yield number + 1
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(drain(stream()))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert billed(events) == expected


def test_an_async_generator_that_fails_or_is_never_run_is_not_billed(
    events: RecordedEvents,
) -> None:
    async def steps(generator: AsyncGenerator[int, Any]) -> None:
        await generator.aclose()

    with pytest.raises(LookupError):
        run(drain, until=13)
    run(steps)
    assert events.all == []


def test_partial_objects_and_wrapped_functions_are_told_apart_by_what_they_are(
    events: RecordedEvents,
) -> None:
    assert asyncio.run(metered("c", customer="cus_1")(functools.partial(chat, "four"))()) == "four"
    assert len(events.all) == 2


def test_the_arguments_of_a_partial_object_are_those_of_its_function(
    events: RecordedEvents,
) -> None:
    partial = functools.partial(functools.partial(count, 2), fail=False)
    call = metered("c", customer=lambda call: f"cus_{call.arguments['until']}")(partial)
    assert list(call()) == [1, 2]
    assert list(call(fail=False)) == [1, 2]
    assert [event.customer for event in events.all if event.event_name == "c"] == ["cus_2"] * 2


def test_each_decorator_of_a_generator_function_bills(events: RecordedEvents) -> None:
    twice = metered("outer", customer="cus_1")(metered("inner", customer="cus_2")(range_of))
    assert list(twice(3)) == [0, 1, 2]
    assert billed(events) == [("inner", "cus_2", "1"), ("outer", "cus_1", "1")]


def range_of(number: int) -> Generator[int, None, None]:
    yield from range(number)


class Coroutine:
    async def __call__(self, text: str) -> str:
        return await chat(text)


class Items:
    def __call__(self, number: int) -> Generator[int, None, None]:
        return range_of(number)


class AsyncItems:
    async def __call__(self, number: int) -> AsyncGenerator[int, None]:
        for each in range(number):
            yield each


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """As a decorator does that knows of plain functions alone."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


def test_a_call_that_gives_a_coroutine_is_billed_when_that_has_returned(
    events: RecordedEvents,
) -> None:
    length: Any = metered("calls", customer="cus_1", value=lambda call: len(call.result))
    for function in (Coroutine(), functools.partial(Coroutine()), passed_on(chat)):
        assert asyncio.run(length(function)("four")) == "four"
        with pytest.raises(LookupError):
            asyncio.run(length(function)(""))
    assert [each for each in billed(events) if each[0] == "calls"] == [("calls", "cus_1", "4")] * 3


def test_a_call_that_gives_a_generator_is_billed_when_that_has_ended(
    events: RecordedEvents,
) -> None:
    by_items: Any = metered("calls", customer="cus_1", value=lambda call: call.items)
    for function in (Items(), functools.partial(Items()), passed_on(range_of)):
        assert list(by_items(function)(3)) == [0, 1, 2]
    assert asyncio.run(drain(by_items(AsyncItems())(3))) == [0, 1, 2]
    assert billed(events) == [("calls", "cus_1", "3")] * 4


# -- what inspect and pickle make of them ----------------------------------------------------------


class Shop:
    @metered("items", customer="cus_1")
    def items(self) -> Generator[int, None, None]:
        """Items."""
        yield 1

    @metered("items", customer="cus_1")
    async def aitems(self) -> AsyncGenerator[int, None]:
        yield 1

    @classmethod
    @metered("items", customer="cus_1")
    def of_class(cls) -> Generator[int, None, None]:
        yield 2

    @staticmethod
    @metered("items", customer="cus_1")
    def static(number: int = 3) -> Generator[int, None, None]:
        yield number


@metered("items", customer="cus_1")
def plain() -> int:
    return 1


KINDS = [inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (count, inspect.isgeneratorfunction),
        (Shop.items, inspect.isgeneratorfunction),
        (Shop().items, inspect.isgeneratorfunction),
        (Shop.of_class, inspect.isgeneratorfunction),
        (Shop.static, inspect.isgeneratorfunction),
        (functools.partial(count, 3), inspect.isgeneratorfunction),
        (metered("c", customer="c")(functools.partial(count, 3)), inspect.isgeneratorfunction),
        (metered("c", customer="c")(count), inspect.isgeneratorfunction),
        (acount, inspect.isasyncgenfunction),
        (Shop().aitems, inspect.isasyncgenfunction),
        (chat, inspect.iscoroutinefunction),
        (plain, None),
    ],
)
def test_a_metered_function_is_to_inspect_what_it_was(
    function: Callable[..., Any], kind: Callable[..., bool] | None
) -> None:
    assert [each(function) for each in KINDS] == [each is kind for each in KINDS]


def test_a_metered_generator_function_works_as_a_method(events: RecordedEvents) -> None:
    shop = Shop()
    assert [
        *shop.items(),
        *Shop.items(shop),
        *Shop.of_class(),
        *shop.static(),
        *Shop.static(4),
    ] == [*(1, 1, 2, 3, 4)]
    assert len(events.all) == 5
    assert asyncio.run(drain(shop.aitems())) == [1]


def test_a_metered_generator_function_keeps_name_signature_and_source() -> None:
    assert (Shop.items.__name__, Shop.items.__doc__) == ("items", "Items.")
    assert inspect.signature(Shop.static).parameters["number"].default == 3
    assert "yield number" in inspect.getsource(Shop.static)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Shop.static(nothing=1)  # type: ignore[call-arg]


def test_a_metered_generator_function_is_pickled_and_copied_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(count)) is count
    assert copy.deepcopy(count) is count
