"""The comparison has to find every difference; that it finds none is worth nothing otherwise."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from meter_agent import DeadLetter, Stats
from meter_agent.cli.demo.books import Books
from meter_agent.cli.demo.display import print_report, watch
from meter_agent.cli.demo.play import Report
from meter_agent.cli.demo.replay import Account, customer_of

IN, OUT = Account("input_tokens", "cus_1"), Account("output_tokens", "cus_1")


def _letter(value: str = "5", reason: str = "rejected") -> DeadLetter:
    payload = {"stripe_customer_id": "cus_1", "value": value}
    event = {"event_name": "input_tokens", "identifier": "demo-0-1", "payload": payload}
    moment = "2026-11-21T05:00:00.000Z"
    return DeadLetter(event, reason, "refused", None, None, moment, moment, moment)


def _sandbox(accepted: int = 3, **meters: dict[str, str]) -> dict[str, Any]:
    return {"accepted": accepted, "duplicates": 1, "totals": meters}


BOOKS = Books(
    events=4,
    passed={IN: 105, OUT: 7},
    letters=[_letter()],
    stats=Stats(recorded=4, delivered=3, dead_lettered=1),
    sandbox=_sandbox(input_tokens={"cus_1": "100"}, output_tokens={"cus_1": "7"}),
)


def test_delivered_and_dead_lettered_together_balance() -> None:
    assert BOOKS.differences() == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            {"sandbox": _sandbox(input_tokens={"cus_1": "99"}, output_tokens={"cus_1": "7"})},
            "input_tokens cus_1: recorded 105, dead-lettered 5, sandbox has 99 (-1)",
        ),
        (
            {"sandbox": _sandbox(input_tokens={"cus_1": "100"})},
            "output_tokens cus_1: recorded 7, dead-lettered 0, sandbox has 0 (-7)",
        ),
        (
            {"passed": {IN: 105}},
            "output_tokens cus_1: recorded 0, dead-lettered 0, sandbox has 7 (+7)",
        ),
        (
            {"letters": [_letter("6")]},
            "input_tokens cus_1: recorded 105, dead-lettered 6, sandbox has 100 (+1)",
        ),
        (
            {"sandbox": {**BOOKS.sandbox, "accepted": 4}},
            "events: the agent delivered 3, the sandbox accepted 4",
        ),
        ({"events": 5}, "events: record() was called 5, the agent recorded 4"),
    ],
)
def test_a_difference_is_named(change: dict[str, Any], difference: str) -> None:
    assert replace(BOOKS, **change).differences() == [difference]


def test_an_event_without_its_letter_is_named() -> None:
    assert replace(BOOKS, letters=[]).differences() == [
        "events: the agent dead-lettered 1, letters came 0",
        "input_tokens cus_1: recorded 105, dead-lettered 0, sandbox has 100 (-5)",
    ]


def test_a_letter_about_an_event_that_was_never_sent_balances_no_account() -> None:
    invalid = replace(_letter(reason="invalid"), event={"event_name": "input_tokens", "value": "5"})
    assert replace(BOOKS, letters=[invalid]).differences() == [
        "input_tokens cus_1: recorded 105, dead-lettered 0, sandbox has 100 (-5)"
    ]


@pytest.mark.parametrize(
    ("stats", "difference"),
    [
        (Stats(recorded=4, delivered=3, uncertain=1), "events: 1 uncertain"),
        (Stats(recorded=4, delivered=3, dropped={"shutdown": 1}), "events: 1 dropped"),
        (Stats(recorded=4, delivered=3, buffered=1), "events: 1 buffered"),
        (Stats(recorded=4, delivered=3, in_flight=1), "events: 1 in_flight"),
        (Stats(recorded=4, delivered=3), "events: the agent's own ledger does not add up"),
    ],
)
def test_what_the_agent_did_not_settle_is_named(stats: Stats, difference: str) -> None:
    uncertain = [_letter(reason="uncertain")]
    found = replace(BOOKS, letters=uncertain, stats=stats).differences()
    assert found[0].startswith(difference)
    # Nobody knows where that event is, so its tokens are missed as well.
    assert found[-1].startswith("input_tokens cus_1: recorded 105, dead-lettered 0")


@pytest.mark.parametrize("arrived", [True, False])
def test_an_uncertain_event_balances_as_the_sandbox_has_it(arrived: bool) -> None:
    letter = _letter(reason="uncertain")
    value = int(letter.event["payload"]["value"])
    account = Account(letter.event["event_name"], letter.event["payload"]["stripe_customer_id"])
    sandbox = {
        "accepted": int(arrived),
        "totals": {account.meter: {account.customer: str(value)}} if arrived else {},
    }
    found = Books(
        1,
        {account: value},
        [letter],
        Stats(recorded=1, uncertain=1),
        sandbox,
        {letter.event["identifier"]: arrived},
    )
    assert found.differences() == []


def test_a_report_with_a_difference_ends_with_it_and_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    books = replace(BOOKS, events=5)
    report = Report(2, books, {"answered_503": 1}, 1.0, tuple(books.differences()))
    print_report(report, as_json=False)
    assert not report.balanced
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "events: record() was called 5, the agent recorded 4",
        "the books do not balance",
    ]


def test_on_a_terminal_the_ledger_is_live() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, _environ={})
    with watch(console) as viewer:
        viewer.say("here we go")
        viewer.show(Stats(recorded=4, delivered=2, in_flight=2), 8)
    assert "here we go" in screen.getvalue()
    assert "2/8" in screen.getvalue()
    assert "recorded 4  delivered 2  in flight 2" in screen.getvalue()


def test_the_customer_of_a_row_is_always_the_same() -> None:
    assert [customer_of(number) for number in range(3)] == [
        "cus_demo_09",
        "cus_demo_08",
        "cus_demo_12",
    ]
