"""Flask: one event for each request that was answered.

There is nothing to add for delivery: the servers that run Flask end by `atexit`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from meter_agent.integrations._requests import bill_request

try:
    from flask import Flask, Request, Response, request
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.flask needs the package 'flask': pip install 'meter-agent[flask]'"
    ) from error

__all__ = ["meter_requests"]


def meter_requests(
    app: Flask,
    *,
    event_name: str,
    customer: Callable[[Request], str | None],
    value: float | Decimal | str | Callable[[Request], float | Decimal | str] = 1,
) -> None:
    """Bill each request to *app* that is answered with a status below 400.

    *customer* and *value* are asked after the view, within the request: `flask.g` and the session
    are at hand. A streamed answer is billed when it begins.

    Args:
        app: The application.
        event_name: The meter's event name.
        customer: Works out whom to bill. None as its answer: this request is not billed. Do not
            believe a header that anybody can send.
        value: How much, or what works it out from the request.

    An exception from *customer* or *value* becomes a dead letter that names it, or, in strict mode,
    the cause of an `InvalidEventError`.

    Examples:
        meter_requests(app, event_name="api_requests", customer=lambda _: g.get("customer"))
    """

    def bill(response: Response) -> Response:
        bill_request(request, response.status_code, event_name, customer, value)
        return response

    app.after_request(bill)
