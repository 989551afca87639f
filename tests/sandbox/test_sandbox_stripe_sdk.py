"""Stripe's own package, over real HTTP, gets from the sandbox what it would get from Stripe."""

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer

from .client import event


@pytest.fixture
def sdk(server: SandboxServer) -> Iterator[Any]:
    yield from _clients(server, "sk_test_1")


def _clients(server: SandboxServer, key: str) -> Iterator[Any]:
    http = stripe.RequestsClient()
    hosts: Any = {"api": server.url, "meter_events": server.url}
    yield stripe.StripeClient(key, base_addresses=hosts, http_client=http)
    http.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def stream(server: SandboxServer, sdk: Any) -> Iterator[Any]:
    """The stream with a session's token as its credential, as Stripe's examples do it."""
    session = sdk.v2.billing.meter_event_session.create()
    for client in _clients(server, session.authentication_token):
        yield client.v2.billing.meter_event_stream


def test_a_session_is_created_and_a_batch_streamed(stream: Any, sandbox: Sandbox) -> None:
    stream.create({"events": [event(value="2") for _ in range(100)]})

    assert sandbox.totals() == {
        "accepted": 100,
        "duplicates": 0,
        "totals": {"api_requests": {"cus_1": "200"}},
    }
    assert sandbox.requests[-1].idempotency_key


def test_a_session_has_the_types_that_the_sdk_reads(sdk: Any) -> None:
    session = sdk.v2.billing.meter_event_session.create()

    assert session.object == "v2.billing.meter_event_session"
    assert session.livemode is False
    assert session.expires_at > session.created


def test_an_expired_session_is_stripes_own_exception(stream: Any, sandbox: Sandbox) -> None:
    sandbox.advance(900)

    with pytest.raises(stripe.TemporarySessionExpiredError) as caught:
        stream.create({"events": [event()]})

    assert caught.value.code == "billing_meter_event_session_expired"
    assert caught.value.http_status == 401


def test_a_rate_limit_is_stripes_own_exception(stream: Any, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("status", status=429, retry_after="1"))

    with pytest.raises(stripe.RateLimitError):
        stream.create({"events": [event()]})


@pytest.mark.parametrize("events", [[], [event(value="x")], [{"event_name": "e"}], [event()] * 101])
def test_a_bad_batch_is_an_invalid_request(stream: Any, events: list[dict[str, Any]]) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stream.create({"events": events})

    assert caught.value.http_status == 400
    assert caught.value.request_id is not None


def test_an_api_key_on_the_stream_is_an_authentication_error(sdk: Any) -> None:
    with pytest.raises(stripe.AuthenticationError):
        sdk.v2.billing.meter_event_stream.create({"events": [event()]})


def test_a_wrong_key_is_an_authentication_error() -> None:
    with SandboxServer(Sandbox(api_keys={"sk_good"})) as server:
        for client in _clients(server, "sk_bad"):
            with pytest.raises(stripe.AuthenticationError):
                client.v2.billing.meter_event_session.create()


def test_a_reset_is_a_connection_error(stream: Any, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("reset", when="after"))

    with pytest.raises(stripe.APIConnectionError):
        stream.create({"events": [event()]})

    assert sandbox.totals()["accepted"] == 1


def test_an_outage_is_an_api_error(stream: Any, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("status", status=503))

    with pytest.raises(stripe.APIError):
        stream.create({"events": [event()]})


def test_a_used_idempotency_key_is_an_api_error_with_409(stream: Any) -> None:
    options = {"idempotency_key": "k"}
    stream.create({"events": [event()]}, options)

    with pytest.raises(stripe.APIError) as caught:
        stream.create({"events": [event()]}, options)

    assert caught.value.http_status == 409


def test_the_sdk_creates_one_event_and_reads_the_codes_of_refusals(
    sdk: Any, sandbox: Sandbox
) -> None:
    made = sdk.v2.billing.meter_events.create(event("e1", value="2"))
    assert (made.object, made.identifier) == ("v2.billing.meter_event", "e1")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        sdk.v2.billing.meter_events.create(event("e1", value="2"))
    assert caught.value.code == "duplicate_meter_event"
    assert sandbox.totals()["totals"] == {"api_requests": {"cus_1": "2"}}


def test_the_sdk_lists_all_meters_page_by_page(sdk: Any, sandbox: Sandbox) -> None:
    sandbox.set_meters([f"m{number}" for number in range(7)])
    listed = sdk.v1.billing.meters.list({"limit": 3})
    assert [meter.event_name for meter in listed.auto_paging_iter()] == [
        f"m{number}" for number in reversed(range(7))
    ]
    with pytest.raises(stripe.InvalidRequestError, match="limit"):
        sdk.v1.billing.meters.list({"limit": 0})
