from datetime import datetime

import pytest

from meter_agent.sandbox import Sandbox

from .client import NOW, SESSION, STREAM, Client, code, document, event, headers, stream_body


def test_a_session_is_the_object_of_the_contract(client: Client) -> None:
    session = document(client.open_session())

    assert session["object"] == "v2.billing.meter_event_session"
    assert session.keys() == {
        "id",
        "object",
        "authentication_token",
        "created",
        "expires_at",
        "livemode",
    }
    assert session["livemode"] is False


def test_a_session_tells_its_life_in_utc_milliseconds() -> None:
    client = Client(Sandbox(time=lambda: NOW + 0.25))

    session = document(client.open_session())

    assert session["created"] == "2027-01-15T08:00:00.250Z"
    assert session["expires_at"] == "2027-01-15T08:15:00.250Z"


def test_a_sessions_life_can_be_set() -> None:
    session = document(Client(Sandbox(session_seconds=2.5)).open_session())

    life = datetime.fromisoformat(session["expires_at"]) - datetime.fromisoformat(
        session["created"]
    )

    assert life.total_seconds() == 2.5


def test_a_token_is_good_until_its_life_is_over(client: Client) -> None:
    assert client.send(event()).status == 200
    client.sandbox.advance(899.9)
    assert client.send(event()).status == 200
    client.sandbox.advance(0.1)
    assert client.send(event()).status == 401


@pytest.mark.parametrize("status", [400, 401])
def test_an_expired_token_is_told_by_type_and_code_with_either_status(status: int) -> None:
    client = Client(Sandbox(expired_status=status))  # type: ignore[arg-type]
    client.send(event())
    client.sandbox.advance(900)

    reply = client.send(event())

    assert reply.status == status
    error = document(reply)["error"]
    assert error["type"] == "temporary_session_expired"
    assert error["code"] == "billing_meter_event_session_expired"
    assert error.keys() == {"type", "code", "message", "doc_url"}


def test_a_revoked_token_is_answered_as_an_expired_one(client: Client) -> None:
    client.send(event())
    client.sandbox.revoke_sessions()

    assert code(client.send(event())) == "billing_meter_event_session_expired"


def test_revocation_spares_later_sessions(client: Client) -> None:
    client.sandbox.revoke_sessions()

    assert client.send(event()).status == 200


def test_sessions_live_side_by_side(client: Client) -> None:
    first = client.token
    client.new_token()

    assert client.token == first
    assert client.send(event()).status == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer token_of_nobody", "Bearer sk_test_1", "Basic c2s6"],
)
def test_the_stream_refuses_what_never_was_a_token_without_naming_sessions(
    client: Client, authorization: str
) -> None:
    request = {**headers("x"), "Authorization": authorization}

    reply = client.sandbox.handle("POST", STREAM, request, stream_body(event()))

    assert reply.status == 401
    assert "type" not in document(reply)["error"]
    assert client.sandbox.totals()["accepted"] == 0


def test_the_stream_refuses_a_request_without_authorization(client: Client) -> None:
    request = headers("x")
    del request["Authorization"]

    assert client.sandbox.handle("POST", STREAM, request, stream_body(event())).status == 401


def test_only_listed_keys_open_sessions() -> None:
    client = Client(Sandbox(api_keys={"sk_good"}))

    assert client.open_session("sk_good").status == 200
    assert client.open_session("sk_bad").status == 401


def test_any_key_opens_a_session_but_no_session_token_does(client: Client) -> None:
    assert client.open_session("rk_anything").status == 200
    assert client.open_session(client.token).status == 401
    assert client.open_session("").status == 401


def test_a_session_needs_no_body(client: Client) -> None:
    request = headers("sk_test_1")
    del request["Content-Type"]

    assert client.sandbox.handle("POST", SESSION, request, b"").status == 200


@pytest.mark.parametrize("path", [SESSION, STREAM])
def test_every_v2_request_must_name_its_version(client: Client, path: str) -> None:
    credential = client.token if path == STREAM else "sk_test_1"
    request = headers(credential)
    del request["Stripe-Version"]

    reply = client.sandbox.handle("POST", path, request, stream_body(event()))

    assert reply.status == 400
    assert "Stripe-Version" in document(reply)["error"]["message"]


def test_header_names_may_come_in_any_case(client: Client) -> None:
    request = {name.upper(): value for name, value in headers(client.token).items()}

    reply = client.sandbox.handle("POST", STREAM, request, stream_body(event()))

    assert reply.status == 200


def test_the_oldest_sessions_are_forgotten_so_that_memory_stays_bounded(client: Client) -> None:
    assert client.send(event()).status == 200
    for _ in range(10_000):
        client.open_session()

    assert code(client.send(event())) == "session_token_required"
