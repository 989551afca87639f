"""Starlette and FastAPI: one event for each request that was answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount, Route

import meter_agent
from meter_agent import DeadLetter, InvalidEventError
from meter_agent.integrations.starlette import MeterRequests
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from meter_agent.testing import RecordedEvents
from tests.docs.test_docs import DOCS
from tests.hosts.servers import write_snippet
from tests.integrations.conftest import run_alone

pytest_plugins = ["pytester"]

PAGE = DOCS / "howto" / "fastapi.md"


def customer_of(request: Request) -> str | None:
    customer: str | None = getattr(request.state, "customer", None)
    return customer


def application(**metering: Any) -> FastAPI:
    app = FastAPI()
    usual: dict[str, Any] = {"event_name": "requests", "customer": customer_of}
    app.add_middleware(MeterRequests, **(usual | metering))

    @app.get("/answer")
    def answer(request: Request, status: int = 200, customer: str = "cus_1") -> Response:
        request.state.customer = customer
        return Response("answer", status)

    @app.get("/nobody")
    async def nobody() -> str:
        return "nobody"

    return app


def get(app: FastAPI, *paths: str, **options: Any) -> list[int]:
    with TestClient(app, **options) as client:
        return [client.get(path).status_code for path in paths]


def test_a_request_is_billed_to_whom_the_handler_says(events: RecordedEvents) -> None:
    app = application()
    assert get(app, "/answer", "/answer?customer=cus_2", "/nobody") == [200, 200, 200]
    assert list(events.by_customer()) == ["cus_1", "cus_2"]
    assert events.total("requests") == 2


@pytest.mark.parametrize(("status", "times"), [(204, 1), (304, 1), (399, 1), (400, 0), (503, 0)])
def test_only_what_was_answered_well_is_billed(
    events: RecordedEvents, status: int, times: int
) -> None:
    assert get(application(), f"/answer?status={status}", "/nowhere") == [status, 404]
    events.assert_recorded("requests", times=times)


def test_the_value_may_be_worked_out_from_the_request(events: RecordedEvents) -> None:
    app = application(value=lambda request: len(request.query_params["customer"]))
    get(app, "/answer?customer=cus_12")
    events.assert_recorded("requests", customer="cus_12", value=6, times=1)


def test_a_header_alone_bills_nobody(events: RecordedEvents) -> None:
    with TestClient(application(), headers={"X-Customer": "cus_1", "Customer": "cus_1"}) as client:
        assert client.get("/nobody").status_code == 200
    assert events.all == []


def test_a_request_that_raises_is_not_billed(events: RecordedEvents) -> None:
    app = application()

    @app.get("/fail")
    def fail(request: Request) -> None:
        request.state.customer = "cus_1"
        raise LookupError

    assert get(app, "/fail", raise_server_exceptions=False) == [500]
    assert events.all == []


def test_an_answer_that_is_broken_off_is_not_billed(events: RecordedEvents) -> None:
    app = application()

    @app.get("/stream")
    def stream(request: Request, fail: bool) -> StreamingResponse:
        def parts() -> Iterator[str]:
            yield "one"
            if fail:
                raise LookupError
            yield "two"

        request.state.customer = "cus_1"
        return StreamingResponse(parts())

    with pytest.raises(LookupError):
        get(app, "/stream?fail=true")
    assert events.all == []
    get(app, "/stream?fail=false")
    events.assert_recorded("requests", times=1)


def test_a_background_task_that_fails_changes_nothing(events: RecordedEvents) -> None:
    app = application()

    def fail() -> None:
        raise LookupError

    @app.get("/later")
    def later(request: Request, tasks: BackgroundTasks) -> str:
        request.state.customer = "cus_1"
        tasks.add_task(fail)
        return "later"

    with pytest.raises(LookupError):
        get(app, "/later")
    events.assert_recorded("requests", times=1)


def test_what_is_no_http_request_passes_through(events: RecordedEvents) -> None:
    app = application(customer=lambda _request: "cus_1")

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    with TestClient(app) as client, client.websocket_connect("/socket") as connection:
        assert connection.receive_text() == "hello"
    assert events.all == []


def test_mounted_routes_and_files_of_a_starlette_application_are_billed(
    events: RecordedEvents, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("content")

    async def file(request: Any) -> FileResponse:
        request.state.customer = "file"
        return FileResponse(tmp_path / "file")

    async def inner(request: Any) -> PlainTextResponse:
        request.state.customer = "mounted"
        return PlainTextResponse("inner")

    app = Starlette(routes=[Mount("/in", routes=[Route("/side", inner)]), Route("/file", file)])
    app.add_middleware(MeterRequests, event_name="requests", customer=customer_of)
    with TestClient(app) as client:
        assert client.get("/in/side").text == "inner"
        assert client.get("/file").text == "content"
    assert list(events.by_customer()) == ["mounted", "file"]


def test_a_file_that_the_server_sends_by_itself_is_billed_too(events: RecordedEvents) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": "/file"})

    async def ignore(*_message: Any) -> None:
        pass

    metered = MeterRequests(app, event_name="requests", customer=lambda _request: "cus_1")
    coroutine = metered({"type": "http", "headers": []}, ignore, ignore)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    events.assert_recorded("requests", times=1)


def fails(_request: Any) -> str:
    raise KeyError("customer")


@pytest.mark.parametrize("field", ["customer", "value"])
def test_in_a_test_a_mistake_of_the_metering_raises(events: RecordedEvents, field: str) -> None:
    with pytest.raises(InvalidEventError, match=r"KeyError\('customer'\) is invalid") as caught:
        get(application(**{field: fails}), "/answer")
    assert isinstance(caught.value.__cause__, KeyError)


def test_in_production_it_becomes_a_dead_letter_and_the_request_is_answered(
    sandbox: Sandbox,
) -> None:
    letters: list[DeadLetter] = []
    with SandboxServer(sandbox) as server:
        meter_agent.configure(sandbox_url=server.url, on_dead_letter=letters.append)
        assert get(application(customer=fails), "/answer") == [200]
        assert meter_agent.close(20).dead_lettered == 1
    assert "customer_id=KeyError('customer') is invalid" in letters[0].message


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_block_in_an_async_dependency_holds_in_the_handler(
    events: RecordedEvents, asynchronous: bool
) -> None:
    from fastapi import Depends

    @meter_agent.metered("searches")
    def search() -> None:
        pass

    async def as_customer(customer: str) -> AsyncIterator[None]:
        with meter_agent.customer(customer):
            yield

    async def find_async() -> None:
        search()

    handler: Callable[..., Any] = find_async if asynchronous else search
    app = FastAPI()
    app.get("/search", dependencies=[Depends(as_customer)])(handler)
    assert get(app, "/search?customer=cus_1", "/search?customer=cus_2") == [200, 200]
    assert list(events.by_customer()) == ["cus_1", "cus_2"]


def test_the_files_of_the_page_do_what_it_says(pytester: pytest.Pytester) -> None:
    for name in ("shop_api.py", "metered_api.py", "test_shop_api.py"):
        write_snippet(PAGE, name, pytester.path)
    pytester.makepyfile(
        test_metered_api="""
        from fastapi.testclient import TestClient
        from metered_api import app
        def test_it(meter_events):
            with TestClient(app, headers={"Authorization": "Bearer secret-of-123"}) as client:
                assert client.get("/search?text=shoes").json() == ["shoes"]
            meter_events.assert_recorded("searches", customer="cus_123", times=1)
        """
    )
    done = run_alone(pytester)
    done.assert_outcomes(passed=2)
