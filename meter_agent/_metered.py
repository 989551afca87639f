"""Metering as a decorator: one event for each call that ended well.

Imported by the first use of one of its names, not by `import meter_agent`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from meter_agent import _default
from meter_agent._agent import MeterAgent
from meter_agent._choice import bill_chosen, chosen
from meter_agent._customer import customer
from meter_agent._metered_call import MeteredCall
from meter_agent._metered_function import wrapped

__all__ = ["MeteredCall", "customer", "metered"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def metered(
    event_name: str,
    *,
    customer: str | Callable[[MeteredCall], str] | None = None,
    value: float | Decimal | str | Callable[[MeteredCall], float | Decimal | str] = 1,
    identifier: Callable[[MeteredCall], str] | None = None,
    agent: MeterAgent | None = None,
) -> Callable[[_Function], _Function]:
    """Record one event for each call of the decorated function that ends without an exception.

    A call that gives a coroutine is billed when that has returned. A generator is billed when it
    has ended, and also when its consumer stops early or its task is cancelled, if it has yielded
    anything by then. A call that raises is not billed.

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
        # A staticmethod can be called, but the function made of it here would be a method.
        if not callable(function) or isinstance(function, staticmethod):
            raise TypeError(
                f"metered() decorates a function, not {type(function).__name__}: put it below"
                " @classmethod, @staticmethod and @property"
            )
        return functools.wraps(function)(wrapped(function, bill))  # type: ignore[return-value]

    def bill(call: MeteredCall) -> None:
        bill_chosen(
            _default.record if agent is None else agent.record,
            event_name,
            call.customer if customer is None else chosen(customer, call),
            chosen(value, call),
            None if identifier is None else chosen(identifier, call),
        )

    return decorate
