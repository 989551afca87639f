"""No secret in any message, repr or crash page."""

from __future__ import annotations

import dataclasses
import io
import json
import pprint
import reprlib
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.traceback import Traceback as RichTraceback
from structlog.tracebacks import ExceptionDictTransformer

from meter_agent._config import Config
from meter_agent._secret import Secret
from meter_agent.exceptions import ConfigError
from tests.config.settings import HIDDEN, KEY, environment, problems, variable


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (KEY, "sk_test_***"),
        ("rk_live_abc", "rk_live_***"),
        ("sk_org_live_abc", "sk_org_live_***"),
        ("sk_abc", "sk_***"),
        ("whatever", "***"),
    ],
)
def test_a_repr_shows_the_kind_of_a_key_and_nothing_of_it(key: str, shown: str) -> None:
    config = Config(api_key=key, stripe_context="acct_1")
    assert repr(config) == f"Config(api_key='{shown}', stripe_context='acct_1')"
    assert str(config) == repr(config)
    for copied in (vars(config), dataclasses.asdict(config), config.read_api_key()):
        assert repr(shown) in repr(copied)


def test_a_repr_shows_what_differs_from_the_defaults() -> None:
    config = Config(disabled=True, batch_size=5, payload_keys={"a": {"value_key": "b"}})
    assert repr(config) == (
        "Config(disabled=True, batch_size=5, payload_keys={'a': {'value_key': 'b'}})"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY + "\n"},
        {"api_key": KEY.encode()},
        {"api_key": [KEY]},
        {"stripe_account": KEY + " "},
        {"stripe_account": "x" * 95 + KEY + " "},
        {"overflow": KEY},
        {"payload_keys": {KEY: 1}},
        {"api_key_file": KEY},
        {"api_url": f"https://user:{HIDDEN}@host"},
        {"api_url": f"user:{HIDDEN}@host"},
        {"api_url": f"https://user:{'x' * 200}/{HIDDEN}@host"},
        {"sandbox_url": f"https://host/?key={HIDDEN}"},
        {"sandbox_url": f"https://host/#{HIDDEN}"},
    ],
    ids=str,
)
def test_no_error_shows_a_secret(settings: dict[str, Any]) -> None:
    assert HIDDEN not in "\n".join(problems(**settings))
    environ = {variable(name): str(value) for name, value in settings.items()}
    if "api_key" not in settings:
        assert HIDDEN not in "\n".join(problems(environ))


def test_a_crash_page_with_local_variables_shows_no_key() -> None:
    try:
        Config.from_env(environment(batch_size="0"), api_key=KEY)
    except ConfigError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert len(trace.stack) > 1
    for frame in trace.stack:
        shown = {name: text for name, text in (frame.locals or {}).items() if name != "environ"}
        assert HIDDEN not in str(shown)


def test_a_secret_is_its_text_where_it_is_used() -> None:
    assert f"Bearer {Secret(KEY)}" == f"Bearer {KEY}"
    assert f"{Secret(KEY)!r}" == "'sk_test_***'"


REAL_HIDDEN = "51Hx" + "0aB9zQ7wK3" * 9 + "qT4u2"
REAL_KEY = "sk_live_" + REAL_HIDDEN
"""As long as Stripe's are."""


def crash(key: str) -> None:
    headers = {"Authorization": Secret(f"Bearer {key}")}
    parts = [key[:80], key[20:], key.upper(), key.split("_"), *key.partition("live_"), list(key)]
    put_together = ["Bearer " + key, key + "\r\n", key * 2, key.strip().replace("sk_", "")]
    raise LookupError(len(headers) + len(parts) + len(put_together))


def page_of_traceback(error: Exception) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def page_of_rich(error: Exception) -> str:
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(
        RichTraceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True, width=300
        )
    )
    return console.export_text()


def page_of_structlog(error: Exception, **options: Any) -> str:
    transform = ExceptionDictTransformer(show_locals=True, **options)
    assert error.__traceback__ is not None
    return repr(transform((type(error), error, error.__traceback__)))


def page_of_standard_tools(error: Exception) -> str:
    trace = error.__traceback__
    assert trace is not None
    shown = []
    while trace is not None:
        variables = trace.tb_frame.f_locals
        shown += [pprint.pformat(variables, width=40), reprlib.repr(variables)]
        shown += map(repr, variables.values())
        trace = trace.tb_next
    return "".join(shown)


@pytest.mark.parametrize(
    "page",
    [
        page_of_traceback,
        page_of_rich,
        page_of_structlog,
        lambda error: page_of_structlog(error, use_rich=False),
        page_of_standard_tools,
    ],
    ids=["traceback", "rich", "structlog", "structlog without rich", "pprint and reprlib"],
)
def test_a_crash_page_that_cuts_long_texts_shows_no_part_of_a_key(
    page: Callable[[Exception], str],
) -> None:
    assert len(REAL_KEY) == 107
    try:
        crash(Config(api_key=REAL_KEY).read_api_key())
    except LookupError as error:
        shown = page(error)
    assert "put_together" in shown
    pieces = [REAL_HIDDEN[n : n + 6] for n in range(len(REAL_HIDDEN) - 6)]
    found = [piece for piece in pieces if piece.lower() in shown.lower()]
    assert found == []


def test_a_part_of_a_secret_is_a_secret_and_still_a_str() -> None:
    key = Secret(REAL_KEY)
    assert (key[:7], key[8:12], key[-1]) == ("sk_live", "51Hx", "2")
    assert (key + "a", "a" + key) == (REAL_KEY + "a", "a" + REAL_KEY)
    assert key.partition("_") == ("sk", "_", "live_" + REAL_HIDDEN)
    for part in (key[:7], key + "", "" + key, key.lower(), *key.split("_"), *key, *key * 2):
        assert type(part) is Secret
    with pytest.raises(TypeError):
        key + 5  # type: ignore[operator]


def test_headers_are_made_of_a_secret_as_of_any_str() -> None:
    key = Secret(REAL_KEY)
    made = (f"Bearer {key}", "Bearer %s" % key, "Bearer {}".format(key), " ".join(["Bearer", key]))  # noqa: FLY002, UP031, UP032
    assert set(made) == {f"Bearer {REAL_KEY}"}
    assert key.encode("latin-1") == REAL_KEY.encode()
    assert json.loads(json.dumps({"key": key})) == {"key": REAL_KEY}
    assert {REAL_KEY: 1}[key] == 1


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cannot_be_printed_is_refused_all_the_same() -> None:
    assert "Unprintable object at" in problems(api_key=KEY, overflow=Unprintable())[0]
    assert "int object at" in problems(api_key=KEY, batch_size=10**5000)[0]
