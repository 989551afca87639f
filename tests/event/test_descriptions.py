"""What a refusal says, and how an event that cannot be billed is shown."""

from __future__ import annotations

import json
import math
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import EventEncoder, RecordedEvent, describe
from meter_agent.exceptions import InvalidEventError
from tests.event.events import (
    HUGE_INT,
    HUGE_TEXT,
    NOW,
    Exploding,
    ExplodingMapping,
    ExplodingZone,
    StrSubclass,
    made,
    recorded,
    refusal,
)


class WideRepr:
    def __repr__(self) -> str:
        return "x" * 1_000_000


def test_a_refusal_says_what_happened_to_which_value_and_what_to_do() -> None:
    assert str(refusal(value="0.30000000000000004")) == (
        "value='0.30000000000000004' is invalid: must be exact in 15 digits, at most 12 of them"
        " decimals. Round it before recording, for example with round(value, 6)"
    )


def test_a_refusal_can_be_pickled() -> None:
    error = refusal(customer_id="\ud800")
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_a_description_shows_the_fields_as_they_were_given() -> None:
    event = recorded(
        value=Decimal("1.50"),
        timestamp=datetime(2024, 6, 1, tzinfo=UTC),
        payload={"region": "eu", 5: Exploding},
    )
    assert describe(tuple(event)) == {
        "recorded_at": NOW,
        "event_name": "api_requests",
        "customer_id": "cus_123",
        "value": "1.50",
        "timestamp": "2024-06-01T00:00:00+00:00",
        "identifier": None,
        "payload": {"region": "eu", "5": repr(Exploding)},
    }


def test_a_description_shows_each_scalar_as_it_would_have_been_sent() -> None:
    order = UUID("0188d4c3-1111-4222-8333-444455556666")
    shown = describe(
        recorded(
            value=np.int64(5),
            timestamp=np.float32(0.5),
            identifier=order,
            payload={"n": np.uint8(3), "stream": True, "tenant": order, "none": None, "x": []},
        )
    )
    assert (shown["value"], shown["timestamp"], shown["identifier"]) == (5, 0.5, str(order))
    assert shown["payload"] == {
        "n": "3",
        "stream": "true",
        "tenant": str(order),
        "none": "null",
        "x": "[]",
    }


def test_a_description_keeps_json_numbers_and_prints_the_others() -> None:
    shown = describe(recorded(value=True, timestamp=math.nan, identifier=HUGE_INT))
    assert (shown["value"], shown["timestamp"]) == (True, "nan")
    assert shown["identifier"] == "<int of 3321929 bits>"


def test_a_description_escapes_what_utf_8_cannot_carry() -> None:
    assert describe(recorded(customer_id="a\ud800"))["customer_id"] == "a\\ud800"


@pytest.mark.parametrize(
    "thing",
    [
        *(
            Exploding,
            WideRepr(),
            HUGE_TEXT,
            HUGE_INT,
            "\ud800" * 300,
            StrSubclass("x"),
            b"x" * 1000,
        ),
        *(datetime(2024, 6, 1, tzinfo=ExplodingZone()), Decimal("1" * 1000), [Exploding()] * 9),
        *({Exploding: HUGE_TEXT}, {"k": WideRepr()}, ExplodingMapping(), {"k" * 999: [HUGE_TEXT]}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("field", RecordedEvent._fields)
def test_a_description_never_raises_and_stays_short(field: str, thing: object) -> None:
    text = json.dumps(describe(recorded(**{field: made(thing)})), allow_nan=False)
    assert len(text.encode()) < 3000


@pytest.mark.parametrize("event", [None, (), (1, 2), Exploding, "seven c", [1] * 7])
def test_a_description_of_what_is_no_event_is_its_repr(event: object) -> None:
    shown = describe(made(event))
    assert list(shown) == ["event"]
    json.dumps(shown)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.decimals()
    # Every code point, lone surrogates too.
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)  # fmt: skip


@given(st.tuples(*[ANYTHING] * 7))
def test_any_event_is_either_sent_or_refused_by_name_and_can_always_be_described(
    event: tuple[Any, ...],
) -> None:
    json.dumps(describe(event), allow_nan=False).encode()
    fields = {field for field in RecordedEvent._fields if field != "recorded_at"} | {"payload key"}
    try:
        json.loads(EventEncoder().encode((NOW, *event[1:]), "uuid-1").body)
    except InvalidEventError as refused:
        str(refused).encode()
        field = refused.field.partition("[")[0]
    else:
        field = "payload"
    assert field in fields
