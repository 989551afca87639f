"""Meters, the list of them, and the endpoint that checks an event at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meter_agent.sandbox import Fault, Meter, Reply, Sandbox

from .client import API_KEY, NOW, Client, code, document, event, headers

EVENT = "/v2/billing/meter_events"
METERS = "/v1/billing/meters"


def create(sandbox: Sandbox, body: Any, key: str = API_KEY, **more: str) -> Reply:
    return sandbox.handle("POST", EVENT, headers(key, **more), json.dumps(body).encode())


def listed(sandbox: Sandbox, query: str = "") -> Any:
    reply = sandbox.handle("GET", METERS + query, {"Authorization": f"Bearer {API_KEY}"}, b"")
    assert reply.status == 200, reply.body
    return document(reply)


def names(page: Any) -> list[str]:
    return [meter["event_name"] for meter in page["data"]]


# -- one event, checked at once --------------------------------------------------------------------


def test_a_good_event_is_answered_as_stripe_shows_it_and_counts(sandbox: Sandbox) -> None:
    reply = create(sandbox, event("e1", value="2", timestamp="2027-01-15T07:59:00.000Z"))

    assert reply.status == 200
    assert document(reply) == {
        "object": "v2.billing.meter_event",
        "created": "2027-01-15T08:00:00.000Z",
        "event_name": "api_requests",
        "identifier": "e1",
        "livemode": False,
        "payload": {"stripe_customer_id": "cus_1", "value": "2"},
        "timestamp": "2027-01-15T07:59:00.000Z",
    }
    assert sandbox.totals()["totals"] == {"api_requests": {"cus_1": "2"}}
    (request,) = sandbox.requests
    assert (request.events, request.identifiers) == (1, ("e1",))


def test_what_is_left_out_is_filled_in(sandbox: Sandbox) -> None:
    raw = event()
    del raw["identifier"]
    made = document(create(sandbox, raw))
    assert made["identifier"] == sandbox.ledger()[0]["identifier"]
    assert made["timestamp"] == made["created"]


@pytest.mark.parametrize(
    ("spoiled", "expected"),
    [
        (event("e", value="1e3"), "payload_invalid_value"),
        (event("e", payload={"stripe_customer_id": "cus_1"}), "payload_no_value_defined"),
        (event("e", payload={"value": "1"}), "payload_no_customer_defined"),
        (event("e", timestamp="2026-12-01T00:00:00Z"), "timestamp_too_far_in_past"),
        (event("e", timestamp="2027-01-15T09:00:00Z"), "timestamp_in_future"),
        ({"events": [event("e")]}, "invalid_fields"),
        ([], "invalid_fields"),
    ],
)
def test_each_rule_has_its_code(sandbox: Sandbox, spoiled: Any, expected: str) -> None:
    reply = create(sandbox, spoiled)
    assert (reply.status, code(reply)) == (400, expected)
    assert sandbox.totals()["accepted"] == 0


def test_an_identifier_that_comes_again_within_a_day_is_refused(sandbox: Sandbox) -> None:
    create(sandbox, event("e1"))
    reply = create(sandbox, event("e1"))
    assert (reply.status, code(reply)) == (400, "duplicate_meter_event")
    sandbox.advance(86_400)
    assert create(sandbox, event("e1", timestamp=None)).status == 200
    assert sandbox.totals() == {
        "accepted": 2,
        "duplicates": 1,
        "totals": {"api_requests": {"cus_1": "2"}},
    }


def test_the_stream_and_the_single_event_share_identifiers(client: Client) -> None:
    client.send(event("e1"))
    assert code(create(client.sandbox, event("e1"))) == "duplicate_meter_event"


def test_an_idempotency_key_that_succeeded_is_answered_again_without_effect(
    sandbox: Sandbox,
) -> None:
    body = event("e1")
    refused = create(sandbox, event("e0", value="x"), Idempotency_Key="k0")
    again = create(sandbox, event("e0", value="x"), Idempotency_Key="k0")
    assert (refused.status, again.status) == (400, 400)
    first = create(sandbox, body, Idempotency_Key="k1")
    second = create(sandbox, body, Idempotency_Key="k1")
    assert (second.status, document(second)) == (200, document(first))
    assert sandbox.totals()["duplicates"] == 0
    assert code(create(sandbox, event("e2"), Idempotency_Key="k1")) == "idempotency_error"


def test_it_takes_the_api_key_and_no_token(client: Client) -> None:
    assert create(client.sandbox, event(), key=client.token).status == 401
    assert create(Sandbox(api_keys={"other"}), event()).status == 401


def test_faults_strike_it_by_its_own_name(sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("status", on="stream", status=503))
    sandbox.add_fault(Fault("status", on="event", status=409, code="too_many_concurrent_requests"))
    reply = create(sandbox, event())
    assert (reply.status, code(reply)) == (409, "too_many_concurrent_requests")
    sandbox.clear_faults()
    sandbox.add_fault(Fault("poison", match={"identifier": "e1"}, code="no_meter"))
    assert code(create(sandbox, event("e1"))) == "no_meter"
    assert create(sandbox, event("e2")).status == 200


# -- meters ----------------------------------------------------------------------------------------


def test_without_meters_every_event_name_is_taken_and_none_is_listed(sandbox: Sandbox) -> None:
    assert create(sandbox, event(event_name="anything")).status == 200
    assert listed(sandbox)["data"] == []
    assert sandbox.meters is None


def test_with_meters_others_are_refused_by_both_endpoints() -> None:
    sandbox = Sandbox(meters=["api_requests", Meter("old", status="inactive")], time=lambda: NOW)
    client = Client(sandbox)
    for reply in (
        create(sandbox, event(event_name="tokens")),
        client.send(event(event_name="tokens")),
    ):
        assert (reply.status, code(reply)) == (400, "no_meter")
    for reply in (create(sandbox, event(event_name="old")), client.send(event(event_name="old"))):
        assert (reply.status, code(reply)) == (400, "archived_meter")
    assert client.send(event()).status == 200


def test_the_stream_may_find_out_later_that_there_is_no_meter() -> None:
    sandbox = Sandbox(meters=[], validate="async", time=lambda: NOW)
    assert Client(sandbox).send(event("e1")).status == 200
    assert [(row["identifier"], row["code"]) for row in sandbox.rejected] == [("e1", "no_meter")]


def test_a_meter_says_where_it_looks_for_customer_and_value() -> None:
    meter = Meter("api_requests", customer_key="org", value_key="count")
    sandbox = Sandbox(meters=[meter], time=lambda: NOW)
    assert code(create(sandbox, event())) == "payload_no_customer_defined"
    assert create(sandbox, event(payload={"org": "cus_2", "count": "3"})).status == 200
    assert sandbox.totals()["totals"] == {"api_requests": {"cus_2": "3"}}


def test_a_meter_is_listed_as_stripe_shows_it() -> None:
    meter = Meter("tokens", display_name="Tokens", formula="last", event_time_window="day")
    (shown,) = listed(Sandbox(meters=[meter], time=lambda: NOW))["data"]
    assert shown == {
        "id": meter.id,
        "object": "billing.meter",
        "created": int(NOW),
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "default_aggregation": {"formula": "last"},
        "display_name": "Tokens",
        "event_name": "tokens",
        "event_time_window": "day",
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": int(NOW),
        "value_settings": {"event_payload_key": "value"},
    }


def test_the_list_comes_in_pages_the_newest_first() -> None:
    sandbox = Sandbox(meters=[f"m{number:02d}" for number in range(25)])
    seen: list[str] = []
    query, more = "", True
    while more:
        page = listed(sandbox, query)
        seen += names(page)
        query, more = f"?starting_after={page['data'][-1]['id']}", page["has_more"]
    assert seen == [f"m{number:02d}" for number in reversed(range(25))]
    assert listed(sandbox, "?limit=25")["has_more"] is False
    newer = listed(sandbox, f"?limit=3&ending_before={Meter('m10').id}")
    assert (names(newer), newer["has_more"]) == (["m13", "m12", "m11"], True)
    newest = listed(sandbox, f"?limit=3&ending_before={Meter('m22').id}")
    assert (names(newest), newest["has_more"]) == (["m24", "m23"], False)


def test_the_list_can_be_asked_for_a_status() -> None:
    sandbox = Sandbox(meters=["new", Meter("old", status="inactive")])
    assert names(listed(sandbox)) == ["old", "new"]
    assert names(listed(sandbox, "?status=active&limit=100")) == ["new"]
    (old,) = listed(sandbox, "?status=inactive")["data"]
    assert old["status_transitions"]["deactivated_at"] is not None


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("limit=0", "parameter_invalid_integer"),
        ("limit=101", "parameter_invalid_integer"),
        ("limit=x", "parameter_invalid_integer"),
        ("status=archived", "parameter_invalid"),
        ("starting_after=mtr_1", "resource_missing"),
        ("starting_after=mtr_1&ending_before=mtr_1", "parameter_invalid"),
        ("event_name=tokens", "parameter_unknown"),
    ],
)
def test_a_wrong_question_is_refused(sandbox: Sandbox, query: str, complaint: str) -> None:
    sent = {"Authorization": f"Bearer {API_KEY}"}
    reply = sandbox.handle("GET", f"{METERS}?{query}", sent, b"")
    assert (reply.status, code(reply)) == (400, complaint)
    assert document(reply)["error"]["type"] == "invalid_request_error"


def test_the_list_asks_for_a_key_and_takes_no_other_method(sandbox: Sandbox) -> None:
    assert sandbox.handle("GET", METERS, {}, b"").status == 401
    assert sandbox.handle("POST", METERS, headers(API_KEY), b"{}").status == 405


def test_meters_are_set_through_the_controls_until_a_reset() -> None:
    sandbox = Sandbox(meters=["first"])
    client = Client(sandbox)
    wanted = ["tokens", {"event_name": "old", "status": "inactive"}]
    assert names({"data": document(client.control("POST", "meters", wanted))["meters"]}) == [
        "old",
        "tokens",
    ]
    assert client.send(event(event_name="tokens")).status == 200
    assert client.send(event(event_name="first")).status == 400
    assert document(client.control("DELETE", "meters")) == {"meters": None}
    assert client.send(event(event_name="first")).status == 200
    client.control("POST", "reset")
    assert names({"data": document(client.control("GET", "meters"))["meters"]}) == ["first"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_name": "tokens"},
        [{"display_name": "Tokens"}],
        [{"event_name": "tokens", "colour": "red"}],
        [{"event_name": ""}],
        [{"event_name": "tokens", "status": "gone"}],
        [{"event_name": "tokens", "formula": "max"}],
        [{"event_name": "tokens", "display_name": 3}],
        ["tokens", "tokens"],
    ],
)
def test_wrong_meters_change_nothing(client: Client, wrong: Any) -> None:
    reply = client.control("POST", "meters", wrong)
    assert (reply.status, code(reply)) == (400, "invalid_fields")
    assert client.sandbox.meters is None
