from typing import Any

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox._gateways import GATEWAY_ANSWERS

from .client import Client, code, document, event


def statuses(client: Client, requests: int) -> list[int]:
    return [client.send(event()).status for _ in range(requests)]


def test_a_status_strikes_the_next_few_requests(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", status=503, times=2))

    assert statuses(client, 3) == [503, 503, 200]
    assert client.sandbox.totals()["accepted"] == 1
    assert client.sandbox.faults == []


def test_a_fault_without_times_lasts_until_it_is_cleared(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", status=500))

    assert statuses(client, 3) == [500, 500, 500]
    client.sandbox.clear_faults()
    assert statuses(client, 1) == [200]


def test_faults_in_force_show_what_is_left_of_them(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", times=3))
    client.send(event())

    assert client.sandbox.faults == [Fault("status", times=2)]


def test_a_status_may_hide_that_the_events_were_taken_in(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", status=502, accept=True, times=1))

    assert client.send(event("a")).status == 502
    assert client.identifiers == ["a"]


def test_a_rate_limit_says_when_to_come_back(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", status=429, retry_after="7"))

    reply = client.send(event())

    assert reply.headers["Retry-After"] == "7"
    assert document(reply)["error"]["type"] == "rate_limit"


def test_a_status_can_be_dressed_with_code_message_and_headers(client: Client) -> None:
    client.sandbox.add_fault(
        Fault(
            "status",
            status=400,
            code="archived_meter",
            message="No.",
            headers={"Stripe-Should-Retry": "false"},
        )
    )

    reply = client.send(event())

    assert document(reply) == {"error": {"code": "archived_meter", "message": "No."}}
    assert reply.headers["Stripe-Should-Retry"] == "false"


def test_a_status_can_play_a_proxy_that_answers_html(client: Client) -> None:
    client.sandbox.add_fault(
        Fault("status", status=200, body="<html>", headers={"content-type": "text/html"})
    )

    reply = client.send(event())

    assert (reply.status, reply.body) == (200, b"<html>")
    assert {name.lower() for name in reply.headers} == {"request-id", "date", "content-type"}


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_that_has_no_body_gets_none(client: Client, status: int) -> None:
    client.sandbox.add_fault(Fault("status", status=status, body="x"))

    assert client.send(event()).body == b""


@pytest.mark.parametrize(("accept", "taken"), [(False, []), (True, ["a"])])
def test_a_gateway_answers_in_its_own_form_and_without_a_request_id(
    client: Client, accept: bool, taken: list[str]
) -> None:
    client.sandbox.add_fault(Fault("gateway", form="kong-404", accept=accept, times=1))

    reply = client.send(event("a"))

    assert (reply.status, document(reply)) == (
        404,
        {"message": "no Route matched with those values"},
    )
    assert "Request-Id" not in reply.headers
    assert client.identifiers == taken


@pytest.mark.parametrize("form", GATEWAY_ANSWERS)
def test_the_name_of_a_gateways_answer_ends_in_its_status(client: Client, form: str) -> None:
    client.sandbox.add_fault(Fault("gateway", form=form))
    assert form.endswith(f"-{client.send(event()).status}")


def test_a_gateway_that_is_not_known_is_refused_with_the_names_of_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"form must be one of .*nginx-502"):
        Fault.from_json({"kind": "gateway", "form": "apache-500"})


def test_a_reset_before_leaves_no_trace_and_a_reset_after_does(client: Client) -> None:
    client.sandbox.add_fault(Fault("reset", times=1))
    client.sandbox.add_fault(Fault("reset", when="after", times=1))

    assert client.send(event("lost")).cut == "before"
    assert client.send(event("kept")).cut == "after"
    assert client.identifiers == ["kept"]


def test_a_truncated_answer_has_had_its_effect(client: Client) -> None:
    client.sandbox.add_fault(Fault("truncate"))

    reply = client.send(event("a"))

    assert (reply.cut, reply.body) == ("truncate", b"{}")
    assert client.identifiers == ["a"]


@pytest.mark.parametrize(("accept", "taken"), [(False, []), (True, ["a"])])
def test_a_hang_has_its_effect_or_not(client: Client, accept: bool, taken: list[str]) -> None:
    client.sandbox.add_fault(Fault("hang", accept=accept))

    assert client.send(event("a")).cut == "hang"
    assert client.identifiers == taken


def test_delays_add_up_and_go_with_an_ending(client: Client) -> None:
    client.sandbox.add_fault(Fault("delay", seconds=1.5))
    client.sandbox.add_fault(Fault("delay", seconds=2))
    client.sandbox.add_fault(Fault("status", status=500, times=1))

    first, second = client.send(event()), client.send(event())

    assert (first.status, first.delay_seconds) == (500, 3.5)
    assert (second.status, second.delay_seconds) == (200, 3.5)


def test_the_first_of_two_endings_wins_and_spares_the_second(client: Client) -> None:
    client.sandbox.add_fault(Fault("status", status=500, times=1))
    client.sandbox.add_fault(Fault("status", status=502, times=1))

    assert statuses(client, 3) == [500, 502, 200]


def test_a_probability_is_drawn_from_the_seed() -> None:
    def draws(seed: int) -> list[int]:
        sandbox = Sandbox(seed=seed)
        sandbox.add_fault(Fault("status", status=500, probability=0.3))
        return statuses(Client(sandbox), 300)

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert 50 < draws(1).count(500) < 130


def test_a_fault_of_the_session_spares_the_stream(client: Client) -> None:
    assert client.send(event()).status == 200
    client.sandbox.add_fault(Fault("status", status=503, on="session"))

    assert client.open_session().status == 503
    assert client.send(event()).status == 200


def test_a_fault_on_any_strikes_both_but_never_the_controls(client: Client) -> None:
    assert client.send(event()).status == 200
    client.sandbox.add_fault(Fault("status", status=503, on="any"))

    assert client.open_session().status == 503
    assert client.send(event()).status == 503
    assert client.control("GET", "totals").status == 200


def test_a_revocation_strikes_the_tokens_that_are_out(client: Client) -> None:
    assert client.send(event()).status == 200
    client.sandbox.add_fault(Fault("revoke", times=1))

    assert code(client.send(event())) == "billing_meter_event_session_expired"
    assert Client(client.sandbox).send(event()).status == 200


@pytest.mark.parametrize(
    "match",
    [
        {"payload.value": "13"},
        {"customer": "cus_bad"},
        {"event_name": "bad"},
        {"identifier": "bad"},
        {"identifier": "bad", "payload.value": "13"},
    ],
)
def test_a_poisoned_event_is_refused_each_time(client: Client, match: dict[str, str]) -> None:
    client.sandbox.add_fault(Fault("poison", match=match, code="no_meter", message="Poison."))
    bad = event("bad", event_name="bad", payload={"stripe_customer_id": "cus_bad", "value": "13"})

    for _ in range(2):
        reply = client.send(event(), bad)
        assert document(reply)["error"] == {"code": "no_meter", "message": "events[1]: Poison."}
    assert client.send(event()).status == 200
    assert client.sandbox.totals()["accepted"] == 1


def test_poison_needs_every_part_of_its_match(client: Client) -> None:
    client.sandbox.add_fault(Fault("poison", match={"identifier": "a", "payload.value": "13"}))

    assert client.send(event("a", value="12")).status == 200


def test_poison_can_be_told_by_a_predicate(client: Client) -> None:
    client.sandbox.add_fault(
        Fault("poison", predicate=lambda each: each["identifier"].endswith("x"))
    )

    assert client.send(event("ax")).status == 400
    assert client.send(event("xa")).status == 200


def test_a_predicate_that_fails_is_told_and_takes_nothing_in(client: Client) -> None:
    client.sandbox.add_fault(Fault("poison", predicate=lambda each: bool(each["nothing"])))

    reply = client.send(event())

    assert (reply.status, code(reply)) == (500, "sandbox_error")
    assert client.sandbox.totals()["accepted"] == 0


@pytest.mark.parametrize("rule", [{"every": 10}, {"probability": 0.1}])
def test_poison_picks_the_same_share_of_identifiers_each_time(
    client: Client, rule: dict[str, Any]
) -> None:
    client.sandbox.add_fault(Fault("poison", **rule))

    rounds = [[client.send(event(f"e-{n}")).status for n in range(1000)] for _ in range(2)]

    assert rounds[0] == rounds[1]
    assert 60 < rounds[0].count(400) < 140


def test_poison_by_share_spares_events_without_identifier(client: Client) -> None:
    nameless = event()
    del nameless["identifier"]
    client.sandbox.add_fault(Fault("poison", probability=0.0000001))

    assert client.send(nameless).status == 200


def test_poison_counts_once_per_request(client: Client) -> None:
    client.sandbox.add_fault(Fault("poison", match={"payload.value": "13"}, times=1))

    assert client.send(event("a", value="13"), event("b", value="13")).status == 400
    assert client.send(event("a", value="13"), event("b", value="13")).status == 200


def test_poison_spares_the_others_when_batches_are_not_atomic() -> None:
    client = Client(Sandbox(batch_atomic=False))
    client.sandbox.add_fault(Fault("poison", match={"identifier": "b"}))

    assert client.send(event("a"), event("b"), event("c")).status == 400
    assert client.identifiers == ["a", "c"]


def test_faulted_requests_are_remembered_with_what_they_held(client: Client) -> None:
    client.send(event())
    client.sandbox.add_fault(Fault("reset", times=1))
    client.send(event("a"))

    request = client.sandbox.requests[-1]

    assert (request.cut, request.status) == ("before", 0)
    assert (request.events, request.identifiers) == (1, ("a",))


def test_a_reset_starts_all_over_but_keeps_no_old_token_alive() -> None:
    sandbox = Sandbox(seed=7)
    client = Client(sandbox)
    old = client.token
    client.send(event())
    sandbox.advance(50)
    sandbox.add_fault(Fault("hang"))

    sandbox.reset()

    assert sandbox.totals() == {"accepted": 0, "duplicates": 0, "totals": {}}
    assert (sandbox.requests, sandbox.faults, sandbox.ledger()) == ([], [], [])
    assert client.new_token() != old
    assert client.send(event()).status == 401


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "explode"},
        {"kind": "status", "on": "v1"},
        {"kind": "status", "times": 0},
        {"kind": "status", "times": True},
        {"kind": "status", "probability": 1.5},
        {"kind": "status", "probability": "often"},
        {"kind": "status", "status": 100},
        {"kind": "status", "status": 600},
        {"kind": "status", "code": 3},
        {"kind": "status", "headers": {"X": 1}},
        {"kind": "status", "headers": {"X": "a\r\nb"}},
        {"kind": "status", "headers": {"X y": "a"}},
        {"kind": "status", "retry_after": "1\n2"},
        {"kind": "hang", "accept": "yes"},
        {"kind": "delay", "seconds": -1},
        {"kind": "reset", "when": "during"},
        {"kind": "poison", "every": 0},
        {"kind": "poison", "match": {"value": "13"}},
        {"kind": "poison", "match": ["value"]},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^fault: "):
        Fault(**fields)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=429, retry_after="2", times=3, headers={"A": "b"}),
        Fault("delay", seconds=0.5, probability=0.25),
        Fault("reset", when="after", on="any"),
        Fault("hang", accept=True),
        Fault("poison", match={"payload.value": "13"}, every=3000, code="no_meter"),
        Fault("revoke", on="session", times=1),
    ],
)
def test_a_fault_survives_json(fault: Fault) -> None:
    assert Fault.from_json(fault.to_json()) == fault


def test_json_names_a_predicate_but_cannot_bring_one() -> None:
    def is_odd(each: dict[str, Any]) -> bool:
        return True

    written = Fault("poison", predicate=is_odd).to_json()

    assert written == {"kind": "poison", "predicate": "is_odd"}
    with pytest.raises(ValueError, match="predicate"):
        Fault.from_json(written)


@pytest.mark.parametrize("document", [[], {}, {"kind": "status", "state": 1}])
def test_json_that_is_no_fault_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"^fault: "):
        Fault.from_json(document)


def test_json_may_give_retry_after_as_a_number() -> None:
    assert Fault.from_json({"kind": "status", "retry_after": 2}).retry_after == "2"
