import threading
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from meter_agent.sandbox import Sandbox

from .client import NOW, Client, code, document, event

DAY = 86_400


def test_an_identifier_counts_once(client: Client) -> None:
    client.send(event("a", value="5"))
    reply = client.send(event("a", value="5"), event("b", value="1"))

    assert reply.status == 200
    assert client.sandbox.totals() == {
        "accepted": 2,
        "duplicates": 1,
        "totals": {"api_requests": {"cus_1": "6"}},
    }
    assert [row["times_seen"] for row in client.sandbox.ledger()] == [2, 1]


def test_an_identifier_counts_once_within_a_batch(client: Client) -> None:
    client.send(event("a"), event("a"))

    assert client.identifiers == ["a"]
    assert client.sandbox.totals()["duplicates"] == 1


def test_an_identifier_counts_once_even_with_another_content(client: Client) -> None:
    client.send(event("a", value="5"))
    client.send(event("a", value="7", event_name="other"))

    assert client.sandbox.totals()["totals"] == {"api_requests": {"cus_1": "5"}}


def test_an_identifier_is_free_again_after_24_hours(client: Client) -> None:
    sandbox = Sandbox(session_seconds=10 * DAY, time=lambda: NOW)
    client = Client(sandbox)
    client.send(event("a"))
    sandbox.advance(DAY - 0.5)
    client.send(event("a"))
    assert sandbox.totals()["totals"]["api_requests"]["cus_1"] == "1"
    sandbox.advance(0.5)
    client.send(event("a"))
    assert sandbox.totals()["totals"]["api_requests"]["cus_1"] == "2"
    assert sandbox.totals()["accepted"] == 2


def test_a_refused_event_leaves_its_identifier_free(client: Client) -> None:
    client.send(event("a", value="x"))
    client.send(event("a"))

    assert client.sandbox.totals()["accepted"] == 1


def test_rejecting_refuses_the_whole_request_by_identifier() -> None:
    client = Client(Sandbox(duplicates="reject"))
    client.send(event("a"))

    reply = client.send(event("b"), event("a"))

    assert (reply.status, code(reply)) == (400, "duplicate_meter_event")
    message = document(reply)["error"]["message"]
    assert message == "An event already exists with identifier a"
    assert client.identifiers == ["a"]
    assert client.sandbox.ledger()[0]["times_seen"] == 2


def test_rejecting_looks_within_the_batch_too() -> None:
    client = Client(Sandbox(duplicates="reject"))

    assert code(client.send(event("a"), event("a"))) == "duplicate_meter_event"
    assert client.identifiers == []


def test_an_idempotency_key_cannot_carry_another_body(client: Client) -> None:
    body = event("a")
    assert client.send(body, Idempotency_Key="k").status == 200
    assert client.send(body, Idempotency_Key="k").status == 200

    reply = client.send(event("b"), Idempotency_Key="k")

    assert (reply.status, code(reply)) == (409, "idempotency_error")
    assert client.identifiers == ["a"]


def test_a_request_without_credentials_does_not_bind_its_idempotency_key(client: Client) -> None:
    client.send(event())
    client.sandbox.revoke_sessions()
    client.send(event(), Idempotency_Key="k")
    later = Client(client.sandbox)

    assert later.send(event(), Idempotency_Key="k").status == 200


def test_only_the_latest_ten_thousand_idempotency_keys_are_remembered(client: Client) -> None:
    client.send(event(), Idempotency_Key="first")
    for number in range(10_000):
        client.send(event("same"), Idempotency_Key=f"key-{number}")

    assert client.send(event(), Idempotency_Key="first").status == 200
    assert client.send(event(), Idempotency_Key="key-9999").status == 409


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 9), st.decimals(-999, 999, places=3)), min_size=1, max_size=5
        ),
        max_size=12,
    )
)
def test_totals_are_the_sum_of_each_identifiers_first_value(
    batches: list[list[tuple[int, Decimal]]],
) -> None:
    client = Client(Sandbox())
    first: dict[int, Decimal] = {}
    for batch in batches:
        client.send(*[event(str(number), value=f"{value:f}") for number, value in batch])
        for number, value in batch:
            first.setdefault(number, value)

    totals = client.sandbox.totals()

    assert totals["accepted"] == len(first)
    assert totals["duplicates"] == sum(map(len, batches)) - len(first)
    assert Decimal(totals["totals"].get("api_requests", {}).get("cus_1", "0")) == sum(
        first.values()
    )


def test_threads_do_not_lose_or_double_events(client: Client) -> None:
    client.send(event("start"))

    def work() -> None:
        for number in range(50):
            client.send(event(f"shared-{number}"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    totals = client.sandbox.totals()
    assert (totals["accepted"], totals["duplicates"]) == (51, 350)
    assert len(client.sandbox.requests) == 402


def test_a_long_memory_of_requests_is_bounded(client: Client) -> None:
    for _ in range(100_001):
        client.sandbox.handle("GET", "/", {}, b"")

    assert len(client.sandbox.requests) == 100_000
