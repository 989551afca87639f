"""What becomes of one event: billed, refused at the call, or a dead letter."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time

from meter_agent import (
    DeadLetter,
    InvalidEventError,
)
from meter_agent._buffer import _NO_DETAILS, RingBuffer
from meter_agent._event import Label
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, billed
from tests.log_lines import events_of


def test_an_invalid_event_is_a_dead_letter_that_names_field_value_and_rule(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    letters: list[DeadLetter] = []
    path = tmp_path / "letters.jsonl"
    agent = make_agent(on_dead_letter=letters.append, dead_letter_file=str(path))
    assert agent.record("tokens", "cus_1", float("nan"))
    assert agent.record("tokens", "cus_2", 2)
    agent.record("tokens", "")
    agent.record(None, [object()], payload=7)  # type: ignore[arg-type]
    assert agent.flush(20)
    stats = agent.stats()
    assert (stats.delivered, stats.dead_lettered) == (1, 3)
    assert "value=nan" in letters[0].message
    assert letters[0].event["customer_id"] == "cus_1"
    assert [letter.reason for letter in letters] == ["invalid"] * 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines] == [letter.message for letter in letters]
    assert path.stat().st_mode & 0o777 == 0o600


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __hash__ = __eq__ = __str__  # type: ignore[assignment]


def test_an_object_that_misbehaves_costs_only_itself(make_agent: MakeAgent) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    agent.record("tokens", Unreadable(), Unreadable())  # type: ignore[arg-type]
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 1
    assert len(letters) == 1


def test_strict_mode_raises_where_the_event_is_recorded(make_agent: MakeAgent) -> None:
    agent = make_agent(strict=True)
    with pytest.raises(InvalidEventError, match="value") as raised:
        agent.record("tokens", "cus_1", True)
    assert raised.value.field == "value"
    assert agent.record("tokens", "cus_1", 1, payload={"region": "eu"})
    assert agent.close(20).recorded == 1


def test_a_refused_event_is_a_dead_letter_with_stripes_words(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(
        Fault("poison", match={"customer": "cus_bad"}, code="no_meter", message="no such meter")
    )
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    for n in range(100):
        agent.record("tokens", "cus_bad" if n == 31 else "cus_good", n)
    assert agent.flush(20)
    (letter,) = letters
    assert (letter.reason, letter.code) == ("rejected", "no_meter")
    assert letter.attempted_at is not None
    assert "no such meter" in letter.message
    assert letter.request_id is not None
    assert letter.event["payload"] == {"stripe_customer_id": "cus_bad", "value": "31"}
    assert billed(sandbox) == {"tokens": {"cus_good": str(sum(range(100)) - 31)}}


def test_own_identifiers_and_timestamps_reach_stripe(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    moment = datetime.now(UTC).replace(microsecond=123_000)
    agent.record("tokens", "cus_1", 1, identifier="invoice-7", timestamp=moment)
    agent.record("tokens", "cus_1", 1, identifier="invoice-7", timestamp=moment)
    agent.record("tokens", "cus_1", 1, timestamp=time.time() - 3600)
    assert agent.close(20).delivered == 3
    first, second = sandbox.ledger()
    assert first["identifier"] == "invoice-7"
    assert first["timestamp"].startswith(moment.strftime("%Y-%m-%dT%H:%M:%S.123"))
    assert sandbox.totals()["duplicates"] == 1
    assert second["timestamp"] < first["timestamp"]


class Tensor:
    """Can be hashed, is a whole number, and can be changed in place."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "in a spool"])
def test_an_event_is_billed_as_it_was_when_it_was_recorded(
    spooled: bool, make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    agent = make_agent(flush_interval_seconds=60.0, spool_dir=str(tmp_path) if spooled else None)
    used, label, moment = Tensor(5), Tensor(7), Tensor(int(time.time()) - 60)
    payload: dict[str, Label] = {"kind": label, "region": "eu"}
    agent.record("tokens", "cus_1", used)
    agent.record("tokens", "cus_2", 1, timestamp=moment, payload=payload)  # type: ignore[arg-type]
    moments = moment.number
    used.number = label.number = moment.number = 999
    payload["region"] = "us"
    assert agent.close(20).delivered == 2
    assert billed(sandbox) == {"tokens": {"cus_1": "5", "cus_2": "1"}}
    last = sandbox.ledger()[1]
    assert last["payload"]["kind"] == "7"
    assert last["payload"]["region"] == "eu"
    assert datetime.fromisoformat(last["timestamp"]).timestamp() == moments


class Endless(Mapping[str, str]):
    def __getitem__(self, _key: str) -> str:
        return "v"

    def __iter__(self) -> Iterator[str]:
        return (f"key{number}" for number in count())

    def __len__(self) -> int:
        return 1


class Ending(Endless):
    def items(self) -> Any:
        raise SystemExit


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "in a spool"])
@pytest.mark.parametrize(
    "payload",
    [[("k", "v")], ["kv"], ((str(number), "v") for number in count()), Endless(), Ending()],
    ids=["pairs", "texts", "endless pairs", "endless mapping", "mapping that ends the program"],
)
def test_a_payload_that_is_no_mapping_is_refused_and_never_read_without_end(
    payload: Any, spooled: bool, strict: bool, make_agent: MakeAgent, tmp_path: Path
) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(
        strict=strict,
        spool_dir=str(tmp_path) if spooled else None,
        on_dead_letter=letters.append,
    )
    if strict:
        with pytest.raises(InvalidEventError, match=r"payload=.* is invalid: must"):
            agent.record("tokens", "cus_1", payload=payload)
        return
    assert agent.record("tokens", "cus_1", payload=payload)
    assert agent.close(20).dead_lettered == 1
    assert "is invalid: must" in letters[0].message


def test_the_timestamp_is_the_moment_of_recording_however_late_the_event_leaves(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    before = datetime.now(UTC)
    agent.record("tokens", "cus_1")
    after = datetime.now(UTC)
    sandbox.add_fault(Fault("status", status=503, times=3))
    assert agent.flush(20)
    stamped = datetime.fromisoformat(sandbox.ledger()[0]["timestamp"])
    assert before.timestamp() - 0.001 <= stamped.timestamp() <= after.timestamp()


def test_frozen_time_freezes_timestamps_but_no_deadline(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    with freeze_time("2026-11-20T12:00:00.500Z"):
        sandbox.advance(time.time() - sandbox.now())
        agent.record("tokens", "cus_1")
        assert agent.flush(20)
        sandbox.add_fault(Fault("status", status=503))
        agent.record("tokens", "cus_1")
        assert not agent.flush(0.05)
    assert sandbox.ledger()[0]["timestamp"].startswith("2026-11-20T12:00:00.5")
    sandbox.clear_faults()
    assert agent.flush(20)


def test_a_clock_before_1970_makes_letters_and_not_dead_senders(
    make_agent: MakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    buffer = agent._pipeline._buffer
    assert isinstance(buffer, RingBuffer)
    buffer._events.extend((_NO_DETAILS, -5.0, "tokens", "cus_1", 1))
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert [letter.recorded_at for letter in letters] == ["-5.0"]
    assert "meter_agent.sender_died" not in events_of(caplog)
