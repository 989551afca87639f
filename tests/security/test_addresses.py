"""Plain http only to this machine, and no address that means another host than it seems to."""

from __future__ import annotations

from typing import Any

import pytest

from meter_agent import Config, ConfigError

REFUSED = [
    "http://api.stripe.com",
    "http://127.0.0.1.evil.com",
    "http://localhost.evil.com",
    "http://evil.com.localhost.",
    "http://localhost@evil.com",
    "http://127.0.0.1@evil.com",
    "http://127.0.0.1:80@evil.com",
    "http://user:password@127.0.0.1",
    "https://user@api.stripe.com",
    "http://0.0.0.0",
    "http://0",
    "http://127.1",
    "http://2130706433",
    "http://0x7f.0.0.1",
    "http://0177.0.0.1",
    "http://[::]",
    "http://[::ffff:127.0.0.1]",
    "http://[::1%25lo]",
    "http://10.0.0.1",
    "http://169.254.169.254",
    "http://localhost\\@evil.com",
    "http://localhost#@evil.com",
    "http://localhost?@evil.com",
    "http://localhost/\r\nHost: evil.com",
    "http://localhost\n.evil.com",
    "http://l\u043ecalhost",  # a Cyrillic letter
    "http://\u24dbocalhost",
    "HTTP://evil.com",
    " http://evil.com",
    "//127.0.0.1",
    "file:///etc/passwd",
    "unix:///run/stripe.sock",
    "javascript:alert(1)",
]


def config(**settings: Any) -> Config:
    return Config(**({"api_key": "sk_test_1"} | settings))


ALLOWED = [
    "http://127.0.0.1:8080",
    "http://127.255.255.254",
    "http://localhost:12111",
    "http://[::1]:12111",
    "https://api.stripe.com",
    "https://10.0.0.1:8443",
]


@pytest.mark.parametrize("setting", ["api_url", "events_url", "sandbox_url"])
@pytest.mark.parametrize("url", REFUSED)
def test_an_address_that_could_give_the_credentials_away_is_refused(setting: str, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**{setting: url})
    assert f"METER_AGENT_{setting.upper()}" in str(raised.value)
    assert "password" not in str(raised.value)


@pytest.mark.parametrize("setting", ["api_url", "events_url", "sandbox_url"])
@pytest.mark.parametrize("url", ALLOWED)
def test_tls_and_loopback_are_allowed(setting: str, url: str) -> None:
    assert getattr(config(**{setting: url}), setting) == url


@pytest.mark.parametrize("setting", ["stripe_account", "stripe_context", "stripe_version"])
@pytest.mark.parametrize(
    "text",
    ["acct_1\r\nX-Evil: 1", "acct_1\nX-Evil: 1", "acct_1\r", "acct_1\0", "acct 1", "acct_\udc80"],
    ids=ascii,
)
def test_a_header_cannot_be_smuggled_in_through_a_setting(setting: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"METER_AGENT_{setting.upper()}"):
        config(**{setting: text})


@pytest.mark.parametrize("key", ["sk_test_1\r\nX-Evil: 1", "sk_test_1\n", "sk_test_\0", "sk test"])
def test_a_header_cannot_be_smuggled_in_through_the_key(key: str) -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY"):
        config(api_key=key)
