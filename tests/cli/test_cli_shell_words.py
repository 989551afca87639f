"""What people at a shell read about their values: rules without the types of Python."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from meter_agent._config import SETTINGS
from meter_agent.cli.shell_words import shell_words

from .processes import run

PYTHON = re.compile(
    r"\b(an? (int|str|bool|float)|int|str|float|Decimal|datetime|PathLike|tuple|dict|NaN|None)\b"
    r"|in Python|\w\(\)|round\("
)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tokens", "cus_1", "abc"], "must be a number such as 5"),
        (["tokens", "cus_1", "nan"], "must be a number such as 5"),
        (["tokens", "cus_1", ""], "must be a number such as 5"),
        (["tokens", "cus_1", "0.1234567890123456"], "at most 12 of them decimals"),
        (["tokens", "cus_1", "1e400"], "15 digits"),
        (["", "cus_1"], "must be 1 to 100 characters"),
        (["tokens", " cus_1"], "it begins with U+0020"),
        (["tokens", "c" * 200], "it has 200 characters"),
        (["tokens", "cus_1", "--payload", f"k={'x' * 501}"], "at most 500 characters"),
        (["tokens", "cus_1", "--payload", "value=5"], "must not be the customer or value key"),
        (["tokens", "cus_1", "--timestamp", "5"], "35 days"),
        (["tokens", "cus_1", "--timestamp", "soon"], "2026-01-31T12:15:00Z"),
        (["tokens", "cus_1", "--identifier", ""], "must be 1 to 100 characters"),
    ],
)
def test_send_says_what_a_value_must_be(arguments: list[str], told: str) -> None:
    environ = {**os.environ, "METER_AGENT_SANDBOX_URL": "http://127.0.0.1:9"}
    outcome = run("send", *arguments, env=environ)
    assert outcome.returncode == 2
    assert told in outcome.stderr
    assert not PYTHON.search(outcome.stderr)


def test_rejected_rows_say_what_a_cell_must_be(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(
        '{"event_name":"t","payload":{"stripe_customer_id":"c","value":[1]}}\n'
        '{"event_name":"t","payload":{"stripe_customer_id":"c","value":true}}\n'
        '{"event_name":"t","payload":{"stripe_customer_id":"c","value":0.12345678901234567}}\n'
        '{"event_name":"t\\u200b","payload":{"stripe_customer_id":"c","value":1}}\n'
        '{"event_name":"t","payload":{"stripe_customer_id":"c","value":1,"x":[1]}}\n'
    )
    outcome = run("import", "--dry-run", path)
    assert outcome.returncode == 1
    assert outcome.stdout.count("rejected line") == 5
    assert not PYTHON.search(outcome.stdout)


def test_settings_say_what_a_variable_must_be() -> None:
    # A NUL cannot be in a variable, and a text is never wrong for a few of them.
    wrong = {setting.variable: "~nobody-has-this-name/ \x07" for setting in SETTINGS}
    for command in (["config", "show"], ["status"], ["doctor", "--offline"]):
        outcome = run(*command, env={**os.environ, **wrong})
        assert outcome.returncode == 2
        assert outcome.stderr.count("must be") + outcome.stdout.count("must be") > 10
        assert not PYTHON.search(outcome.stderr)
        assert not PYTHON.search(outcome.stdout)


def test_every_rule_of_a_setting_has_words_for_a_shell() -> None:
    for setting in SETTINGS:
        assert not PYTHON.search(shell_words(setting.kind.rule)), setting.name
