"""`meter-agent doctor`: what is broken is found, and its advice mends it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from meter_agent.cli.app import app
from meter_agent.cli.doctor.hosts import Skew
from meter_agent.sandbox import Fault, Meter, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.wire.front import Front
from tests.wire.servers import Greet, listening

from .advice import Patient, assert_cured

CERTIFICATES = Path(__file__).parent.parent / "wire" / "certificates"
RESTRICTED = "rk_test_the_key_of_these_tests"


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox(meters=["tokens"])


@pytest.fixture
def patient(stripe: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Patient]:
    """Somebody without any trouble, in front of a sandbox."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)
    somebody = Patient(monkeypatch)
    with SandboxServer(stripe) as server:
        somebody.set(METER_AGENT_SANDBOX_URL=server.url)
        somebody.set(METER_AGENT_DEAD_LETTER_FILE=tmp_path / "letters.jsonl")
        yield somebody


@pytest.fixture
def with_a_key(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> Patient:
    as_if_real(patient, monkeypatch)
    return patient


def as_if_real(patient: Patient, monkeypatch: pytest.MonkeyPatch, key: str = RESTRICTED) -> None:
    """The same server, addressed as the real Stripe is: two hosts and a key."""
    url = os.environ["METER_AGENT_SANDBOX_URL"]
    monkeypatch.delenv("METER_AGENT_SANDBOX_URL")
    patient.set(METER_AGENT_API_URL=url.replace("127.0.0.1", "localhost"))
    patient.set(METER_AGENT_EVENTS_URL=url, STRIPE_API_KEY=key)


# -- as a whole ------------------------------------------------------------------------------------


def test_who_is_well_is_told_so_and_no_event_is_sent(with_a_key: Patient, stripe: Sandbox) -> None:
    diagnosis = with_a_key.ask("--event", "tokens")
    assert diagnosis.exit_code == 0
    checks = {each["check"]: each["state"] for each in diagnosis.findings}
    assert checks == {
        "settings": "ok",
        "key": "ok",
        "proxy": "ok",
        "api host": "ok",
        "stream host": "ok",
        "clock": "ok",
        "session": "ok",
        "meters": "ok",
        "spool": "not checked",
        "dead letters": "ok",
        "resend window": "ok",
        "process": "not checked",
    }
    assert stripe.totals()["accepted"] == 0
    asked = [(request.method, request.path, request.events) for request in stripe.requests]
    assert asked == [
        ("GET", "/v2/billing/meter_event_session", 0),
        ("GET", "/v2/billing/meter_event_stream", 0),
        ("POST", "/v2/billing/meter_event_session", 0),
        ("GET", "/v1/billing/meters", 0),
    ]
    # The hosts are looked at without a credential.
    assert [request.authorization_kind for request in stripe.requests[:2]] == ["none", "none"]


def test_offline_nobody_is_asked(patient: Patient, stripe: Sandbox) -> None:
    diagnosis = patient.ask("--offline", "--event", "no_such_meter")
    assert diagnosis.exit_code == 0
    assert diagnosis.of("stripe")["state"] == "not checked"
    assert stripe.requests == []


def test_people_read_lines_with_the_advice_below(patient: Patient, tmp_path: Path) -> None:
    patient.set(METER_AGENT_BUFER_EVENTS="1")
    result = CliRunner().invoke(app, ["doctor", "--offline"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("warning      settings  "))
    told = " ".join(lines[place + 1].split())
    assert told.startswith(
        "-> is METER_AGENT_BUFFER_EVENTS meant? Set that one instead, and `unset"
    )
    assert "1 warning" in result.stderr


def test_the_exit_code_is_that_of_the_first_check_that_failed(patient: Patient) -> None:
    patient.set(METER_AGENT_RESEND_WINDOW_SECONDS=86_399)
    diagnosis = patient.ask("--event", "no_such_meter")
    assert diagnosis.of("resend window")["state"] == "failed"
    assert diagnosis.exit_code == 1


def test_no_key_is_ever_printed(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_real(patient, monkeypatch, key="rk_live_abcdefghijk")
    patient.set(HTTPS_PROXY="http://me:word@proxy.test:1", METER_AGENT_API_URL="https://x.test")
    text = patient.ask("--offline").text
    assert "rk_live_***" in text
    assert "***@proxy.test" in text
    assert "abcdefghijk" not in text
    assert "me:word" not in text


# -- settings and key ------------------------------------------------------------------------------


def test_every_wrong_setting_is_told_and_its_advice_mends_it(patient: Patient) -> None:
    patient.set(METER_AGENT_BATCH_SIZE="many", METER_AGENT_READ_TIMEOUT_SECONDS="-1")
    patient.set(METER_AGENT_RETRY_BASE_SECONDS="99", METER_AGENT_BUFER_EVENTS="1")
    diagnosis = patient.ask()
    assert diagnosis.exit_code == 2
    assert diagnosis.states("settings") == ["failed"] * 3 + ["warning"]
    assert diagnosis.of("everything else")["state"] == "not checked"
    for finding in diagnosis.findings[:4]:
        patient.follow(finding["advice"])
    assert patient.ask().states("settings") == ["ok"]


def test_an_address_that_is_none_is_told_with_the_one_of_the_sandbox(patient: Patient) -> None:
    patient.set(METER_AGENT_SANDBOX_URL="127.0.0.1:12111")
    diagnosis = patient.ask("--offline")
    assert diagnosis.exit_code == 2
    patient.follow(diagnosis.of("settings")["advice"])
    assert patient.ask("--offline").of("settings")["state"] == "ok"


def test_settings_are_told_with_their_origin(patient: Patient) -> None:
    finding = patient.ask("--sandbox-url", "http://127.0.0.1:1", "--offline").of("settings")
    assert "sandbox_url by keyword, dead_letter_file by METER_AGENT_DEAD" in finding["detail"]
    assert "29 by default" in finding["detail"]


def test_a_mistyped_variable_is_told_with_the_nearest_name(patient: Patient) -> None:
    patient.set(METER_AGENT_SPOOLDIR="/spool")
    assert "METER_AGENT_SPOOL_DIR" in patient.ask().of("settings")["advice"]
    assert_cured(patient, "settings", "warning")


def test_a_disabled_agent_is_a_warning(patient: Patient) -> None:
    patient.set(METER_AGENT_DISABLED="1")
    assert patient.ask().of("stripe")["state"] == "not checked"
    assert_cured(patient, "settings", "warning")


def test_without_a_key_it_is_said_how_to_get_one(
    with_a_key: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRIPE_API_KEY")
    assert_cured(with_a_key, "settings", "failed", "--offline", exit_code=2)


def test_a_publishable_key_is_wrong(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_real(patient, monkeypatch, key="pk_live_abcdefghijk")
    assert "publishable" in patient.ask().of("settings")["detail"]
    assert "abcdefghijk" not in patient.ask().text
    assert_cured(patient, "settings", "failed", exit_code=2)


@pytest.mark.parametrize(
    ("key", "state", "detail"),
    [
        ("rk_live_abc", "ok", "a restricted key, live mode"),
        ("rk_test_abc", "ok", "a restricted key, test mode: nothing is billed"),
        ("sk_live_abc", "warning", "a secret key, live mode; whoever has it can do everything"),
        ('"rk_live_abc"', "warning", "does not look like a key of Stripe's"),
    ],
)
def test_kind_and_mode_of_the_key_are_told(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, key: str, state: str, detail: str
) -> None:
    as_if_real(patient, monkeypatch, key=key)
    finding = patient.ask("--offline").of("key")
    assert finding["state"] == state
    assert detail in finding["detail"]
    assert "from STRIPE_API_KEY" in finding["detail"]
    # As in a file of settings that a shell would have read without them.
    assert ("no quotes in STRIPE_API_KEY" in str(finding["advice"])) == ('"' in key)


def test_the_key_of_an_organisation_needs_a_context(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_real(patient, monkeypatch, key="sk_org_test_abc")
    assert_cured(patient, "settings", "failed", exit_code=2)


def test_a_key_file_for_everybodys_eyes_is_a_warning(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_if_real(patient, monkeypatch)
    file = tmp_path / "the key"
    file.write_text(RESTRICTED)
    file.chmod(0o644)
    patient.set(METER_AGENT_API_KEY_FILE=file)
    assert "METER_AGENT_API_KEY_FILE" in patient.ask().of("key")["detail"]
    assert_cured(patient, "key file", "warning")


# -- the way to Stripe -----------------------------------------------------------------------------


def test_a_sandbox_on_this_host_is_asked_without_the_proxy_of_the_environment(
    patient: Patient,
) -> None:
    patient.set(HTTP_PROXY="http://127.0.0.1:1", NO_PROXY="example.com")
    diagnosis = patient.ask()
    assert diagnosis.of("sandbox")["state"] == "ok"
    assert diagnosis.of("proxy")["detail"].startswith("none for 127.0.0.1")


def test_a_ca_bundle_that_is_not_there_is_found(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_if_real(patient, monkeypatch)
    patient.set(METER_AGENT_API_URL="https://stripe.test", REQUESTS_CA_BUNDLE=tmp_path / "ca.pem")
    diagnosis = patient.ask()
    assert diagnosis.of("stripe")["state"] == "not checked"
    assert_cured(patient, "tls", "failed", "--offline", exit_code=2)
    patient.set(REQUESTS_CA_BUNDLE=CERTIFICATES / "trusted.pem")
    finding = patient.ask("--offline").of("tls")
    assert finding["state"] == "ok"
    assert "trusted.pem (REQUESTS_CA_BUNDLE)" in finding["detail"]


def with_certificate(name: str) -> Greet:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem")
    return lambda connection: context.wrap_socket(connection, server_side=True)


def test_a_certificate_that_is_not_trusted_is_mended_by_naming_the_bundle(
    patient: Patient, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_real(patient, monkeypatch)
    with Front(stripe).open(with_certificate("trusted")) as server:
        patient.set(METER_AGENT_EVENTS_URL=server.url.replace("http:", "https:"))
        before = patient.ask()
        assert before.exit_code == 5
        assert "CERTIFICATE_VERIFY_FAILED" in before.of("stream host")["detail"]
        bundle = str(CERTIFICATES / "trusted.pem")
        advice = before.of("stream host")["advice"]
        patient.follow(advice.replace("/path/to/ca.pem", bundle))
        after = patient.ask()
    assert after.of("stream host")["state"] == "ok"
    assert "its certificate is good" in after.of("stream host")["detail"]
    assert after.exit_code == 0


def test_nobody_at_the_address_is_unreachable_until_the_sandbox_is_started(
    patient: Patient, stripe: Sandbox
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    patient.set(METER_AGENT_SANDBOX_URL=f"http://127.0.0.1:{port}")
    diagnosis = patient.ask()
    assert diagnosis.exit_code == 5
    assert f"`meter-agent sandbox --port {port}`" in diagnosis.of("sandbox")["advice"]
    assert diagnosis.of("session")["state"] == "not checked"
    assert "`meter-agent doctor` tells" not in diagnosis.text
    with SandboxServer(stripe, port=port):
        assert patient.ask().exit_code == 0


def test_a_proxy_that_does_not_answer_is_named(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_real(patient, monkeypatch)
    # One that is not on this host, so that a proxy may be right.
    patient.set(METER_AGENT_API_URL="https://stripe.test", https_proxy="http://127.0.0.1:1")
    patient.set(METER_AGENT_EVENTS_URL="https://events.test")
    diagnosis = patient.ask()
    # Who follows the advice for one host and then that for the other has excepted both.
    for check in ("api host", "stream host"):
        finding = diagnosis.of(check)
        assert (finding["state"], "correct https_proxy" in finding["advice"]) == ("failed", True)
        patient.follow(finding["advice"])
    assert patient.ask("--offline").of("proxy")["detail"] == (
        "none for events.test, none for stripe.test"
    )


def test_a_sandbox_that_is_asked_for_tls_has_its_address_corrected(patient: Patient) -> None:
    url = os.environ["METER_AGENT_SANDBOX_URL"]
    patient.set(METER_AGENT_SANDBOX_URL=url.replace("http:", "https:"))
    assert_cured(patient, "sandbox", "failed", exit_code=5)
    assert os.environ["METER_AGENT_SANDBOX_URL"] == url


@pytest.mark.parametrize("path", ["/_sandbox", "/v2/billing"])
def test_an_address_that_is_not_that_of_the_sandbox_is_told(patient: Patient, path: str) -> None:
    patient.set(METER_AGENT_SANDBOX_URL=os.environ["METER_AGENT_SANDBOX_URL"] + path)
    diagnosis = patient.ask()
    assert diagnosis.exit_code == 5
    assert "is no sandbox" in diagnosis.of("sandbox")["detail"]
    assert "name the address that it printed" in diagnosis.of("sandbox")["advice"]


@pytest.mark.parametrize("status", [503, 407])
def test_a_host_that_fails_is_unreachable(patient: Patient, status: int) -> None:
    def fail(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

    with listening(fail) as server:
        patient.set(METER_AGENT_SANDBOX_URL=server.url)
        diagnosis = patient.ask()
    assert diagnosis.exit_code == 5
    assert f"answered HTTP {status}" in diagnosis.of("sandbox")["detail"]
    assert diagnosis.of("clock")["state"] == "not checked"


@pytest.mark.parametrize(
    ("advance", "state", "exit_code"),
    [(-20, "warning", 0), (3600, "warning", 0), (-400, "failed", 1)],
)
def test_a_clock_that_is_off_is_found_and_put_right(
    patient: Patient, stripe: Sandbox, advance: float, state: str, exit_code: int
) -> None:
    stripe.advance(advance)
    assert_cured(patient, "clock", state, exit_code=exit_code)


def test_what_a_slow_answer_explains_is_no_skew() -> None:
    at_noon = "Sat, 31 Jan 2026 12:00:00 GMT"
    noon = 1_769_860_800.0
    assert Skew.of(at_noon, noon - 30, noon + 0.5).certain == 0
    assert Skew.of(at_noon, noon + 0.9, noon + 30).certain == 0
    assert Skew.of(at_noon, noon + 61, noon + 62).certain == 60
    assert Skew.of(at_noon, noon - 62, noon - 60).certain == -60


# -- what the key opens ----------------------------------------------------------------------------


def test_a_refused_key_ends_it_with_4_and_a_good_one_mends_it(
    monkeypatch: pytest.MonkeyPatch, patient: Patient
) -> None:
    with SandboxServer(Sandbox(api_keys=["rk_test_good"])) as server:
        patient.set(METER_AGENT_SANDBOX_URL=server.url)
        as_if_real(patient, monkeypatch, key="rk_test_revoked")
        diagnosis = patient.ask()
        assert diagnosis.exit_code == 4
        assert diagnosis.of("meters")["state"] == "not checked"
        assert "into STRIPE_API_KEY" in diagnosis.of("session")["advice"]
        patient.set(STRIPE_API_KEY="rk_test_good")
        assert patient.ask().of("session")["state"] == "ok"


@pytest.mark.parametrize(
    ("fault", "exit_code", "advice"),
    [
        (
            Fault(
                "status", on="session", status=403, message="Having the 'rak_x_write' permission"
            ),
            4,
            "give the key the permission rak_x_write",
        ),
        (Fault("status", on="session", status=403), 4, "create a restricted key"),
        (Fault("status", on="session", status=400), 2, "METER_AGENT_STRIPE_VERSION"),
    ],
)
def test_a_session_that_is_refused_is_told_with_what_to_change(
    with_a_key: Patient, stripe: Sandbox, fault: Fault, exit_code: int, advice: str
) -> None:
    stripe.add_fault(fault)
    diagnosis = with_a_key.ask()
    assert diagnosis.exit_code == exit_code
    assert advice in diagnosis.of("session")["advice"]


@pytest.mark.parametrize(
    ("check", "status", "exit_code"),
    [("session", 401, 4), ("session", 400, 2), ("meters", 403, 4), ("meters", 503, 5)],
)
def test_a_sandbox_that_refuses_was_told_to_and_is_told_otherwise(
    patient: Patient,
    stripe: Sandbox,
    check: Literal["session", "meters"],
    status: int,
    exit_code: int,
) -> None:
    stripe.add_fault(Fault("status", on=check, status=status))
    assert_cured(patient, check, "failed", exit_code=exit_code)


def test_a_session_that_breaks_off_is_unreachable(patient: Patient, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("reset", on="session"))
    assert patient.ask().exit_code == 5


def test_the_permission_that_a_key_lacks_to_list_meters_is_named(
    patient: Patient, stripe: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_real(patient, monkeypatch)
    words = (
        "The provided key 'rk_test_***' does not have the required permissions for this endpoint"
        " on account 'acct_1'. Having the 'rak_billing_meter_read' permission would allow this"
        " request to continue."
    )
    stripe.add_fault(Fault("status", on="meters", status=403, message=words))
    diagnosis = patient.ask("--event", "tokens")
    assert diagnosis.exit_code == 0
    finding = diagnosis.of("meters")
    assert finding["state"] == "warning"
    assert "give the key the permission rak_billing_meter_read" in finding["advice"]
    stripe.clear_faults()  # as if it had been given
    assert patient.ask("--event", "tokens").of("meters")["state"] == "ok"


def test_a_meter_that_is_missing_is_told_with_the_nearest_name(
    patient: Patient, stripe: Sandbox
) -> None:
    diagnosis = patient.ask("--event", "token")
    assert diagnosis.of("meters")["advice"].startswith("is tokens meant? Else ")
    assert_cured(patient, "meters", "failed", "--event", "token", exit_code=1)


def test_in_the_real_account_a_missing_meter_is_to_be_created(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_real(patient, monkeypatch)
    assert "Dashboard: Billing, Meters" in patient.ask("--event", "seats").of("meters")["advice"]


def test_an_archived_meter_is_told(patient: Patient, stripe: Sandbox) -> None:
    stripe.set_meters([Meter("tokens", status="inactive")])
    assert "deactivated" in patient.ask("--event", "tokens").of("meters")["detail"]
    assert_cured(patient, "meters", "failed", "--event", "tokens", exit_code=1)


def test_an_account_without_a_meter_bills_nothing(patient: Patient, stripe: Sandbox) -> None:
    stripe.set_meters([])
    assert_cured(patient, "meters", "failed", exit_code=1)


def test_payload_keys_that_a_meter_does_not_look_for_are_mended_by_the_setting(
    patient: Patient, stripe: Sandbox
) -> None:
    stripe.set_meters([Meter("it's", value_key="count"), Meter("seats", customer_key="org")])
    patient.set(METER_AGENT_PAYLOAD_KEYS='{"seats": {"customer_key": "org"}}')
    assert_cured(patient, "meters", "failed", "--event", "it's", exit_code=1)
    assert "seats" in os.environ["METER_AGENT_PAYLOAD_KEYS"]


def test_meters_that_nobody_named_are_a_warning_when_they_look_elsewhere(
    patient: Patient, stripe: Sandbox
) -> None:
    stripe.set_meters([Meter("tokens", value_key="count"), "seats"])
    assert_cured(patient, "meters", "warning")


def test_names_of_the_settings_must_have_a_meter_too(patient: Patient) -> None:
    patient.set(METER_AGENT_PAYLOAD_KEYS='{"seats": {"customer_key": "org"}}')
    assert "seats: the account has no meter" in patient.ask().of("meters")["detail"]


def test_every_page_of_the_meters_is_read(patient: Patient, stripe: Sandbox) -> None:
    stripe.set_meters([f"meter_{n}" for n in range(95)])
    # The oldest stands on the last page.
    assert patient.ask("--event", "meter_0").exit_code == 0
    assert [request.path for request in stripe.requests].count("/v1/billing/meters") == 3
    finding = patient.ask().of("meters")
    assert "95 active: meter_94," in finding["detail"]
    assert "and 90 more" in finding["detail"]


def test_what_is_no_list_of_meters_is_not_taken_for_one(patient: Patient, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("status", on="meters", status=200, body='{"data": [{"id": "m"}]}'))
    diagnosis = patient.ask("--event", "tokens")
    assert diagnosis.exit_code == 5
    assert "no list of meters" in diagnosis.of("meters")["detail"]
