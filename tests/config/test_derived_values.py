"""What follows from the settings: addresses, files, payload keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meter_agent._config import Config
from meter_agent._event import PayloadKeys
from tests.config.settings import KEY


def test_the_addresses_are_stripes_by_default() -> None:
    config = Config(api_key=KEY)
    assert config.session_url == "https://api.stripe.com/v2/billing/meter_event_session"
    assert config.stream_url == "https://meter-events.stripe.com/v2/billing/meter_event_stream"
    assert config.stream_host == "meter-events.stripe.com"


def test_a_sandbox_wins_over_both_hosts() -> None:
    config = Config(
        sandbox_url="http://localhost:8282/", api_url="https://a", events_url="https://b"
    )
    assert config.session_url == "http://localhost:8282/v2/billing/meter_event_session"
    assert config.stream_url == "http://localhost:8282/v2/billing/meter_event_stream"
    assert config.stream_host == "localhost:8282"


@pytest.mark.parametrize(
    ("settings", "local"),
    [
        ({"sandbox_url": "http://127.0.0.1:1"}, True),
        ({"sandbox_url": "https://[::1]/stripe"}, True),
        ({"sandbox_url": "https://localhost.example.com"}, False),
        ({"sandbox_url": "https://127.0.0.1.example.com"}, False),
        ({"api_key": "sk_test_1"}, False),
        ({"api_key": "sk_test_1", "api_url": "http://localhost"}, False),
        ({"api_key": "sk_test_1", "events_url": "http://localhost"}, False),
        (
            {
                "api_key": "sk_test_1",
                "api_url": "http://localhost",
                "events_url": "http://127.0.0.2:9",
            },
            True,
        ),
    ],
)
def test_it_knows_whether_everything_stays_on_this_host(
    settings: dict[str, Any], local: bool
) -> None:
    assert Config(**settings).is_local is local


@pytest.mark.parametrize("url", ["https://proxy/stripe", "https://proxy/stripe//"])
def test_a_slash_at_the_end_of_an_address_makes_no_difference(url: str) -> None:
    config = Config(api_key=KEY, api_url=url, events_url=url)
    assert config.session_url == "https://proxy/stripe/v2/billing/meter_event_session"
    assert config.stream_url == "https://proxy/stripe/v2/billing/meter_event_stream"


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, None),
        ({"spool_dir": Path("/spool")}, Path("/spool/dead-letters.jsonl")),
        ({"spool_dir": "/spool", "dead_letter_file": "/d.jsonl"}, Path("/d.jsonl")),
        ({"dead_letter_file": Path("/d.jsonl")}, Path("/d.jsonl")),
    ],
)
def test_dead_letters_lie_beside_the_spool_unless_told_otherwise(
    settings: dict[str, Any], path: Path | None
) -> None:
    assert Config(api_key=KEY, **settings).dead_letter_path == path


def test_the_payload_keys_of_an_event_fall_back_to_the_general_ones() -> None:
    config = Config(
        api_key=KEY,
        customer_key="customer",
        payload_keys={"tokens": {"value_key": "count"}, "calls": {}},
    )
    assert config.encoder_keys == (
        PayloadKeys("customer", "value"),
        {"tokens": PayloadKeys("customer", "count"), "calls": PayloadKeys("customer", "value")},
    )
