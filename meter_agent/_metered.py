"""Metering as a decorator: one event for each call that ended well.

Guarantees:

* What the function returns, yields and raises is passed on as it is, and at once.
* A mistake in the metering is not an error of the call. A customer or value that cannot be worked
  out is recorded as it is, so that it ends where every invalid event ends: as a dead letter that
  names it, or, in strict mode, as an `InvalidEventError`.

Imported by the first use of one of its names, not by `import meter_agent`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, TypeVar

from meter_agent import _default
from meter_agent._agent import MeterAgent

__all__ = ["MeteredCall", "customer", "metered"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_Bill = Callable[["MeteredCall"], None]

_customer: ContextVar[str | None] = ContextVar("meter_agent_customer", default=None)


@contextmanager
def customer(customer_id: str) -> Iterator[None]:
    """Bill to *customer_id* what `metered` functions use within the block, unless they say whom.

    It holds for the current thread or asyncio task and the tasks that it starts, and blocks may be
    nested. `record()` takes no notice of it.

    Example:
        >>> import meter_agent
        >>> @meter_agent.metered("reports_built")
        ... def build_report() -> str:
        ...     return "report"
        >>> with meter_agent.customer("cus_123"):
        ...     build_report()  # billed to cus_123
        'report'
    """
    before = _customer.get()
    _customer.set(customer_id)
    try:
        yield
    finally:
        # Not `reset()`, which raises where a generator is closed in another context.
        _customer.set(before)


class MeteredCall:
    """One call of a metered function, when it has ended; what *customer* and *value* are asked."""

    __slots__ = ("_args", "_customer", "_function", "_kwargs", "items", "last", "result")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        # Now: a generator is often run after the block in which it was made.
        self._customer = _customer.get()
        self.result: Any = None
        """What it returned; None for a generator that was not run to its end."""
        self.items = 0
        """How many items a generator has yielded."""
        self.last: Any = None
        """The last of them."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        bound = _signature(self._function).bind(*self._args, **self._kwargs)
        bound.apply_defaults()
        return bound.arguments


_signature = functools.lru_cache(maxsize=1024)(inspect.signature)


def metered(
    event_name: str,
    *,
    customer: str | Callable[[MeteredCall], str] | None = None,
    value: float | Decimal | str | Callable[[MeteredCall], float | Decimal | str] = 1,
    identifier: Callable[[MeteredCall], str] | None = None,
    agent: MeterAgent | None = None,
) -> Callable[[_Function], _Function]:
    """Record one event for each call of the decorated function that ends without an exception.

    Functions, coroutine functions, generator functions and async generator functions are told
    apart. A generator is billed when it has ended, and also when its consumer stops early or its
    task is cancelled, if it has yielded anything by then. A call that raises is not billed.

    Args:
        event_name: The meter's event name.
        customer: Whom to bill, or what works it out from the `MeteredCall`. None: the customer of
            the `customer()` block in which the function was called.
        value: How much, or what works it out from the `MeteredCall`.
        identifier: Works out what Stripe deduplicates by, for calls that may be repeated. None:
            each call is billed.
        agent: None: the default agent.

    Raises:
        TypeError: It does not decorate a function, or has no event name.
        InvalidEventError: From the call, in strict mode only: the event is invalid, or one of the
            functions given here raised an exception, which is then its cause. Otherwise such an
            event becomes a dead letter, and the call is not disturbed.

    Example:
        >>> import meter_agent
        >>> @meter_agent.metered(
        ...     "output_tokens",
        ...     customer=lambda call: call.arguments["user"],
        ...     value=lambda call: len(call.result.split()),
        ... )
        ... def answer(prompt: str, user: str) -> str:
        ...     return "three short words"
        >>> answer("Hello?", user="cus_123")
        'three short words'
    """
    if not isinstance(event_name, str):
        raise TypeError('metered() needs the name of an event: @metered("api_requests")')

    def decorate(function: _Function) -> _Function:
        if not callable(function):
            raise TypeError(
                f"metered() decorates a function, not {type(function).__name__}: put it below"
                " @classmethod, @staticmethod and @property"
            )
        return functools.wraps(function)(_wrapper(function, bill))  # type: ignore[return-value]

    def bill(call: MeteredCall) -> None:
        bill_chosen(
            _default.record if agent is None else agent.record,
            event_name,
            call._customer if customer is None else chosen(customer, call),  # noqa: SLF001
            chosen(value, call),
            None if identifier is None else chosen(identifier, call),
        )

    return decorate


def _wrapper(function: Callable[..., Any], bill: _Bill) -> Callable[..., Any]:
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


def chosen(wanted: Any, asked: Any) -> Any:
    """Return *wanted*, or what it answers about *asked*; its exception if it raises one."""
    if not callable(wanted):
        return wanted
    try:
        return wanted(asked)
    except Exception as error:  # noqa: BLE001 - code of the application
        return error.with_traceback(None)  # the event may wait, and is not to keep the frames


def bill_chosen(
    record: Callable[..., bool], event_name: str, customer: Any, value: Any, identifier: Any = None
) -> None:
    """Record what `chosen()` returned.

    Raises:
        InvalidEventError: In strict mode; an exception that `chosen()` caught is its cause.
    """
    caught = [each for each in (customer, value, identifier) if isinstance(each, Exception)]
    try:
        record(event_name, customer, value, identifier=identifier)
    except Exception as error:
        if caught:
            raise error from caught[0]
        raise
