"""Starlette and FastAPI: one event for each request that was answered.

Delivery at the end of the application is in `meter_agent.integrations.asgi`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from meter_agent.integrations._requests import bill_request

try:
    from starlette.requests import Request
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.starlette needs the package 'starlette': pip install starlette"
    ) from error

__all__ = ["MeterRequests"]

_BODY = ("http.response.body", "http.response.pathsend")


class MeterRequests:
    """ASGI middleware that bills each HTTP request answered with a status below 400.

    *customer* and *value* are asked when the answer was sent, and see what dependencies and
    handlers put into `request.state`. A request that raised, or whose answer was broken off, is not
    billed.

    Args:
        app: The application; `add_middleware()` gives it.
        event_name: The meter's event name.
        customer: Works out whom to bill, without blocking. None as its answer: this request is not
            billed. Do not believe a header that anybody can send.
        value: How much, or what works it out from the request.

    An exception from *customer* or *value* becomes a dead letter that names it, or, in strict mode,
    the cause of an `InvalidEventError`.

    Examples:
        app.add_middleware(
            MeterRequests,
            event_name="api_requests",
            customer=lambda request: getattr(request.state, "customer", None),
        )
    """

    def __init__(
        self,
        app: Callable[[Any, Any, Any], Awaitable[None]],
        *,
        event_name: str,
        customer: Callable[[Request], str | None],
        value: float | Decimal | str | Callable[[Request], float | Decimal | str] = 1,
    ) -> None:
        self._app, self._event_name = app, event_name
        self._customer, self._value = customer, value

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, and bill it when its answer is complete; what is not HTTP has none."""
        status = 0

        async def send_and_bill(message: Any) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] in _BODY and not message.get("more_body"):
                # Here and not at the end, so that a background task that fails changes nothing.
                bill_request(Request(scope), status, self._event_name, self._customer, self._value)

        await self._app(scope, receive, send_and_bill)
