"""Flask: one event for each request that was answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response, g, request, session

import meter_agent
from meter_agent import DeadLetter, InvalidEventError
from meter_agent.integrations.flask import meter_requests
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from meter_agent.testing import RecordedEvents
from tests.docs.test_docs import DOCS
from tests.hosts.servers import write_snippet
from tests.integrations.conftest import run_alone

pytest_plugins = ["pytester"]

PAGE = DOCS / "howto" / "flask.md"


def application(**metering: Any) -> Flask:
    app = Flask(__name__)
    app.secret_key = "for this test"
    usual: dict[str, Any] = {
        "event_name": "requests",
        "customer": lambda _request: g.get("customer"),
    }
    meter_requests(app, **(usual | metering))

    @app.get("/answer")
    def answer() -> tuple[str, int]:
        g.customer = request.args.get("customer", "cus_1")
        return "answer", int(request.args.get("status", 200))

    @app.get("/nobody")
    def nobody() -> str:
        return "nobody"

    @app.get("/fail")
    def fail() -> str:
        g.customer = "cus_1"
        raise LookupError

    return app


def get(app: Flask, *paths: str) -> list[int]:
    client = app.test_client()
    return [client.get(path).status_code for path in paths]


def test_a_request_is_billed_to_whom_the_view_says(events: RecordedEvents) -> None:
    assert get(application(), "/answer", "/answer?customer=cus_2", "/nobody") == [200, 200, 200]
    assert list(events.by_customer()) == ["cus_1", "cus_2"]
    assert events.total("requests") == 2


@pytest.mark.parametrize(("status", "times"), [(204, 1), (304, 1), (399, 1), (400, 0), (503, 0)])
def test_only_what_was_answered_well_is_billed(
    events: RecordedEvents, status: int, times: int
) -> None:
    assert get(application(), f"/answer?status={status}", "/nowhere", "/fail") == [status, 404, 500]
    events.assert_recorded("requests", times=times)


def test_the_session_and_the_arguments_are_at_hand(events: RecordedEvents) -> None:
    app = application(
        customer=lambda _request: session.get("customer"),
        value=lambda asked: int(asked.args["tokens"]),
    )
    client = app.test_client()
    with client.session_transaction() as made:
        made["customer"] = "cus_9"
    client.get("/nobody?tokens=7")
    events.assert_recorded("requests", customer="cus_9", value=7, times=1)


def test_a_header_alone_bills_nobody(events: RecordedEvents) -> None:
    client = application().test_client()
    assert client.get("/nobody", headers={"X-Customer": "cus_1"}).status_code == 200
    assert events.all == []


def test_a_streamed_answer_is_billed_when_it_begins(events: RecordedEvents) -> None:
    app = application()

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            yield "one"
            yield str(len(events.all))

        g.customer = "cus_1"
        return Response(parts())

    assert app.test_client().get("/stream").text == "one1"


@pytest.mark.parametrize("field", ["customer", "value"])
def test_in_a_test_a_mistake_of_the_metering_raises(events: RecordedEvents, field: str) -> None:
    def fails(_request: Any) -> str:
        raise KeyError("customer")

    app = application(**{field: fails})
    app.testing = True
    with pytest.raises(InvalidEventError, match=r"KeyError\('customer'\) is invalid"):
        get(app, "/answer")


def test_in_production_it_becomes_a_dead_letter_and_the_request_is_answered(
    sandbox: Sandbox,
) -> None:
    letters: list[DeadLetter] = []
    app = application(customer=lambda asked: asked.nonsense)
    with SandboxServer(sandbox) as server:
        meter_agent.configure(sandbox_url=server.url, on_dead_letter=letters.append)
        assert get(app, "/answer") == [200]
        assert meter_agent.close(20).dead_lettered == 1
    assert "AttributeError" in letters[0].message


def test_the_files_of_the_page_do_what_it_says(pytester: pytest.Pytester) -> None:
    for name in ("shop_flask.py", "test_shop_flask.py"):
        write_snippet(PAGE, name, pytester.path)
    done = run_alone(pytester)
    done.assert_outcomes(passed=1)
