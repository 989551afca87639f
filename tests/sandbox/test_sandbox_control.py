from typing import Any

import pytest

from .client import NOW, STREAM, Client, document, event


def test_totals_are_told_exactly_as_documented(client: Client) -> None:
    client.send(event("a", value="2"), event("a"))

    assert document(client.control("GET", "totals")) == {
        "accepted": 1,
        "duplicates": 1,
        "totals": {"api_requests": {"cus_1": "2"}},
    }


def test_the_ledger_can_be_searched_and_paged(client: Client) -> None:
    client.send(*[event(f"e{number}") for number in range(5)])
    client.send(
        event("other", event_name="tokens", payload={"stripe_customer_id": "c", "value": "1"})
    )

    def identifiers(query: str) -> list[str]:
        rows = document(client.control("GET", "ledger" + query))["events"]
        return [row["identifier"] for row in rows]

    assert identifiers("") == ["e0", "e1", "e2", "e3", "e4", "other"]
    assert identifiers("?event_name=tokens") == ["other"]
    assert identifiers("?customer=cus_1&offset=1&limit=2") == ["e1", "e2"]
    assert identifiers("?identifier=e3") == ["e3"]


def test_requests_are_shown_latest_last(client: Client) -> None:
    client.send(event("a"))
    client.send(event("b"))

    (request,) = document(client.control("GET", "requests?limit=1"))["requests"]

    assert request == {
        "at": NOW,
        "method": "POST",
        "path": STREAM,
        "status": 200,
        "events": 1,
        "idempotency_key": None,
        "identifiers": ["b"],
        "authorization_kind": "session",
        "cut": None,
    }
    assert document(client.control("GET", "requests?limit=0")) == {"requests": []}


def test_late_rejections_are_shown(client: Client) -> None:
    assert document(client.control("GET", "rejected")) == {"rejected": []}


def test_faults_can_be_added_listed_and_cleared(client: Client) -> None:
    added = client.control("POST", "faults", {"kind": "status", "status": 500, "times": 1})
    assert document(added) == {"faults": [{"kind": "status", "status": 500, "times": 1}]}

    assert client.send(event()).status == 500
    assert document(client.control("GET", "faults")) == {"faults": []}

    several = [{"kind": "hang"}, {"kind": "delay", "seconds": 1}]
    assert len(document(client.control("POST", "faults", several))["faults"]) == 2
    assert document(client.control("DELETE", "faults")) == {"faults": []}


def test_a_list_with_a_wrong_fault_changes_nothing(client: Client) -> None:
    reply = client.control("POST", "faults", [{"kind": "hang"}, {"kind": "?"}])

    assert reply.status == 400
    assert "kind must be one of" in document(reply)["error"]["message"]
    assert client.sandbox.faults == []


def test_the_clock_can_be_read_moved_and_set(client: Client) -> None:
    assert document(client.control("GET", "clock")) == {"now": NOW}
    assert document(client.control("POST", "clock", {"advance": 60})) == {"now": NOW + 60}
    assert document(client.control("POST", "clock", {"now": 5.0})) == {"now": 5.0}


@pytest.mark.parametrize(
    "body",
    [None, {}, [], {"advance": "1"}, {"advance": True}, {"now": 1e300}, {"advance": 1, "now": 2}],
)
def test_the_clock_refuses_what_is_no_time(client: Client, body: Any) -> None:
    assert client.control("POST", "clock", body).status == 400
    assert client.sandbox.now() == NOW


def test_sessions_can_be_revoked(client: Client) -> None:
    client.send(event())
    client.control("POST", "revoke")

    assert client.send(event()).status == 401


def test_everything_can_be_reset(client: Client) -> None:
    client.send(event())
    client.control("POST", "clock", {"advance": 60})
    client.control("POST", "reset")

    assert client.sandbox.totals()["accepted"] == 0
    assert client.sandbox.now() == NOW


def test_looking_leaves_no_trace(client: Client) -> None:
    client.control("GET", "totals")

    assert client.sandbox.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 404),
        ("GET", "nothing", 404),
        ("POST", "totals", 405),
        ("DELETE", "reset", 405),
        ("GET", "ledger?limit=x", 400),
        ("GET", "ledger?offset=-1", 400),
        ("GET", "requests?limit=1.5", 400),
    ],
)
def test_a_wrong_use_of_the_controls_is_told_in_an_envelope(
    client: Client, method: str, path: str, status: int
) -> None:
    reply = client.control(method, path)

    assert reply.status == status
    assert document(reply)["error"].keys() == {"code", "message"}


def test_controls_refuse_a_body_that_is_not_json(client: Client) -> None:
    assert client.sandbox.handle("POST", "/_sandbox/faults", {}, b"{").status == 400
