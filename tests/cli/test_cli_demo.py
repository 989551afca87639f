"""The demo as a user runs it."""

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meter_agent import MeterAgent, Stats
from meter_agent.cli.demo.play import play
from meter_agent.cli.demo.trace import shipped_trace
from tests.patience import PATIENCE_SECONDS

from .processes import first_line, run, started

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.fixture(scope="module")
def outcome() -> subprocess.CompletedProcess[str]:
    return run("demo", "--seconds", 1)


def test_the_books_balance_under_faults(outcome: subprocess.CompletedProcess[str]) -> None:
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "the books balance"


def test_without_a_terminal_progress_is_a_few_plain_lines(
    outcome: subprocess.CompletedProcess[str],
) -> None:
    assert "\x1b" not in outcome.stdout + outcome.stderr
    lines = outcome.stderr.splitlines()
    assert lines[0].startswith("a sandbox with faults runs at http://127.0.0.1:")
    assert re.match(r"5000/5000 settled: recorded 5000 .* buffered 0 ", lines[-1])
    assert len(lines) < 20


def test_the_report_is_json_on_request() -> None:
    report = _report("--seconds", 0)
    ledger, sandbox = report["ledger"], report["sandbox"]
    assert report["balanced"] is True
    assert report["differences"] == []
    assert report["events"] == ledger["recorded"] == 5000
    assert ledger["delivered"] == sandbox["accepted"]
    # Each kind of fault struck, or this was no proof of anything.
    assert all(report["faults"].values()), report["faults"]
    assert sandbox["duplicates"] > 0
    # One of them may have been in a request whose answer was lost.
    assert ledger["dead_lettered"] + ledger["uncertain"] == 2


def test_customer_totals_add_up_to_those_of_the_trace(tmp_path: Path) -> None:
    trace = _trace(tmp_path, *(f"2023-11-16 18:17:{n:02d}.1234567,{n},0" for n in range(40)))
    report = _report("--trace", trace, "--seconds", 0, "--seed", 7)
    assert report["totals"]["input_tokens"]["recorded"] == sum(range(40))
    customers = report["customers"]["output_tokens"]
    assert 1 < len(customers) <= 25
    assert all(sides["recorded"] == sides["sandbox"] == 0 for sides in customers.values())


def test_a_trace_of_one_row_is_enough(tmp_path: Path) -> None:
    trace = _trace(tmp_path, "2023-11-16 18:17:03.9799600,4808,10")
    assert _report("--trace", trace)["ledger"]["recorded"] == 2


def test_what_somebody_else_bills_to_the_customers_is_a_difference() -> None:
    with started("demo", "--seconds", 3) as demo:
        url = first_line(demo, demo.stderr).split(";")[0].split()[-1]
        with MeterAgent(sandbox_url=url) as agent:
            agent.record("input_tokens", "cus_demo_00", 7, identifier="foreign")
        output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 1
    *_, events, account, verdict = output.splitlines()
    assert re.fullmatch(r"events: the agent delivered \d+, the sandbox accepted \d+", events)
    assert re.fullmatch(r"input_tokens cus_demo_00: recorded .*\(\+7\)", account)
    assert verdict == "the books do not balance"


def test_a_proxy_of_the_environment_does_not_come_between(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    trace = _trace(tmp_path, "2023-11-16 18:17:03.9799600,4808,10")
    assert _report("--trace", trace)["balanced"] is True


def test_settings_of_the_environment_do_not_change_the_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METER_AGENT_DISABLED", "true")
    trace = _trace(tmp_path, "2023-11-16 18:17:03.9799600,4808,10")
    assert _report("--trace", trace)["ledger"]["delivered"] == 2


def test_ctrl_c_ends_the_demo_with_one_word() -> None:
    with started("demo", "--seconds", 600) as demo:
        first_line(demo, demo.stderr)
        demo.send_signal(signal.SIGINT)
        output, talk = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 130
    assert output == ""
    assert talk.splitlines()[-1] == "interrupted"
    assert "Traceback" not in talk


def test_a_ctrl_c_that_python_swallowed_ends_the_demo_at_its_next_look() -> None:
    class Swallower:
        def say(self, _text: str) -> None:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

        def show(self, _stats: Stats, _events: int) -> None:
            raise AssertionError("the demo went on")

    with pytest.raises(KeyboardInterrupt):
        play(shipped_trace()[:20], seed=0, seconds=600, viewer=Swallower())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_sandbox_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    # `-P` hides this module from the demo; the sandbox's process falls for it.
    (tmp_path / "meter_agent.py").write_text("raise SystemExit('out of order')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "meter_agent", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "meter-agent: the sandbox did not start: out of order\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", ", line 1: no column TIMESTAMP, ContextTokens, GeneratedTokens; wanted: " + HEADER),
        ("TIMESTAMP,Tokens\n", ", line 1: no column ContextTokens, GeneratedTokens"),
        (f"{HEADER}\n", ": no rows"),
        (f"{HEADER}\nyesterday,1,1\n", ", line 2: TIMESTAMP 'yesterday' is no date and time"),
        (f"{HEADER}\n2023-11-16 18:17:03,1,1\n2023-11-16 18:17:04,1\n", ", line 3: Generated"),
        (f"{HEADER}\n2023-11-16 18:17:03,-1,1\n", ", line 2: ContextTokens '-1' is no whole"),
        (f"{HEADER}\n2023-11-16 18:17:03,1,{'9' * 16}\n", ", line 2: GeneratedTokens '999"),
        (f"{HEADER}\n2023-01-16,1,1\n2023-11-16,1,1\n", ": spans more than 34 days"),
        (f"{HEADER}\n{'x' * 200_000},1,1\n", ", line 2: field larger than field limit"),
        (f"{HEADER}\n2023-11-16 18:17:03,\ufffe,1\n", ", line 2: ContextTokens"),
    ],
)
def test_a_bad_trace_is_one_line_with_file_line_and_reason(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    _expect_usage_error(path, f"meter-agent demo: {path}{complaint}")


def test_a_trace_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\n")
    _expect_usage_error(path, f"meter-agent demo: {path}: this is not UTF-8 text")


def test_a_trace_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no.csv"
    _expect_usage_error(path, f"meter-agent demo: {path}: No such file or directory")


def _expect_usage_error(trace: Path, complaint: str) -> None:
    from click.testing import CliRunner

    from meter_agent.cli.app import app

    outcome = CliRunner().invoke(app, ["demo", "--trace", str(trace)], prog_name="meter-agent")
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith(complaint)
    assert outcome.stderr.count("\n") == 1


def _trace(folder: Path, *rows: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([HEADER, *rows]))
    return path


def _report(*options: object) -> dict[str, Any]:
    outcome = run("demo", "--json", *options)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "the books balance"
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report
