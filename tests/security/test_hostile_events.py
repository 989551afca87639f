"""Events that were made to hurt: each is refused by name, none is lost, none harms another."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from meter_agent import DeadLetter, InvalidEventError
from meter_agent.sandbox import Sandbox
from tests.conftest import MakeAgent
from tests.wire.front import Front, real_agent

INJECTION = "id\r\nAuthorization: Bearer evil\r\n\r\n"


def nested(depth: int) -> dict[str, Any]:
    payload: dict[str, Any] = {"bottom": "x"}
    for _ in range(depth):
        payload = {"down": payload}
    return payload


def circle() -> dict[str, Any]:
    payload: dict[str, Any] = {}
    payload["self"] = payload
    return payload


GOOD: dict[str, Any] = {"event_name": "tokens", "customer_id": "cus_1"}
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("header in the identifier", {"identifier": INJECTION}, "identifier"),
    ("header in the customer", {"customer_id": INJECTION}, "customer_id"),
    ("header in the event name", {"event_name": INJECTION}, "event_name"),
    ("header in a payload key", {"payload": {INJECTION: "x"}}, "payload key"),
    ("null byte", {"customer_id": "cus_\0"}, "customer_id"),
    ("escape sequence", {"event_name": "\x1b[2Jtokens"}, "event_name"),
    ("delete", {"identifier": "id\x7f"}, "identifier"),
    ("C1 control", {"identifier": "id\x85"}, "identifier"),
    ("surrogate in the event name", {"event_name": "tok\ud800ens"}, "event_name"),
    ("surrogate in the customer", {"customer_id": "cus_\udfff"}, "customer_id"),
    ("surrogate in the identifier", {"identifier": "id\udc80"}, "identifier"),
    ("surrogate in a payload key", {"payload": {"k\ud800": "x"}}, "payload key"),
    ("surrogate in a payload value", {"payload": {"k": "x\ud800"}}, "payload["),
    ("long identifier", {"identifier": "x" * 10_000_000}, "identifier"),
    ("long customer", {"customer_id": "x" * 101}, "customer_id"),
    ("long payload value", {"payload": {"k": "x" * 10_000_000}}, "payload["),
    ("many payload keys", {"payload": {f"k{n}": "x" for n in range(100_000)}}, "payload"),
    ("nested payload", {"payload": {"k": nested(3)}}, "payload["),
    ("deeply nested payload", {"payload": {"k": nested(100_000)}}, "payload["),
    ("circular payload", {"payload": circle()}, "payload["),
    ("huge integer", {"value": 10**100_000}, "value"),
    ("huge exponent", {"value": Decimal("1E+999999")}, "value"),
    ("tiny exponent", {"value": "1E-999999999"}, "value"),
    ("long number", {"value": "1" * 10_000_000}, "value"),
    ("infinity", {"value": float("inf")}, "value"),
    ("foreign digits", {"value": "\uff11\uff12"}, "value"),
]


@pytest.mark.parametrize(
    ("evil", "field"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_a_hostile_event_is_a_letter_that_names_its_field_and_takes_no_other_with_it(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path, evil: dict[str, Any], field: str
) -> None:
    letters: list[DeadLetter] = []
    path = tmp_path / "letters.jsonl"
    agent = make_agent(on_dead_letter=letters.append, dead_letter_file=str(path))
    assert agent.record(**GOOD, value=20)
    assert agent.record(**(GOOD | evil))
    assert agent.record(**GOOD, value=22)
    assert agent.flush(20)
    stats = agent.stats()
    assert (stats.recorded, stats.delivered, stats.dead_lettered) == (3, 2, 1)
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "42"}}
    (letter,) = letters
    assert letter.reason == "invalid"
    assert field in letter.message
    assert len(letter.message) < 1000
    (line,) = path.read_bytes().splitlines()
    assert json.loads(line)["message"] == letter.message
    assert len(line) < 50_000
    with pytest.raises(InvalidEventError) as raised:
        make_agent(strict=True).record(**(GOOD | evil))
    assert field in str(raised.value)


def test_what_is_allowed_in_a_payload_value_stays_inside_of_it(sandbox: Sandbox) -> None:
    text = 'a"},{"event_name":"free\\ \r\nX-Evil: 1\r\n\r\nPOST /v2/billing HTTP/1.1\u2028\x00'
    front = Front(sandbox)
    with front.open() as server:
        agent = real_agent(server.url)
        agent.record("tokens", 'cus_"}]', 1, payload={"region": text})
        assert agent.flush(20)
        assert agent.close(20).delivered == 1
    (batch,) = front.batches
    assert "X-Evil" not in batch.headers
    assert len(front.exchanges) == 2
    (entry,) = sandbox.ledger()
    assert entry["payload"]["region"] == text
    assert entry["customer"] == 'cus_"}]'
