"""Batches that are refused as a whole: too large, poisoned, or already there in part."""

from __future__ import annotations

from decimal import Decimal

import pytest

from meter_agent import DeadLetter
from meter_agent.sandbox import Fault, Sandbox
from tests.wire.front import Exchange, Front, assert_billed_once, real_agent, record


class Narrow:
    """A gateway that lets bodies of at most *events* pass."""

    def __init__(self, events: int) -> None:
        self.events = events

    def __call__(self, exchange: Exchange) -> None:
        if exchange.for_stream and len(exchange.events) > self.events:
            exchange.say(413, b"<html>413 Request Entity Too Large</html>")
        else:
            exchange.serve()


def test_bodies_shrink_to_what_a_gateway_lets_pass_and_grow_back_when_it_widens(
    sandbox: Sandbox,
) -> None:
    gateway = Narrow(12)
    front = Front(sandbox, behave=gateway)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0)
        record(agent, 300)
        assert agent.flush(20)
        narrow = [len(exchange.events) for exchange in front.batches]
        gateway.events = 100
        for n in range(700):
            agent.record("tokens", "cus_1", 301 + n)
        assert agent.flush(20)
        wide = [len(exchange.events) for exchange in front.batches][len(narrow) :]
        final = agent.close(20)
    assert_billed_once(sandbox, final, 1000)
    assert narrow[:4] == [100, 50, 25, 12]
    assert sum(size for size in narrow if size <= 12) == 300
    assert narrow.count(100) == 1, "the batches behind have learned from the first"
    assert max(wide) == 100


@pytest.mark.parametrize("senders", [1, 8])
def test_after_the_first_thousand_events_at_most_twelve_requests_per_thousand_are_too_large(
    sandbox: Sandbox, senders: int
) -> None:
    front = Front(sandbox, behave=Narrow(20))
    with front.open() as server:
        agent = real_agent(server.url, max_in_flight=senders)
        record(agent, 1000)
        assert agent.flush(60)
        before = len(front.batches)
        for n in range(4000):
            agent.record("tokens", "cus_1", 1001 + n)
        assert agent.flush(60)
        later = [len(exchange.events) for exchange in front.batches[before:]]
        final = agent.close(20)
    assert_billed_once(sandbox, final, 5000)
    assert len([size for size in later if size > 20]) <= 4 * 12
    assert len(later) <= 4000 / 20 * 1.5


@pytest.mark.parametrize("poisons", [1, 2, 5, 13])
def test_poisoned_events_die_alone_within_fourteen_requests_each_and_one_more(
    sandbox: Sandbox, poisons: int
) -> None:
    letters: list[DeadLetter] = []
    # Spread evenly, which costs most.
    bad = {place * 100 // poisons for place in range(poisons)}
    values = {str(place + 1) for place in bad}
    sandbox.add_fault(Fault("poison", predicate=lambda event: event["payload"]["value"] in values))
    front = Front(sandbox)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0, on_dead_letter=letters.append)
        record(agent, 100)
        assert agent.flush(20)
        final = agent.close(20)
    assert len(front.batches) <= 14 * poisons + 1
    assert sorted(int(letter.event["payload"]["value"]) - 1 for letter in letters) == sorted(bad)
    assert {letter.reason for letter in letters} == {"rejected"}
    assert sorted(Decimal(entry["value"]) for entry in sandbox.ledger()) == [
        n + 1 for n in range(100) if n not in bad
    ]
    assert (final.delivered, final.dead_lettered) == (100 - poisons, poisons)
    assert final.balanced
    assert sandbox.totals()["duplicates"] == 0


def test_thirty_of_a_hundred_that_stripe_already_has_are_delivered_and_not_billed_again() -> None:
    sandbox = Sandbox(duplicates="reject")
    letters: list[DeadLetter] = []
    front = Front(sandbox)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0, on_dead_letter=letters.append)
        known = [n for n in range(100) if n % 10 in {1, 2, 7}]
        for n in known:
            agent.record("tokens", "cus_1", n + 1, identifier=f"order-{n}")
        assert agent.flush(20)
        before = len(front.batches)
        for n in range(100):
            agent.record("tokens", "cus_1", n + 1, identifier=f"order-{n}")
        assert agent.flush(20)
        final = agent.close(20)
    assert len(known) == 30
    assert len(front.batches) - before <= 14 * 30 + 1
    assert sorted(Decimal(entry["value"]) for entry in sandbox.ledger()) == list(range(1, 101))
    assert (final.delivered, final.dead_lettered, letters) == (130, 0, [])
    assert final.balanced
