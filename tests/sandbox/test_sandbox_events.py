import json
from datetime import UTC, datetime
from typing import Any

import pytest

from meter_agent.sandbox import Sandbox

from .client import NOW, STREAM, Client, code, document, event, headers

DAY = 86_400


def stamp(seconds_from_now: float) -> str:
    moment = datetime.fromtimestamp(NOW + seconds_from_now, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def payload(**fields: str) -> dict[str, str]:
    return {"stripe_customer_id": "cus_1", "value": "1", **fields}


def test_a_batch_is_accepted_with_an_empty_object(client: Client) -> None:
    reply = client.send(*[event() for _ in range(100)])

    assert (reply.status, document(reply)) == (200, {})
    assert client.sandbox.totals() == {
        "accepted": 100,
        "duplicates": 0,
        "totals": {"api_requests": {"cus_1": "100"}},
    }


def test_the_ledger_keeps_each_event_as_it_came(client: Client) -> None:
    client.send(
        event("a", timestamp=stamp(-5), payload=payload(region="eu")), event("b", value="-2.50")
    )

    assert client.sandbox.ledger() == [
        {
            "identifier": "a",
            "event_name": "api_requests",
            "customer": "cus_1",
            "value": "1",
            "timestamp": stamp(-5),
            "payload": {"stripe_customer_id": "cus_1", "value": "1", "region": "eu"},
            "received_at": NOW,
            "times_seen": 1,
        },
        {
            "identifier": "b",
            "event_name": "api_requests",
            "customer": "cus_1",
            "value": "-2.50",
            "timestamp": stamp(0),
            "payload": {"stripe_customer_id": "cus_1", "value": "-2.50"},
            "received_at": NOW,
            "times_seen": 1,
        },
    ]


def test_an_event_without_identifier_is_given_one(client: Client) -> None:
    first, second = event(), event()
    del first["identifier"], second["identifier"]

    client.send(first, second)

    assert len(set(client.identifiers)) == 2


def test_totals_are_exact_and_kept_per_event_name_and_customer(client: Client) -> None:
    client.send(
        event(value="0.1"),
        event(value="0.2"),
        event(value="999999999999999"),
        event(value="0.000000000001"),
        event(event_name="tokens", payload=payload(value="100")),
        event(payload=payload(stripe_customer_id="cus_2", value="5.50")),
        event(payload=payload(stripe_customer_id="cus_3", value="-0")),
    )

    assert client.sandbox.totals()["totals"] == {
        "api_requests": {"cus_1": "999999999999999.300000000001", "cus_2": "5.5", "cus_3": "0"},
        "tokens": {"cus_1": "100"},
    }


def test_a_meter_may_read_other_payload_keys() -> None:
    keys = {"tokens": {"customer_key": "org", "value_key": "count"}}
    client = Client(Sandbox(payload_keys=keys))

    assert (
        client.send(event(event_name="tokens", payload={"org": "o1", "count": "3"})).status == 200
    )
    assert code(client.send(event(event_name="tokens"))) == "payload_no_customer_defined"
    assert client.sandbox.totals()["totals"] == {"tokens": {"o1": "3"}}
    assert client.sandbox.ledger()[0]["payload"] == {"org": "o1", "count": "3"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"events": {}}',
        b'{"events": []}',
        b'{"events": [1]}',
        b'{"events": [], "more": 1}',
        b'{"events": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_body_of_another_shape_is_refused(client: Client, body: bytes) -> None:
    reply = client.post(body)

    assert reply.status == 400
    assert document(reply)["error"].keys() == {"code", "message"}


def test_more_than_a_hundred_events_are_refused(client: Client) -> None:
    reply = client.send(*[event() for _ in range(101)])

    assert reply.status == 400
    assert "101" in document(reply)["error"]["message"]
    assert client.sandbox.totals()["accepted"] == 0


def test_only_json_is_taken(client: Client) -> None:
    assert client.post(b"{}", Content_Type="text/plain").status == 400
    assert client.send(event(), Content_Type="application/json; charset=utf-8").status == 200


def test_a_body_beyond_the_limit_is_refused_with_413() -> None:
    client = Client(Sandbox(max_body_bytes=500))

    assert client.send(event()).status == 200
    assert client.send(*[event() for _ in range(10)]).status == 413


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"event_name": ""}, "event_name"),
        ({"event_name": "x" * 101}, "event_name"),
        ({"event_name": 1}, "event_name"),
        ({"event_name": None}, "event_name"),
        ({"identifier": ""}, "identifier"),
        ({"identifier": "x" * 101}, "identifier"),
        ({"identifier": 7}, "identifier"),
        ({"payload": None}, "payload"),
        ({"payload": {}}, "payload"),
        ({"payload": []}, "payload"),
        ({"payload": payload() | {"value": 1}}, "payload.value"),
        ({"payload": payload() | {"extra": None}}, "payload.extra"),
        ({"timestamp": NOW}, "timestamp"),
        ({"timestamp": "2027-01-15"}, "timestamp"),
        ({"timestamp": "2027-01-15T08:00:00"}, "timestamp"),
        ({"timestamp": "2027-01-15 08:00:00Z"}, "timestamp"),
        ({"timestamp": "2027-02-30T08:00:00Z"}, "timestamp"),
        ({"timestamp": "2027-01-15T08:00:00Z\n"}, "timestamp"),
        ({"customer": "cus_1"}, "customer"),
    ],
)
def test_a_field_that_breaks_its_rule_is_refused_by_name(
    client: Client, fields: dict[str, Any], named: str
) -> None:
    reply = client.send(event(), event(**fields))

    assert (reply.status, code(reply)) == (400, "invalid_fields")
    assert document(reply)["error"]["message"].startswith(f"events[1].{named}: ")
    assert client.sandbox.totals()["accepted"] == 0


def test_names_of_a_hundred_characters_are_taken(client: Client) -> None:
    assert client.send(event("i" * 100, event_name="n" * 100)).status == 200


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-1",
        "007",
        "0000000000000000042",
        "-0.123456789012",
        "1.5",
        "0.000000000001",
        "999999999999999",
        "123.456789012345",
        "-0.50",
    ],
)
def test_a_plain_number_of_fifteen_digits_is_a_value(client: Client, value: str) -> None:
    assert client.send(event(value=value)).status == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        " 1",
        "1\n",
        "+1",
        "1.",
        ".5",
        "1e3",
        "1E-7",
        "NaN",
        "Infinity",
        "1,000",
        "0x10",
        "1_000",
        "٣",
        "0.0000000000001",
        "1000000000000000",
        "1000.000000000000",
    ],
)
def test_anything_else_is_no_value(client: Client, value: str) -> None:
    assert code(client.send(event(value=value))) == "payload_invalid_value"


def test_a_payload_needs_customer_and_value(client: Client) -> None:
    nobody = event(payload={"value": "1"})
    nothing = event(payload={"stripe_customer_id": "cus_1"})
    empty = event(payload=payload(stripe_customer_id=""))

    assert code(client.send(nobody)) == "payload_no_customer_defined"
    assert code(client.send(empty)) == "payload_no_customer_defined"
    assert code(client.send(nothing)) == "payload_no_value_defined"


@pytest.mark.parametrize("seconds", [-35 * DAY, -1.5, 0, 300])
def test_a_timestamp_within_the_window_is_taken(client: Client, seconds: float) -> None:
    assert client.send(event(timestamp=stamp(seconds))).status == 200


def test_a_timestamp_may_carry_an_offset(client: Client) -> None:
    assert client.send(event(timestamp="2027-01-15T10:00:00.123456789+02:00")).status == 200


def test_a_timestamp_outside_the_window_is_refused(client: Client) -> None:
    old, early = event(timestamp=stamp(-35 * DAY - 1)), event(timestamp=stamp(301))

    assert code(client.send(old)) == "timestamp_too_far_in_past"
    assert code(client.send(early)) == "timestamp_in_future"


def test_the_window_moves_with_the_sandboxs_clock(client: Client) -> None:
    client.sandbox.advance(60)

    assert client.send(event(timestamp=stamp(360))).status == 200


def test_one_bad_event_refuses_the_whole_batch(client: Client) -> None:
    assert client.send(event(), event(value="x"), event()).status == 400
    assert client.sandbox.totals()["accepted"] == 0


def test_a_batch_that_is_not_atomic_keeps_its_good_events() -> None:
    client = Client(Sandbox(batch_atomic=False))

    reply = client.send(event("a"), event("b", value="x"), event("c"))

    assert reply.status == 400
    assert client.identifiers == ["a", "c"]


def test_late_validation_answers_200_and_lists_the_bad_event() -> None:
    client = Client(Sandbox(validate="async", time=lambda: NOW))

    reply = client.send(event("good"), event("bad", value="1e9"))

    assert reply.status == 200
    assert client.identifiers == ["good"]
    (rejected,) = client.sandbox.rejected
    assert rejected["identifier"] == "bad"
    assert rejected["code"] == "meter_event_invalid_value"
    assert rejected["received_at"] == NOW


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"payload": payload(value="1234567890123456")}, "meter_event_value_too_many_digits"),
        ({"payload": {"value": "1"}}, "meter_event_no_customer_defined"),
        ({"payload": {"stripe_customer_id": "c"}}, "meter_event_value_not_found"),
        ({"timestamp": stamp(-36 * DAY)}, "timestamp_too_far_in_past"),
        ({"timestamp": stamp(900)}, "timestamp_in_future"),
    ],
)
def test_late_validation_reports_stripes_codes(fields: dict[str, Any], reported: str) -> None:
    client = Client(Sandbox(validate="async", time=lambda: NOW))

    client.send(event(**fields))

    assert [row["code"] for row in client.sandbox.rejected] == [reported]


def test_late_validation_still_refuses_a_wrong_shape_at_once() -> None:
    client = Client(Sandbox(validate="async"))

    assert client.send(event(event_name=7)).status == 400
    assert client.sandbox.rejected == []


def test_an_unknown_path_is_not_found(client: Client) -> None:
    reply = client.sandbox.handle("POST", "/v2/billing/nothing?x=1", headers("sk"), b"{}")

    assert (reply.status, code(reply)) == (404, "not_found")


def test_another_method_is_not_allowed(client: Client) -> None:
    reply = client.sandbox.handle("GET", STREAM, headers(client.token), b"")

    assert (reply.status, reply.headers["Allow"]) == (405, "POST")


def test_every_answer_carries_its_own_request_id(client: Client) -> None:
    replies = [
        client.send(event()),
        client.post(b"{"),
        client.open_session(""),
        client.control("GET", "totals"),
        client.control("GET", "nothing"),
    ]

    ids = [reply.headers["Request-Id"] for reply in replies]

    assert len(set(ids)) == len(ids)
    assert all(each.startswith("req_") for each in ids)


def test_requests_are_remembered_without_their_credentials(client: Client) -> None:
    client.send(event("a"), event("b"), Idempotency_Key="key-1")
    client.open_session("sk_secret")

    opened, streamed, reopened = client.sandbox.requests

    assert (opened.authorization_kind, reopened.authorization_kind) == ("api_key", "api_key")
    assert streamed.at == NOW
    assert (streamed.method, streamed.path, streamed.status) == ("POST", STREAM, 200)
    assert (streamed.events, streamed.identifiers) == (2, ("a", "b"))
    assert (streamed.idempotency_key, streamed.authorization_kind) == ("key-1", "session")
    assert "sk_secret" not in repr(client.sandbox.requests)
    assert client.token not in repr(client.sandbox.requests)


def test_a_refused_request_is_remembered_with_its_status(client: Client) -> None:
    client.send(event("a", value="x"))

    assert client.sandbox.requests[-1].status == 400
    assert client.sandbox.requests[-1].identifiers == ("a",)


def test_lone_surrogates_do_no_harm(client: Client) -> None:
    body = json.dumps({"events": [event("\ud800", event_name="\udfff")]}).encode()

    assert client.post(body).status == 200
    assert client.control("GET", "ledger").status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"session_seconds": 0},
        {"duplicates": "ignore"},
        {"expired_status": 403},
        {"validate": "never"},
        {"max_body_bytes": 0},
    ],
)
def test_a_wrong_setting_fails_in_the_constructor(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sandbox(**settings)
