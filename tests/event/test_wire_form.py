"""The bytes that Stripe gets for an event."""

from __future__ import annotations

import enum
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import EventEncoder, MeterEvent, PayloadKeys, RecordedEvent, is_name
from tests.event.events import NOW, StrSubclass, encode, recorded


class Meter(str, enum.Enum):  # noqa: UP042  whose str() is not its text
    REQUESTS = "api_requests"


def test_an_event_is_sent_in_the_form_that_stripe_documents() -> None:
    event = EventEncoder().encode((NOW, "api_requests", "cus_123", 5, None, None, None), "uuid-1")
    assert event == MeterEvent(
        identifier="uuid-1",
        body=b'{"event_name":"api_requests","identifier":"uuid-1","payload":'
        b'{"stripe_customer_id":"cus_123","value":"5"},"timestamp":"2024-06-01T12:15:00.000Z"}',
        timestamp=NOW,
        recorded_at=NOW,
    )


def test_encoding_twice_gives_the_same_bytes() -> None:
    event, encoder = recorded(payload={"b": "1", "a": "2"}), EventEncoder()
    assert encoder.encode(event, "i").body == EventEncoder().encode(event, "i").body


def test_the_callers_identifier_wins_over_the_minted_one() -> None:
    event = EventEncoder().encode(recorded(identifier="order-7"), "uuid-1")
    assert event.identifier == "order-7"
    assert json.loads(event.body)["identifier"] == "order-7"


def test_the_callers_timestamp_is_sent_and_the_moment_of_recording_is_kept() -> None:
    event = EventEncoder().encode(recorded(timestamp=NOW - 60), "uuid-1")
    assert (event.timestamp, event.recorded_at) == (NOW - 60, NOW)
    assert json.loads(event.body)["timestamp"] == "2024-06-01T12:14:00.000Z"


def test_payload_keys_follow_the_meter_of_the_event() -> None:
    encoder = EventEncoder(
        PayloadKeys("customer", "amount"), {"tokens": PayloadKeys("account", "count")}
    )
    assert _payload(encoder, recorded()) == {"customer": "cus_123", "amount": "1"}
    tokens = recorded(event_name="tokens")
    assert _payload(encoder, tokens) == {"account": "cus_123", "count": "1"}


def test_the_value_key_of_one_meter_may_be_a_payload_key_of_another() -> None:
    encoder = EventEncoder(keys_by_event={"tokens": PayloadKeys("account", "count")})
    assert _payload(encoder, recorded(payload={"count": "9"}))["count"] == "9"


def _payload(encoder: EventEncoder, event: RecordedEvent) -> Any:
    return json.loads(encoder.encode(event, "uuid-1").body)["payload"]


def test_an_empty_payload_is_like_none() -> None:
    assert encode(payload={}) == encode(payload=None)


def test_extra_payload_keys_are_sent_after_customer_and_value() -> None:
    payload = encode(payload={"region": "eu", "note": "", "text": "a\nb"})["payload"]
    assert list(payload) == ["stripe_customer_id", "value", "region", "note", "text"]
    assert payload["text"] == "a\nb"


def test_a_str_enum_counts_as_its_text_and_not_as_its_name() -> None:
    document = encode(event_name=Meter.REQUESTS, customer_id=StrSubclass("cus_1"))
    assert document["event_name"] == "api_requests"
    assert document["payload"]["stripe_customer_id"] == "cus_1"


NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=100
).filter(is_name)


@given(
    name=NAMES,
    customer=NAMES,
    identifier=st.none() | NAMES,
    value=st.integers(-(10**15) + 1, 10**15 - 1),
    payload=st.none()
    | st.dictionaries(
        NAMES.filter(lambda key: key not in PayloadKeys()),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=500),
        max_size=4,
    ),
)
def test_what_was_recorded_is_what_stripe_reads(
    name: str, customer: str, identifier: str | None, value: int, payload: dict[str, str] | None
) -> None:
    document = encode(
        event_name=name, customer_id=customer, identifier=identifier, value=value, payload=payload
    )
    assert document == {
        "event_name": name,
        "identifier": "uuid-1" if identifier is None else identifier,
        "payload": {"stripe_customer_id": customer, "value": str(value)} | (payload or {}),
        "timestamp": "2024-06-01T12:15:00.000Z",
    }
