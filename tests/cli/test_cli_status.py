"""`meter-agent status`: how things stand, and whether somebody has to do something."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meter_agent.cli.app import app
from meter_agent.cli.dead_letters.letters import Choice, Letters
from meter_agent.cli.dead_letters.resent import Resent, State
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS
from tests.spool.owners import owner

from .letters import invalid, letter, write
from .processes import started
from .test_cli_spool import damage, die_with


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture(autouse=True)
def host(
    stripe: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """A host with a sandbox, and an empty place for journals."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with SandboxServer(stripe) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        yield monkeypatch


@pytest.fixture
def spool(tmp_path: Path, host: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "the spool"
    path.mkdir(mode=0o700)
    host.setenv("METER_AGENT_SPOOL_DIR", str(path))
    return path


def done(*arguments: object) -> int:
    return CliRunner().invoke(app, [*map(str, arguments)]).exit_code


def status(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["status", *arguments], prog_name="meter-agent")


def report(exit_code: int) -> dict[str, Any]:
    result = status("--json")
    assert result.exit_code == exit_code, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_host_where_all_is_well_ends_it_with_0() -> None:
    document = report(0)
    assert document["attention"] == []
    assert document["settings"]["mode"] == "sandbox"
    assert (document["spool"], document["dead_letters"], document["imports"]) == (None, None, [])
    assert document["sandbox"]["accepted"] == 0


# -- where events go -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "mode", "shown"),
    [
        ("rk_live_abcdefgh", "live", "rk_live_***"),
        ("sk_test_abcdefgh", "test", "sk_test_***"),
        ("sk_org_abcdefgh", "unknown", "sk_org_***"),
        ("", "none", None),
    ],
)
def test_the_mode_of_the_key_is_told_and_not_the_key(
    host: pytest.MonkeyPatch, key: str, mode: str, shown: str | None
) -> None:
    host.delenv("METER_AGENT_SANDBOX_URL")
    host.setenv("STRIPE_API_KEY", key)
    host.setenv("METER_AGENT_STRIPE_CONTEXT", "acct_1")
    settings = report(0)["settings"]
    assert (settings["mode"], settings["key"]) == (mode, shown)
    assert settings["events_go_to"] == "https://meter-events.stripe.com"
    assert "abcdefgh" not in status().output


def test_an_agent_that_is_off_is_told(host: pytest.MonkeyPatch) -> None:
    assert report(0)["settings"]["disabled"] is False
    host.setenv("METER_AGENT_DISABLED", "yes")
    assert report(0)["settings"]["disabled"] is True
    assert "settings      disabled; events go to" in status().stdout


def test_a_wrong_setting_is_a_usage_error(host: pytest.MonkeyPatch) -> None:
    host.setenv("METER_AGENT_SPOOL_BYTES", "lots")
    result = status()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("meter-agent status: METER_AGENT_SPOOL_BYTES='lots'")


# -- the spool -------------------------------------------------------------------------------------


def test_orphans_without_anybody_alive_need_a_human_until_they_are_replayed(spool: Path) -> None:
    die_with(spool, 1, 2, 3)
    document = report(1)
    assert document["spool"]["orphaned_events"] == 3
    assert (document["spool"]["never_sent"], document["spool"]["maybe_accepted"]) == (3, 0)
    assert 0 < document["spool"]["oldest_seconds"] < PATIENCE_SECONDS
    assert document["spool"]["bytes_used"] == 65_536
    (todo,) = document["attention"]
    assert f"`meter-agent spool replay '{spool}'`" in todo
    assert todo in status().stdout
    assert done("spool", "replay", spool) == 0
    after = report(0)
    assert (after["spool"]["segments"], after["sandbox"]["accepted"]) == (0, 3)


def test_orphans_beside_somebody_alive_are_left_to_him(spool: Path) -> None:
    with owner(spool, events=4) as process:
        die_with(spool, 1, 2)
        document = report(0)
        assert document["spool"]["owners"] == [process.pid]
        assert (document["spool"]["orphans"], document["spool"]["never_sent"]) == (1, 6)
        assert f"alive: {process.pid}; 1 orphan" in status().stdout


def test_damage_and_what_was_set_aside_need_a_human(spool: Path) -> None:
    damage(die_with(spool, 1, 2, 3), b'"cus_1",2]')
    assert "1 damaged piece, 0 files" in " ".join(report(1)["attention"])
    done("spool", "replay", spool)
    document = report(1)
    assert document["spool"]["quarantined"] == 1
    assert document["attention"] == [f"1 damaged piece in {spool}/quarantine"]


def test_a_spool_that_is_not_there_yet_is_no_trouble(spool: Path) -> None:
    spool.rmdir()
    assert report(0)["spool"] is None


# -- dead letters ----------------------------------------------------------------------------------


def test_dead_letters_are_counted_by_reason_and_need_a_human_until_they_are_sent_again(
    spool: Path,
) -> None:
    file = write(spool / "dead-letters.jsonl", letter("e1"), letter("e2"), invalid())
    newest = json.loads(file.read_text().splitlines()[-1])["settled_at"]
    document = report(1)
    assert document["dead_letters"] == {
        "file": str(file),
        "open": 3,
        "by_reason": {"invalid": 1, "rejected": 2},
        "newest_settled_at": newest,
        "sent_again": 0,
        "discarded": 0,
        "unread_lines": 0,
    }
    with Resent(file) as resent:
        for each, state in zip(
            Letters(file, Choice()), (State.DELIVERED, State.FAILED, State.NOT_SENT), strict=True
        ):
            resent.note([each], state)
    # What failed again has a newer letter, which is not in this file yet.
    letters = report(1)["dead_letters"]
    assert (letters["open"], letters["sent_again"]) == (1, 2)
    with Resent(file) as resent:
        resent.note(list(Letters(file, Choice()))[2:], State.DELIVERED)
    assert report(0)["dead_letters"]["open"] == 0


def test_a_line_that_is_no_letter_needs_a_human(spool: Path) -> None:
    (spool / "dead-letters.jsonl").write_text("nonsense\n")
    assert report(1)["dead_letters"]["unread_lines"] == 1


# -- imports ---------------------------------------------------------------------------------------


def rows(path: Path, count: int) -> Path:
    lines = ["event_name,payload_stripe_customer_id,payload_value"]
    path.write_text("\n".join([*lines, *(f"tokens,cus_1,{n}" for n in range(count))]) + "\n")
    return path


def test_an_import_that_is_done_is_told(tmp_path: Path) -> None:
    file = rows(tmp_path / "usage.csv", 5)
    assert done("import", file) == 0
    (told,) = report(0)["imports"]
    assert (told["state"], told["last_row"], told["ledger"]["delivered"]) == ("done", 5, 5)
    assert f"imports       {told['file']}: 5 rows, 5 delivered; done\n" in status().stdout


def test_rows_that_are_not_billed_are_told_with_the_file_they_are_in(
    tmp_path: Path, stripe: Sandbox
) -> None:
    stripe.add_fault(Fault("poison", match={"payload.value": "3"}))
    assert done("import", rows(tmp_path / "usage.csv", 5), "--rejects", tmp_path / "bad.csv") == 3
    told = f"4 delivered, 1 dead-lettered; done; the others are in {tmp_path / 'bad.csv'}\n"
    assert told in status().stdout


def test_rows_that_are_not_billed_ask_for_attention_until_their_file_is_gone(
    tmp_path: Path,
) -> None:
    file = rows(tmp_path / "usage.csv", 2)
    file.write_text(file.read_text() + "tokens,cus_1,twelve\n")
    assert done("import", file, "--rejects", tmp_path / "bad.csv") == 3
    (told,) = report(1)["attention"]
    assert f"1 row not billed, see {tmp_path / 'bad.csv'}: " in told
    (tmp_path / "bad.csv").unlink()
    assert report(0)["attention"] == []


def test_an_import_is_running_then_broken_off_then_done(tmp_path: Path, stripe: Sandbox) -> None:
    file = rows(tmp_path / "usage.csv", 5)
    stripe.add_fault(Fault("hang", accept=True))
    with started("import", file) as process:
        while not stripe.totals()["accepted"]:
            assert process.poll() is None
        (told,) = report(0)["imports"]
        assert told["state"] == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    document = report(1)
    assert document["imports"][0]["state"] == "broken off"
    (todo,) = document["attention"]
    assert "with --resume goes on with it" in todo
    stripe.clear_faults()
    assert done("import", file, "--resume") == 0
    assert report(0)["imports"][0]["state"] == "done"
    assert stripe.totals()["totals"] == {"tokens": {"cus_1": "10"}}


def test_a_journal_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    folder.mkdir()
    (folder / "a.journal").write_text("nonsense\n")
    (folder / "b.journal").write_text("")
    assert "imports       none\n" in status("--state-dir", str(folder)).stdout


# -- the sandbox -----------------------------------------------------------------------------------


def test_the_totals_of_a_sandbox_are_told_for_each_meter(stripe: Sandbox) -> None:
    for customer, value in (("cus_1", "0.1"), ("cus_2", "0.2"), ("cus_2", "3000000")):
        assert done("send", "tokens", customer, value) == 0
    document = report(0)
    assert document["sandbox"]["meters"] == {"tokens": {"customers": 2, "total": "3000000.3"}}
    assert "tokens: 3000000.3 (customers: 2)" in status().stdout


def test_a_sandbox_that_does_not_answer_ends_it_with_5(host: pytest.MonkeyPatch) -> None:
    host.setenv("METER_AGENT_SANDBOX_URL", "http://127.0.0.1:1")
    assert "ConnectionError" in report(5)["sandbox"]["error"]


def test_what_is_no_sandbox_is_told(host: pytest.MonkeyPatch, stripe: Sandbox) -> None:
    host.setenv("METER_AGENT_SANDBOX_URL", os.environ["METER_AGENT_SANDBOX_URL"] + "/elsewhere")
    assert "is it a sandbox?" in report(5)["sandbox"]["error"]
