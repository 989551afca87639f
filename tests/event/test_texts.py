"""Which names, customers, identifiers and payloads may be billed."""

from __future__ import annotations

from typing import Any

import pytest

from meter_agent._event import (
    NAME_CHARACTERS_MAX,
    PAYLOAD_KEYS_MAX,
    PAYLOAD_VALUE_CHARACTERS_MAX,
    EventEncoder,
)
from meter_agent.exceptions import InvalidEventError
from tests.event.events import (
    HUGE_TEXT,
    Exploding,
    ExplodingMapping,
    StrSubclass,
    encode,
    made,
    recorded,
    refusal,
)


class EndlessMapping(ExplodingMapping):
    def items(self) -> Any:
        while True:
            yield "key", "value"


BAD_NAMES = [
    *("", "x" * 101, "a\nb", "a\rX-Header: 1", "\x00", "a\x7f", "\x85", "\u2028", "\ud800"),
    *("\ud83d\ude00", HUGE_TEXT, b"cus", 5, True, ["cus"], Exploding),
]


@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
@pytest.mark.parametrize("name", [*BAD_NAMES, StrSubclass("")], ids=lambda v: type(v).__name__)
def test_a_bad_name_is_refused_by_field(field: str, name: object) -> None:
    error = refusal(**{field: made(name)})
    assert error.field == field
    assert error.rule.startswith(f"must be a non-empty str of at most {NAME_CHARACTERS_MAX}")
    assert len(error.value) <= 200
    assert error.value.isascii() or "…" in error.value


@pytest.mark.parametrize("field", ["event_name", "customer_id"])
def test_none_is_no_name(field: str) -> None:
    assert refusal(**{field: None}).value == "None"


@pytest.mark.parametrize("name", ["x" * 100, "é" * 100, "a b", "a\u00a0b", "👩\u200d🚀", '"\\/'])
@pytest.mark.parametrize("field", ["event_name", "customer_id", "identifier"])
def test_any_printable_text_of_a_hundred_characters_is_a_name(field: str, name: str) -> None:
    document = encode(**{field: name})
    sent = document | {"customer_id": document["payload"]["stripe_customer_id"]}
    assert sent[field] == name


def test_a_bad_name_is_refused_every_time() -> None:
    encoder = EventEncoder()
    for _ in range(3):
        with pytest.raises(InvalidEventError, match=r"^event_name"):
            encoder.check(recorded(event_name="\n"))


@pytest.mark.parametrize(
    "payload",
    [[("a", "b")], "a", 5, Exploding, ExplodingMapping()],
    ids=lambda value: type(value).__name__,
)
def test_a_payload_that_is_no_mapping_is_refused(payload: object) -> None:
    error = refusal(payload=made(payload))
    assert (error.field, error.rule[:17]) == ("payload", "must be a mapping")


@pytest.mark.parametrize(
    "payload",
    [{f"key{n}": "" for n in range(PAYLOAD_KEYS_MAX + 1)}, EndlessMapping()],
    ids=["dict", "endless"],
)
def test_a_payload_of_too_many_keys_is_refused(payload: object) -> None:
    error = refusal(payload=payload)
    assert (error.field, error.rule[:20]) == ("payload", "must have at most 50")


def test_a_payload_of_just_as_many_keys_as_allowed_is_sent() -> None:
    payload = {f"key{n}": "v" * PAYLOAD_VALUE_CHARACTERS_MAX for n in range(PAYLOAD_KEYS_MAX)}
    assert encode(payload=payload)["payload"].items() > payload.items()


@pytest.mark.parametrize("key", ["", "x" * 101, "a\n", "\ud800", 5, None, b"k"])
def test_a_bad_payload_key_is_refused(key: object) -> None:
    assert refusal(payload={key: "v"}).field == "payload key"


@pytest.mark.parametrize("value", ["x" * 501, "\udfff", 5, None, b"v", True, Exploding])
def test_a_bad_payload_value_is_refused_by_its_key(value: object) -> None:
    assert refusal(payload={"region": made(value)}).field == "payload['region']"


@pytest.mark.parametrize("key", ["stripe_customer_id", "value"])
def test_the_payload_cannot_change_who_pays_and_how_much(key: str) -> None:
    error = refusal(payload={"region": "eu", key: "x"})
    assert (error.field, error.value) == ("payload key", repr(key))
    assert "must not be the customer or value key" in error.rule
