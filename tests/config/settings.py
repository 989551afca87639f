"""Every setting with its default, its variable and wrong values; and how a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest

from meter_agent._config import Config
from meter_agent.exceptions import ConfigError

KEY = "sk_test_51HsecretXYZ"

HIDDEN = "51HsecretXYZ"

# For each setting: the default, a variable, what it is read as, and wrong variables.
TABLE: dict[str, tuple[Any, str, Any, list[str]]] = {
    "api_key": (None, "sk_live_a", "sk_live_a", ["a b", "a\nb", "ключ", "a\x00", "\udcff"]),
    "api_key_file": (None, __file__, __file__, ["a\x00b", "/does/not/exist", "~nobody-here/key"]),
    "api_url": (
        "https://api.stripe.com",
        "http://127.0.0.1:8000",
        "http://127.0.0.1:8000",
        ["http://api.stripe.com", "api.stripe.com", "ftp://x", "https://", "https://x:99999"],
    ),
    "events_url": (
        "https://meter-events.stripe.com",
        "https://proxy.internal/stripe/",
        "https://proxy.internal/stripe/",
        ["http://127.0.0.1.evil.com", "http://localhost.evil.com", "https://x:0", "https://a b"],
    ),
    "sandbox_url": (
        None,
        "http://[::1]:1",
        "http://[::1]:1",
        [
            "http://10.0.0.1",
            "http://[::2]",
            "http://0.0.0.0",
            "http://127.0.0.256",
            "https://a\\@b",
        ],
    ),
    "stripe_version": (
        "2026-10-28.endive",
        "2024-09-30.acacia",
        "2024-09-30.acacia",
        ["latest", "2024-06-20", "2024-06-20.acacia", "2026-10-28.endive\r\nX-A: 1"],
    ),
    "stripe_account": (None, "acct_1", "acct_1", ["acct 1", "acct\r\nX-A: 1", "é", "a" * 1001]),
    "stripe_context": (None, "acct_1/acct_2", "acct_1/acct_2", ["a\tb", "\x7f"]),
    "disabled": (False, "YES", True, ["2", "maybe", "truee"]),
    "strict": (False, "On", True, ["y"]),
    "buffer_events": (100_000, "5", 5, ["0", "-1", "1.5", "100_000", "1e5", "\u0661", "9" * 5000]),
    "overflow": ("drop_newest", "block", "block", ["BLOCK", "drop"]),
    "block_timeout_seconds": (1.0, "0", 0.0, ["-1", "1s", "3601"]),
    "batch_size": (100, "1", 1, ["0", "101"]),
    "flush_interval_seconds": (1.0, "1e-1", 0.1, ["0", "nan", "inf", "1_0", "1e999"]),
    "max_in_flight": (8, "256", 256, ["0", "257"]),
    "max_events_per_second": (10_000.0, "0.5", 0.5, ["0", "-5", "fast"]),
    "connect_timeout_seconds": (5.0, ".5", 0.5, ["0", "301"]),
    "read_timeout_seconds": (30.0, "600", 600.0, ["0", "601"]),
    "retry_base_seconds": (0.5, "30", 30.0, ["0", "31"]),
    "retry_max_seconds": (30.0, "0.5", 0.5, ["0", "0.4", "3601"]),
    "resend_window_seconds": (82_800.0, "86399", 86_399.0, ["86400", "0"]),
    "shutdown_timeout_seconds": (5.0, "0", 0.0, ["-0.1", "never"]),
    "spool_dir": (None, "/var/spool/x", "/var/spool/x", ["a\x00", "~nobody-here/x"]),
    "spool_bytes": (268_435_456, "1048576", 1_048_576, ["1048575", "256MiB", "1099511627777"]),
    "spool_sync_seconds": (0.0, "1.5", 1.5, ["-1"]),
    "dead_letter_file": (None, "/dead.jsonl", "/dead.jsonl", ["\x00", "~nobody-here"]),
    "customer_key": ("stripe_customer_id", "customer", "customer", ["value", "a\nb", "x" * 101]),
    "value_key": ("value", "amount", "amount", ["stripe_customer_id", "a\x85b"]),
    "payload_keys": (
        {},
        '{"tokens": {"value_key": "count"}}',
        {"tokens": {"value_key": "count"}},
        [
            *("tokens", "[1]", '{"": {}}', '{"a": 1}', '{"a": {"b": "c"}}'),
            '{"a": {"value_key": ""}}',
            '{"a": {"value_key": null}}',
            '{"a": {"value_key": "stripe_customer_id"}}',
            "[" * 99_999,
        ],
    ),
    "handle_sigterm": (False, "1", True, ["-1"]),
}

WRONG = [(name, text) for name, row in TABLE.items() for text in row[3]]


def variable(name: str) -> str:
    return f"METER_AGENT_{name.upper()}"


def environment(**variables: str) -> dict[str, str]:
    """Return variables with which an agent starts, and the ones given by field name."""
    key = {} if variables.keys() & {"api_key", "api_key_file"} else {"api_key": KEY}
    return {variable(name): text for name, text in (key | variables).items()}


def problems(environ: dict[str, str] | None = None, /, **settings: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Config(**settings) if environ is None else Config.from_env(environ, **settings)
    return caught.value.problems
