"""What is worked out from a call or a request: whom to bill, and how much.

A mistake in that is not an error of the call. What cannot be worked out is recorded as the
exception that came instead, so that it ends where every invalid event ends: as a dead letter that
names it, or, in strict mode, as an `InvalidEventError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["bill_chosen", "chosen"]


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
