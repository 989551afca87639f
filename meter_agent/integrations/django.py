"""Django: one event for each request that was answered.

Under WSGI there is nothing to add for delivery: its servers end by `atexit`. Under ASGI wrap the
application in `meter_agent.integrations.asgi.add_lifespan`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from inspect import iscoroutinefunction
from typing import Any

from meter_agent.integrations._requests import bill_request

try:
    from asgiref.sync import sync_to_async
    from django.http import HttpRequest, HttpResponseBase
    from django.utils.decorators import sync_and_async_middleware
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.django needs the package 'django':"
        " pip install 'meter-agent[django]'"
    ) from error

__all__ = ["meter_requests"]


def meter_requests(
    event_name: str,
    *,
    customer: Callable[[HttpRequest], str | None],
    value: float | Decimal | str | Callable[[HttpRequest], float | Decimal | str] = 1,
) -> Callable[[Any], Any]:
    """Return a middleware that bills each request answered with a status below 400.

    *customer* and *value* are asked after the view, and may use the database, under ASGI too. A
    streamed answer is billed when it begins. Put it below the authentication in `MIDDLEWARE`.

    Args:
        event_name: The meter's event name.
        customer: Works out whom to bill. None as its answer: this request is not billed. Do not
            believe a header that anybody can send.
        value: How much, or what works it out from the request.

    An exception from *customer* or *value* becomes a dead letter that names it, or, in strict mode,
    the cause of an `InvalidEventError`.

    Examples:
        # shop/metering.py; in the settings: MIDDLEWARE = [..., "shop.metering.bill_requests"]
        bill_requests = meter_requests("api_requests", customer=customer_of)
    """

    def bill(request: HttpRequest, response: HttpResponseBase) -> None:
        bill_request(request, response.status_code, event_name, customer, value)

    def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            response = await get_response(request)
            await sync_to_async(bill)(request, response)
            return response

        def answer(request: HttpRequest) -> HttpResponseBase:
            response = get_response(request)
            bill(request, response)
            return response

        return answer_async if iscoroutinefunction(get_response) else answer

    made: Callable[[Any], Any] = sync_and_async_middleware(middleware)
    return made
