"""Whom the functions of a block are billed to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["current_customer", "customer"]

_current: ContextVar[str | None] = ContextVar("meter_agent_customer", default=None)


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
    before = _current.get()
    _current.set(customer_id)
    try:
        yield
    finally:
        # Not `reset()`, which raises where a generator is closed in another context.
        _current.set(before)


def current_customer() -> str | None:
    """Return the customer of the innermost block around the caller; None: there is none."""
    return _current.get()
