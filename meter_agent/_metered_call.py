"""One call of a metered function, as its customer and value are worked out from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from meter_agent._customer import current_customer

__all__ = ["MeteredCall"]


class MeteredCall:
    """One call of a metered function, when it has ended; what *customer* and *value* are asked."""

    __slots__ = ("_args", "_function", "_kwargs", "customer", "items", "last", "result")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        # Now: a generator is often run after the block in which it was made.
        self.customer = current_customer()
        """The customer of the block in which it was called; None: there was none."""
        self.result: Any = None
        """What it returned; None for a generator that was not run to its end."""
        self.items = 0
        """How many items a generator has yielded."""
        self.last: Any = None
        """The last of them."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        function, args, kwargs = self._function, self._args, self._kwargs
        while isinstance(function, functools.partial):  # its signature has not what it holds
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        bound = _signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments


_signature = functools.lru_cache(maxsize=1024)(inspect.signature)
