"""Django: one event for each request that was answered, under WSGI and ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.asyncio import async_unsafe

import meter_agent
from meter_agent import DeadLetter, InvalidEventError
from meter_agent.integrations.asgi import add_lifespan
from meter_agent.integrations.django import meter_requests
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from meter_agent.testing import RecordedEvents
from tests.docs.test_docs import DOCS
from tests.hosts.servers import write_snippet
from tests.integrations.conftest import run_alone

pytest_plugins = ["pytester"]

PAGE = DOCS / "howto" / "django.md"


def customer_of(request: HttpRequest) -> str | None:
    customer: str | None = getattr(request, "customer", None)
    return customer


def fails(_request: HttpRequest) -> str:
    raise KeyError("customer")


bill_requests = meter_requests("requests", customer=customer_of)
bill_tokens = meter_requests("tokens", customer=customer_of, value=lambda request: request.tokens)
bill_wrongly = meter_requests("requests", customer=fails)


def answer(request: HttpRequest) -> HttpResponse:
    request.customer = request.GET.get("customer", "cus_1")
    request.tokens = 7
    return HttpResponse("answer", status=int(request.GET.get("status", 200)))


async def answer_async(request: HttpRequest) -> HttpResponse:
    return answer(request)


def nobody(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("nobody")


def fail(request: HttpRequest) -> HttpResponse:
    request.customer = "cus_1"
    raise LookupError


def stream(request: HttpRequest) -> StreamingHttpResponse:
    request.customer = "cus_1"
    return StreamingHttpResponse(iter(["one", "two"]))


urlpatterns = [
    path("answer", answer),
    path("async", answer_async),
    path("nobody", nobody),
    path("fail", fail),
    path("stream", stream),
]


@pytest.fixture(autouse=True, scope="module")
def site() -> None:
    """Django's settings are those of the process; the tests below override what they need."""
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for this test")
    django.setup()


@pytest.fixture(autouse=True)
def middleware(request: pytest.FixtureRequest) -> Iterator[None]:
    names = getattr(request, "param", ["bill_requests"])
    with override_settings(MIDDLEWARE=[f"{__name__}.{name}" for name in names]):
        yield


def get(*paths: str, **options: Any) -> list[int]:
    client = Client(**options)
    return [client.get(f"/{each}").status_code for each in paths]


def aget(*paths: str) -> list[int]:
    async def ask() -> list[int]:
        client = AsyncClient()
        return [(await client.get(f"/{each}")).status_code for each in paths]

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [get, aget])
@pytest.mark.parametrize("view", ["answer", "async"])
def test_a_request_is_billed_to_whom_the_view_says(
    events: RecordedEvents, ask: Any, view: str
) -> None:
    assert ask(view, f"{view}?customer=cus_2", "nobody") == [200, 200, 200]
    assert list(events.by_customer()) == ["cus_1", "cus_2"]
    assert events.total("requests") == 2


@pytest.mark.parametrize(("status", "times"), [(204, 1), (304, 1), (399, 1), (400, 0), (503, 0)])
def test_only_what_was_answered_well_is_billed(
    events: RecordedEvents, status: int, times: int
) -> None:
    paths = [f"answer?status={status}", "nowhere", "fail"]
    assert get(*paths, raise_request_exception=False) == [status, 404, 500]
    events.assert_recorded("requests", times=times)


def test_a_streamed_answer_is_billed(events: RecordedEvents) -> None:
    assert get("stream") == [200]
    events.assert_recorded("requests", times=1)


@pytest.mark.parametrize("middleware", [["bill_tokens"]], indirect=True)
def test_the_value_may_be_worked_out_from_the_request(events: RecordedEvents) -> None:
    assert get("answer") == [200]
    events.assert_recorded("tokens", customer="cus_1", value=7, times=1)


def test_a_header_alone_bills_nobody(events: RecordedEvents) -> None:
    assert get("nobody", headers={"X-Customer": "cus_1", "Customer": "cus_1"}) == [200]
    assert events.all == []


@pytest.mark.parametrize("ask", [get, aget])
@pytest.mark.parametrize("middleware", [["bill_wrongly"]], indirect=True)
def test_in_a_test_a_mistake_of_the_metering_raises(events: RecordedEvents, ask: Any) -> None:
    with pytest.raises(InvalidEventError, match=r"KeyError\('customer'\) is invalid"):
        ask("answer")


@pytest.mark.parametrize("middleware", [["bill_wrongly"]], indirect=True)
def test_in_production_it_becomes_a_dead_letter_and_the_request_is_answered(
    sandbox: Sandbox,
) -> None:
    letters: list[DeadLetter] = []
    with SandboxServer(sandbox) as server:
        meter_agent.configure(sandbox_url=server.url, on_dead_letter=letters.append)
        assert get("answer") == [200]
        assert meter_agent.close(20).dead_lettered == 1
    assert "customer_id=KeyError('customer') is invalid" in letters[0].message


def test_the_customer_may_be_looked_up_in_the_database_under_asgi_too(
    events: RecordedEvents,
) -> None:
    looked_up = async_unsafe("not in an event loop")(lambda: "cus_from_database")

    async def view(_request: HttpRequest) -> HttpResponse:
        return HttpResponse("answer")

    middleware = meter_requests("requests", customer=lambda _request: looked_up())(view)
    asyncio.run(middleware(HttpRequest()))
    events.assert_recorded("requests", customer="cus_from_database", times=1)


def test_the_lifespan_for_asgi_delivers(sandbox: Sandbox) -> None:
    told: list[str] = []

    async def receive() -> dict[str, str]:
        if told:
            await AsyncClient().get("/answer")
        return {"type": "lifespan.shutdown" if told else "lifespan.startup"}

    async def send(message: dict[str, str]) -> None:
        told.append(message["type"])

    with SandboxServer(sandbox) as server:
        meter_agent.configure(sandbox_url=server.url, flush_interval_seconds=60)
        application = add_lifespan(get_asgi_application())
        asyncio.run(application({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert sandbox.totals()["totals"] == {"requests": {"cus_1": "1"}}


def test_the_files_of_the_page_do_what_it_says(pytester: pytest.Pytester) -> None:
    for name in ("shop_metering.py", "shop_django.py", "test_shop_django.py"):
        write_snippet(PAGE, name, pytester.path)
    pytester.makepyfile(
        test_asgi="""
        import asyncio, shop_django
        from django.test import AsyncClient
        def test_it(meter_events):
            headers = {"Authorization": "Bearer secret-of-123"}
            answer = asyncio.run(AsyncClient().get("/answer?prompt=two words", headers=headers))
            assert answer.status_code == 200
            meter_events.assert_recorded("api_requests", customer="cus_123", times=1)
            assert callable(shop_django.application) and callable(shop_django.asgi_application)
        """
    )
    done = run_alone(pytester)
    done.assert_outcomes(passed=2)
