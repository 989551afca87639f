"""`meter-agent send`: one event, its identifier, and what became of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meter_agent.cli.app import app
from meter_agent.cli.send.verdict import VERDICTS
from meter_agent.sandbox import Fault, Meter, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .processes import run, started
from .stalling import Stalling

Send = Callable[..., Result]


@pytest.fixture
def stripe() -> Stalling:
    return Stalling()


@pytest.fixture
def send(stripe: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SandboxServer(stripe) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        yield lambda *arguments: CliRunner().invoke(
            app, ["send", *map(str, arguments)], prog_name="meter-agent"
        )


def report(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# -- through the stream ----------------------------------------------------------------------------


def test_an_event_is_delivered_and_its_identifier_printed(send: Send, stripe: Sandbox) -> None:
    result = send("tokens", "cus_1", "2.50", "--payload", "region=eu")
    assert result.exit_code == 0
    (row,) = stripe.ledger()
    assert result.stdout == f"{row['identifier']}  delivered\n"
    assert row["payload"] == {"stripe_customer_id": "cus_1", "value": "2.5", "region": "eu"}
    assert "checks it later" in result.stderr


def test_identifier_and_timestamp_are_those_that_were_given(send: Send, stripe: Sandbox) -> None:
    at = stripe.now() - 3600
    for _ in range(2):
        result = send("tokens", "cus_1", "--identifier", "order-7", "--timestamp", int(at))
        assert (result.exit_code, result.stdout) == (0, "order-7  delivered\n")
    (row,) = stripe.ledger()
    assert (row["value"], row["times_seen"]) == ("1", 2)


def test_json_tells_the_event_and_its_end(send: Send, stripe: Sandbox) -> None:
    document = report(send("tokens", "cus_1", "--json"))
    assert document["outcome"] == "delivered"
    assert document["event"]["identifier"] == document["identifier"]
    assert document["identifier"] == stripe.ledger()[0]["identifier"]


def test_a_negative_value_stands_behind_two_dashes(send: Send, stripe: Sandbox) -> None:
    result = send("tokens", "cus_1", "-5")
    assert result.exit_code == 2
    assert "two dashes" in result.stderr
    assert send("tokens", "cus_1", "--", "-5").exit_code == 0
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "-5"}}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tokens", "cus_1", "much"], "value='much' is invalid"),
        (["tokens", "", "1"], "customer_id='' is invalid"),
        (["tokens", "cus_1", "--timestamp", "2023-11-16T18:00:00Z"], "35 days"),
        (["tokens", "cus_1", "--timestamp", "2026-01-31 12:15"], "add Z or an offset\n"),
        (["tokens", "cus_1", "--timestamp", "soon"], "neither unix seconds nor a date"),
        (["tokens", "cus_1", "--payload", "region"], "must have the form NAME=TEXT"),
        (["tokens", "cus_1", "--payload", "a=1", "--payload", "a=2"], "is given twice"),
        (["tokens", "cus_1", "--payload", "value=1"], "must not be the customer or value key"),
        (["tokens"], "Missing argument 'CUSTOMER'"),
        (["tokens", "cus_1", "--dryrun"], "No such option"),
    ],
)
def test_what_breaks_a_rule_is_told_and_not_sent(
    send: Send, stripe: Sandbox, arguments: list[str], complaint: str
) -> None:
    result = send(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint.replace("'", "") in result.stderr.replace("'", "")
    assert stripe.requests == []


def test_a_refusal_is_explained_and_ends_with_1(send: Send, stripe: Sandbox) -> None:
    stripe.set_meters(["seats"])
    result = send("tokens", "cus_1", "--identifier", "e1")
    assert (result.exit_code, result.stdout) == (1, "e1  refused\n")
    assert VERDICTS["no_meter"].meaning in result.stderr
    assert f"what to do: {VERDICTS['no_meter'].fix}" in result.stderr
    assert "`meter-agent doctor --event tokens` looks at it" in result.stderr


def test_rate_limits_and_cut_connections_are_waited_out(send: Send, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("status", status=429, times=1))
    stripe.add_fault(Fault("reset", when="after", times=1))
    assert send("tokens", "cus_1", "3").exit_code == 0
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "3"}}


def test_a_refused_key_ends_it_with_4(send: Send, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("status", on="session", status=401, code="invalid_api_key"))
    result = send("tokens", "cus_1", "--json")
    assert (result.exit_code, report(result)["outcome"]) == (4, "not_sent")
    assert "the key is refused" in report(result)["message"]


def test_nobody_at_the_address_ends_it_with_5(send: Send) -> None:
    result = send("tokens", "cus_1", "--sandbox-url", "http://127.0.0.1:1", "--patience", "0.2")
    assert result.exit_code == 5
    assert result.stdout.endswith("  not_sent\n")
    assert "nothing was delivered for 0.2 s" in result.stderr


def test_without_an_answer_it_is_uncertain_and_told_how_to_go_on(
    send: Send, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("hang", accept=True))
    result = send("tokens", "cus_1", "--identifier", "e1", "--patience", "2")
    assert (result.exit_code, result.stdout) == (5, "e1  uncertain\n")
    assert "within 24 hours, send it again with the same --identifier" in result.stderr


def test_ctrl_c_ends_it_with_the_identifier_on_stdout(send: Send, stripe: Stalling) -> None:
    stripe.add_fault(Fault("hang", accept=True))
    with started("send", "tokens", "cus_1", "--identifier", "e1") as process:
        stripe.wait_until_stalled()
        process.send_signal(signal.SIGINT)
        output, talk = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (130, "e1  uncertain\n")
    assert "Traceback" not in talk


def test_the_spool_and_the_letters_of_a_service_are_left_alone(
    send: Send, stripe: Sandbox, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METER_AGENT_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("METER_AGENT_DEAD_LETTER_FILE", str(tmp_path / "letters"))
    stripe.set_meters([])
    assert send("tokens", "cus_1").exit_code == 1
    assert list(tmp_path.iterdir()) == []


# -- checked at once -------------------------------------------------------------------------------


def test_a_valid_event_is_recorded_and_said_to_be(send: Send, stripe: Sandbox) -> None:
    result = send("tokens", "cus_1", "4", "--validate", "--identifier", "e1")
    assert (result.exit_code, result.stdout) == (0, "e1  valid\n")
    assert "it will be billed" in result.stderr
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "4"}}
    assert [request.path for request in stripe.requests] == ["/v2/billing/meter_events"]


def test_the_help_says_plainly_that_a_valid_event_is_billed() -> None:
    text = " ".join(CliRunner().invoke(app, ["send", "--help"]).stdout.split())
    assert "That is no rehearsal: a valid event is recorded and will be billed." in text


@pytest.mark.parametrize(
    ("meters", "code"),
    [
        (["seats"], "no_meter"),
        ([Meter("tokens", status="inactive")], "archived_meter"),
        ([Meter("tokens", customer_key="org")], "payload_no_customer_defined"),
        ([Meter("tokens", value_key="count")], "payload_no_value_defined"),
    ],
)
def test_each_verdict_comes_in_words_with_the_fix(
    send: Send, stripe: Sandbox, meters: list[Meter | str], code: str
) -> None:
    stripe.set_meters(meters)
    document = report(send("tokens", "cus_1", "--validate", "--json"))
    assert (document["outcome"], document["code"]) == ("refused", code)
    assert (document["meaning"], document["fix"]) == VERDICTS[code]
    assert document["message"].endswith(".")
    assert document["request_id"].startswith("req_")
    assert stripe.totals()["accepted"] == 0


def test_a_duplicate_is_told_and_ends_with_1(send: Send) -> None:
    arguments = ("tokens", "cus_1", "--validate", "--identifier", "e1")
    assert send(*arguments).exit_code == 0
    result = send(*arguments)
    assert (result.exit_code, result.stdout) == (1, "e1  refused\n")
    assert "this one is not counted" in result.stderr


def test_a_code_that_is_not_known_here_is_told_in_stripes_words(
    send: Send, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("status", on="event", status=400, code="new_rule", message="Not so."))
    result = send("tokens", "cus_1", "--validate")
    assert result.exit_code == 1
    assert "new_rule: HTTP 400 from" in result.stderr
    assert "Not so." in result.stderr


@pytest.mark.parametrize(
    ("fault", "status", "outcome"),
    [
        (Fault("status", on="event", status=401), 4, "not_sent"),
        (
            Fault("status", on="event", status=409, code="too_many_concurrent_requests"),
            5,
            "not_sent",
        ),
        (Fault("status", on="event", status=429), 5, "not_sent"),
        (Fault("status", on="event", status=503, accept=True), 5, "uncertain"),
        (Fault("reset", on="event", when="after"), 5, "uncertain"),
    ],
)
def test_without_a_verdict_it_says_what_is_known(
    send: Send, stripe: Sandbox, fault: Fault, status: int, outcome: str
) -> None:
    stripe.add_fault(fault)
    result = send("tokens", "cus_1", "--validate", "--json")
    assert (result.exit_code, report(result)["outcome"]) == (status, outcome)


# -- dry run ---------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_requests_to_the_byte_and_sends_nothing(
    send: Send, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("tokens", "cus_1", "7", "--identifier", "e1", "--timestamp", int(stripe.now()))
    result = send(*arguments, "--dry-run", "--json")
    assert result.exit_code == 0
    assert stripe.requests == []
    session, batch = map(json.loads, result.stdout.splitlines())
    send(*arguments)
    really = [request.idempotency_key for request in stripe.requests]
    assert really == [None, batch["headers"]["Idempotency-Key"]]
    assert session["url"].endswith("/v2/billing/meter_event_session")
    assert batch["body"]["events"][0]["payload"] == {"stripe_customer_id": "cus_1", "value": "7"}


def test_a_dry_run_masks_the_key_and_the_token() -> None:
    environ = {"STRIPE_API_KEY": "rk_live_abcdefgh", "METER_AGENT_CUSTOMER_KEY": "org"}
    runner = CliRunner(env=environ)
    recorded = runner.invoke(app, ["send", "tokens", "cus_1", "--dry-run"])
    assert recorded.exit_code == 0
    assert "abcdefgh" not in recorded.output
    assert "POST https://api.stripe.com/v2/billing/meter_event_session\n" in recorded.stdout
    assert "POST https://meter-events.stripe.com/v2/billing/meter_event_stream\n" in recorded.stdout
    assert "Authorization: Bearer rk_live_***\n" in recorded.stdout
    assert "Authorization: Bearer <session token>\n" in recorded.stdout
    assert '"org":"cus_1"' in recorded.stdout
    checked = runner.invoke(app, ["send", "tokens", "cus_1", "--dry-run", "--validate"])
    assert "POST https://api.stripe.com/v2/billing/meter_events\n" in checked.stdout
    assert "abcdefgh" not in checked.output
    assert checked.stderr == "nothing was sent\n"


def test_without_a_key_it_is_told_what_to_set() -> None:
    outcome = run("send", "tokens", "cus_1")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "METER_AGENT_API_KEY is not set" in outcome.stderr
