"""`meter-agent spool replay` as a user runs it: exactly once, whatever comes in between."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from meter_agent import _spool_format as form
from meter_agent._destination import NOT_SAID, Destination
from meter_agent._identifier import draw_prefix
from meter_agent._runtime import SystemRuntime
from meter_agent._segment_name import name_of
from meter_agent._spool_files import file_identity
from meter_agent._spool_header import VERSION, Header
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS
from tests.spool.owners import owner, record_one
from tests.spool.spools import Spool, take

from .processes import first_line, run, started


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture
def url(stripe: Sandbox) -> Iterator[str]:
    with SandboxServer(stripe) as server:
        yield server.url


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A directory in which a dead process left 300 events that it never sent."""
    path = tmp_path / "spool"
    leave(path, *([1] * 300))
    return path


def leave(path: Path, *values: Any, **options: Any) -> None:
    buffer = Spool(path, SystemRuntime(), **options)
    for value in values:
        assert buffer.record("tokens", "cus_1", value)
    buffer.die()


def leave_in_a_small_file(path: Path, number: int) -> None:
    """One event of value 1, in a file of 4 KiB."""
    prefix = draw_prefix(SystemRuntime())
    body = f'[{time.time_ns()},"tokens","cus_1",1]'.encode()
    record = form.RECORD_HEAD.pack(form.RECORD_MAGIC, len(body), 0, crc32(body)) + body
    name = name_of(time.time() + number / 1000, prefix, 4096)
    with (path / name).open("wb") as file:
        identity = file_identity(file.fileno())
        header = Header(VERSION, 4096, prefix, time.time(), 1, *identity, NOT_SAID)
        file.write((header.to_bytes() + record).ljust(4096, b"\0"))


def replay(*arguments: object, **options: Any) -> tuple[int, dict[str, Any], str]:
    outcome = run("spool", "replay", "--json", *arguments, **options)
    assert outcome.stdout, outcome.stderr
    return outcome.returncode, json.loads(outcome.stdout), outcome.stderr


def wait_until_it_sends(process: Any) -> None:
    """Read what a replay says of its progress until a request is on its way."""
    while (
        "in flight" not in (line := first_line(process, process.stderr)) or "in flight 0 " in line
    ):
        assert line, "it has ended"


def billed(stripe: Sandbox) -> int:
    totals = stripe.totals()["totals"]
    return int(totals.get("tokens", {}).get("cus_1", 0))


def segments(spool: Path) -> list[Path]:
    return list(spool.glob("*.segment"))


def test_what_a_dead_process_left_is_delivered_once(spool: Path, url: str, stripe: Sandbox) -> None:
    status, report, _ = replay(spool, "--sandbox-url", url)
    assert status == 0
    assert (report["recovered"], report["delivered"], report["left"]) == (300, 300, 0)
    assert report["ended"] == "done"
    assert (billed(stripe), segments(spool)) == (300, [])
    status, report, _ = replay(spool, "--sandbox-url", url)
    assert (status, report["recovered"], billed(stripe)) == (0, 0, 300)


def test_it_ends_when_nothing_stale_is_left_however_many_files_there_are(
    spool: Path, url: str, stripe: Sandbox
) -> None:
    for n in range(1500):
        leave_in_a_small_file(spool, n)
    status, report, _ = replay(spool, "--sandbox-url", url)
    assert (status, report["ended"], segments(spool)) == (0, "done", [])
    assert (report["recovered"], report["delivered"], report["left"]) == (1800, 1800, 0)
    assert billed(stripe) == 1800


def test_what_becomes_stale_while_it_runs_is_delivered_too(
    spool: Path, url: str, stripe: Sandbox
) -> None:
    shared = spool.with_name("other")
    with owner(shared, events=5) as process:
        for segment in segments(spool):  # not before: the owner recovers what it finds
            segment.rename(shared / segment.name)
        stripe.add_fault(Fault("status", status=503))
        with started("spool", "replay", shared, "--sandbox-url", url) as command:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not any("stream" in request.path for request in stripe.requests):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.wait()
            stripe.clear_faults()
            command.communicate(timeout=PATIENCE_SECONDS)
    assert (command.returncode, billed(stripe), segments(shared)) == (0, 310, [])


@pytest.mark.parametrize("account", [None, "acct_2"])
def test_what_is_for_another_account_is_left_with_the_reason_and_exit_code_3(
    spool: Path, url: str, stripe: Sandbox, account: str | None
) -> None:
    leave(spool, 7, destination=Destination("127.0.0.1", "emulator", "acct_1"))
    environ = os.environ | ({"METER_AGENT_STRIPE_ACCOUNT": account} if account else {})
    status, report, talk = replay(spool, "--sandbox-url", url, env=environ)
    # The fixture's segment says neither host nor mode, and no account.
    expected = 0 if account else 300
    assert (status, report["delivered"], billed(stripe)) == (3, expected, expected)
    its = (
        "127.0.0.1 (emulator), Stripe-Account acct_1" if account is None else "any host (any mode)"
    )
    assert f"its events are for {its}, and this process sends to" in report["foreign"]
    assert report["foreign"] in talk
    left = len(segments(spool))
    environ = os.environ | {"METER_AGENT_STRIPE_ACCOUNT": "acct_1"}
    replay(spool, "--sandbox-url", url, env=environ)
    assert (billed(stripe) - expected, left - len(segments(spool))) == (7, 1)


def test_settings_are_those_of_the_environment(spool: Path, url: str, stripe: Sandbox) -> None:
    environ = os.environ | {
        "METER_AGENT_SANDBOX_URL": url,
        "METER_AGENT_SPOOL_DIR": str(spool),
        "METER_AGENT_BATCH_SIZE": "50",
    }
    outcome = run("spool", "replay", env=environ)
    assert outcome.returncode == 0
    assert outcome.stdout == (
        "300 events adopted: 300 delivered, 0 dead-lettered, 0 uncertain, 0 left in the spool\n"
    )
    assert outcome.stderr.splitlines()[-1].startswith("300/300 settled: delivered 300")
    assert "\x1b" not in outcome.stderr
    assert [request.events for request in stripe.requests if "stream" in request.path] == [50] * 6


def test_segments_of_the_living_are_not_touched(spool: Path, url: str, stripe: Sandbox) -> None:
    empty = spool.with_name("other")
    with owner(empty, events=5) as process:
        for segment in segments(spool):
            segment.rename(empty / segment.name)
        _, report, _ = replay(empty, "--sandbox-url", url)
        assert report["recovered"] == 300
        assert len(segments(empty)) == 1
        assert record_one(process)
    assert billed(stripe) == 300


def test_ctrl_c_leaves_the_rest_in_the_spool_and_the_next_run_delivers_it_once(
    spool: Path, url: str, stripe: Sandbox
) -> None:
    # The server takes everything in and acknowledges nothing.
    stripe.add_fault(Fault("hang", accept=True))
    with started("spool", "replay", spool, "--sandbox-url", url) as process:
        wait_until_it_sends(process)
        process.send_signal(signal.SIGINT)
        output, talk = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "300 left in the spool" in output
    assert f"interrupted; what is left stays in {spool}" in talk
    assert "Traceback" not in talk
    assert segments(spool)
    stripe.clear_faults()
    status, report, _ = replay(spool, "--sandbox-url", url)
    assert (status, report["delivered"], billed(stripe)) == (0, 300, 300)


def test_kill_minus_9_in_the_middle_is_made_good_by_the_next_run(
    spool: Path, url: str, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("hang", accept=True))
    with started("spool", "replay", spool, "--sandbox-url", url) as process:
        wait_until_it_sends(process)
        process.kill()
    stripe.clear_faults()
    status, report, _ = replay(spool, "--sandbox-url", url)
    assert (status, report["delivered"], billed(stripe)) == (0, 300, 300)


def test_a_refused_key_ends_it_with_4_and_keeps_everything(spool: Path, tmp_path: Path) -> None:
    stripe = Sandbox(api_keys={"sk_test_another"})
    with SandboxServer(stripe) as server:
        status, report, talk = replay(spool, "--sandbox-url", server.url)
    assert (status, report["left"]) == (4, 300)
    assert "the key is refused" in report["ended"]
    assert "what is left stays in" in talk
    assert segments(spool)


def test_nobody_at_the_address_ends_it_with_5_when_the_patience_is_over(spool: Path) -> None:
    status, report, talk = replay(spool, "--sandbox-url", "http://127.0.0.1:9", "--patience", "2")
    assert (status, report["left"]) == (5, 300)
    assert report["ended"].startswith("nothing was delivered for 2 s: 127.0.0.1:9: Connection")
    assert "meter_agent.request_failed" in talk
    assert segments(spool)


def test_progress_restarts_the_patience(spool: Path, url: str, stripe: Sandbox) -> None:
    stripe.add_fault(Fault("delay", seconds=0.9))
    environ = os.environ | {"METER_AGENT_MAX_IN_FLIGHT": "1"}
    status, report, _ = replay(spool, "--sandbox-url", url, "--patience", "2.5", env=environ)
    assert (status, report["delivered"]) == (0, 300)


def test_what_cannot_be_billed_is_a_dead_letter_beside_the_segments_and_ends_it_with_3(
    tmp_path: Path, url: str, stripe: Sandbox
) -> None:
    leave(tmp_path / "spool", 1, "two", 3)
    status, report, _ = replay(tmp_path / "spool", "--sandbox-url", url)
    assert status == 3
    assert (report["delivered"], report["dead_lettered"], report["left"]) == (2, 1, 0)
    letters = (tmp_path / "spool" / "dead-letters.jsonl").read_text().splitlines()
    assert [json.loads(letter)["reason"] for letter in letters] == ["invalid"]


def test_damage_is_kept_and_ends_it_with_3(tmp_path: Path, url: str, stripe: Sandbox) -> None:
    spool = tmp_path / "spool"
    leave(spool, 1, 2, 3)
    (segment,) = segments(spool)
    content = bytearray(segment.read_bytes())
    content[content.index(b'"cus_1",2]')] ^= 1
    segment.write_bytes(content)
    status, report, talk = replay(spool, "--sandbox-url", url)
    assert (status, report["delivered"], report["quarantined"]) == (3, 2, 1)
    assert "meter_agent.spool_damaged" in talk


def test_what_stripe_may_have_is_sent_under_its_old_identifier(
    tmp_path: Path, url: str, stripe: Sandbox
) -> None:
    spool = tmp_path / "spool"
    buffer = Spool(spool, SystemRuntime())
    buffer.record("tokens", "cus_1", 7)
    batch = take(buffer.buffer)
    buffer.buffer.begin_attempt(batch, batch.open)
    (event,) = batch.open
    buffer.die()
    replay(spool, "--sandbox-url", url)
    assert [row["identifier"] for row in stripe.ledger()] == [event.identifier]


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "METER_AGENT_API_KEY is not set"),
        ({"METER_AGENT_DISABLED": "1"}, "METER_AGENT_DISABLED is on"),
        ({"METER_AGENT_SANDBOX_URL": "http://example.com"}, "METER_AGENT_SANDBOX_URL"),
    ],
)
def test_settings_that_deliver_nothing_are_a_usage_error(
    spool: Path, environ: dict[str, str], told: str
) -> None:
    outcome = run("spool", "replay", spool, env=os.environ | environ)
    assert outcome.returncode == 2
    assert told in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_directory_that_others_may_write_to_is_refused(spool: Path, url: str) -> None:
    spool.chmod(0o770)
    outcome = run("spool", "replay", spool, "--sandbox-url", url)
    assert outcome.returncode == 2
    assert f"chmod 700 {spool}" in outcome.stderr


def test_two_replays_at_once_deliver_everything_once(
    spool: Path, url: str, stripe: Sandbox
) -> None:
    for _ in range(3):
        leave(spool, *([1] * 50))
    arguments = ("spool", "replay", spool, "--sandbox-url", url, "--json")
    with started(*arguments) as one, started(*arguments) as two:
        reports = [json.loads(p.communicate(timeout=PATIENCE_SECONDS)[0]) for p in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert sum(report["delivered"] for report in reports) == billed(stripe) == 450
    assert stripe.totals()["duplicates"] == 0
