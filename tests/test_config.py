"""Every setting: its default, its variable, its rule; and no secret in any message."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import _generate
from meter_agent._config import SANDBOX_API_KEY, SETTINGS, Config, unknown_variables
from meter_agent._event import PayloadKeys
from meter_agent._secret import Secret
from meter_agent.exceptions import ConfigError

KEY = "sk_test_51HsecretXYZ"
HIDDEN = "51HsecretXYZ"

# For each setting: the default, a variable, what it is read as, and wrong variables.
TABLE: dict[str, tuple[Any, str, Any, list[str]]] = {
    "api_key": (None, "sk_live_a", "sk_live_a", ["a b", "a\nb", "ключ", "a\x00", "\udcff"]),
    "api_key_file": (None, __file__, __file__, ["a\x00b", "/does/not/exist"]),
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
    "spool_dir": (None, "/var/spool/x", "/var/spool/x", ["a\x00"]),
    "spool_bytes": (268_435_456, "1048576", 1_048_576, ["1048575", "256MiB", "1099511627777"]),
    "spool_sync_seconds": (0.0, "1.5", 1.5, ["-1"]),
    "dead_letter_file": (None, "dead.jsonl", "dead.jsonl", ["\x00"]),
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


# --- each setting


def test_the_table_of_this_file_covers_every_setting() -> None:
    assert list(TABLE) == [setting.name for setting in SETTINGS]
    assert list(TABLE) == [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize("name", TABLE)
def test_a_setting_has_the_documented_default(name: str) -> None:
    assert getattr(Config(sandbox_url="http://localhost"), name) == (
        "http://localhost" if name == "sandbox_url" else TABLE[name][0]
    )


@pytest.mark.parametrize("name", TABLE)
def test_a_setting_is_read_from_its_variable(name: str) -> None:
    key = {} if name.startswith("api_key") else {"STRIPE_API_KEY": KEY}
    if name == "api_key_file":
        key = {"METER_AGENT_DISABLED": "1"}  # this file holds no key
    config = Config.from_env({variable(name): f" {TABLE[name][1]}\n", **key})
    value = getattr(config, name)
    assert value == TABLE[name][2]
    assert isinstance(value, type(TABLE[name][2]))


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    config = Config.from_env({variable(name): " "}, sandbox_url="http://localhost")
    if name != "sandbox_url":
        assert getattr(config, name) == TABLE[name][0]


def test_an_empty_sandbox_url_means_stripe() -> None:
    config = Config.from_env(environment(sandbox_url=""))
    assert config.sandbox_url is None


@pytest.mark.parametrize(("name", "text"), WRONG, ids=[name for name, _ in WRONG])
def test_a_wrong_variable_is_refused_with_variable_value_and_rule(name: str, text: str) -> None:
    (problem,) = problems(environment(**{name: text}))
    problem.encode()
    assert len(problem) < 400
    if name in {"retry_max_seconds", "customer_key"} and name not in problem.partition(":")[0]:
        assert variable(name) in problem  # the partner of the comparison
    else:
        assert problem.startswith(f"{variable(name)}=")
    assert any(word in problem for word in (": must ", " must differ", "cannot be read"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, b"1", 10**400])
@pytest.mark.parametrize(
    "name", [name for name, row in TABLE.items() if type(row[0]) in {int, float}]
)
def test_a_number_is_neither_nan_nor_bool_nor_text(name: str, value: object) -> None:
    (problem,) = problems(api_key=KEY, **{name: value})
    assert problem.startswith(f"{variable(name)}=")
    assert "number from" in problem


@pytest.mark.parametrize("name", ["buffer_events", "batch_size", "max_in_flight", "spool_bytes"])
def test_a_count_is_no_float(name: str) -> None:
    assert "whole number" in problems(api_key=KEY, **{name: 50.0})[0]


@pytest.mark.parametrize("name", ["disabled", "strict", "handle_sigterm"])
@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_a_switch_takes_nothing_but_a_bool(name: str, value: object) -> None:
    assert problems(api_key=KEY, **{name: value})[0].startswith(f"{variable(name)}=")


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[0] != {}])
@pytest.mark.parametrize(
    "value", [[], b"x", object(), ""], ids=["list", "bytes", "object", "empty"]
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: object) -> None:
    found = problems(**{"sandbox_url": "http://localhost", name: value})
    assert [problem.partition("=")[0] for problem in found] == [variable(name)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "tokens",
        {"a": {"value_key": 5}},
        {5: {}},
        {"a": None},
        {"a" * 101: {}},
        {"a": {5: "b"}},
    ],
    ids=str,
)
def test_payload_keys_of_the_wrong_shape_are_refused(value: object) -> None:
    assert problems(api_key=KEY, payload_keys=value)[0].startswith("METER_AGENT_PAYLOAD_KEYS=")


@pytest.mark.parametrize("text", ["1", "true", "YES", "On", "0", "False", "no", "OFF"])
def test_switches_take_the_usual_words(text: str) -> None:
    config = Config.from_env(environment(strict=text))
    assert config.strict is (text in {"1", "true", "YES", "On"})


@given(
    st.dictionaries(
        st.sampled_from([*map(variable, TABLE), "STRIPE_API_KEY"]),
        st.text(st.characters(codec=None), max_size=20)
        | st.sampled_from([text for _, text in WRONG] + [row[1] for row in TABLE.values()]),
    )
)
def test_no_environment_raises_anything_but_a_config_error(environ: dict[str, str]) -> None:
    try:
        config = Config.from_env(environ)
    except ConfigError as error:
        str(error).encode()
        return
    assert Config.from_env(environ) == config
    assert hash(Config.from_env(environ)) == hash(config)


# --- all together


def test_all_wrong_settings_are_told_at_once() -> None:
    environ = environment(batch_size="many", overflow="explode", api_url="http://x", strict="?")
    found = problems(environ, max_in_flight=0, retry_base_seconds=99)
    assert [problem.partition("=")[0].removeprefix("METER_AGENT_") for problem in found] == [
        *("API_URL", "STRICT", "OVERFLOW", "BATCH_SIZE", "MAX_IN_FLIGHT"),
        "RETRY_BASE_SECONDS",
    ]
    assert found[3] == "METER_AGENT_BATCH_SIZE='many': must be a whole number from 1 to 100"


def test_a_comparison_is_not_made_with_a_value_that_is_wrong_by_itself() -> None:
    found = problems(environment(retry_base_seconds="60", retry_max_seconds="soon"))
    assert len(found) == 1
    assert found[0].startswith("METER_AGENT_RETRY_MAX_SECONDS='soon'")


def test_a_keyword_wins_over_its_variable() -> None:
    environ = environment(batch_size="20", max_in_flight="not even read")
    config = Config.from_env(environ, max_in_flight=3)
    assert (config.batch_size, config.max_in_flight) == (20, 3)


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        Config.from_env(environment(), batchsize=5)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", KEY)
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    monkeypatch.setenv("METER_AGENT_BATCHSIZE", "7")
    assert Config.from_env().batch_size == 7
    assert ("METER_AGENT_BATCHSIZE", "METER_AGENT_BATCH_SIZE") in unknown_variables()


def test_the_constructor_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    assert Config(api_key=KEY).batch_size == 100


def test_an_unknown_variable_is_told_with_the_nearest_name() -> None:
    environ = dict.fromkeys(
        ["METER_AGENT_FLUSH_INTERVAL", "METER_AGENT_ZZZ", "METER_AGENT_STRICT", "PATH"], "1"
    )
    assert unknown_variables(environ) == [
        ("METER_AGENT_FLUSH_INTERVAL", "METER_AGENT_FLUSH_INTERVAL_SECONDS"),
        ("METER_AGENT_ZZZ", None),
    ]


# --- keys


def test_without_a_key_the_error_says_what_to_set() -> None:
    (problem,) = problems({})
    for name in ("METER_AGENT_API_KEY", "STRIPE_API_KEY", "METER_AGENT_API_KEY_FILE"):
        assert name in problem
    assert "METER_AGENT_SANDBOX_URL" in problem
    assert "METER_AGENT_DISABLED=true" in problem


@pytest.mark.parametrize("settings", [{"disabled": True}, {"sandbox_url": "http://localhost:1"}])
def test_a_disabled_agent_and_a_sandbox_need_no_key(settings: dict[str, Any]) -> None:
    Config(**settings)


def test_our_variable_wins_over_the_shared_one() -> None:
    environ = {"STRIPE_API_KEY": "sk_test_shared"}
    assert Config.from_env(environ).api_key == "sk_test_shared"
    assert Config.from_env(environ | environment()).api_key == KEY


def test_a_key_and_a_key_file_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    (problem,) = problems(api_key=KEY, api_key_file=file)
    assert "only one of the two may be set" in problem
    assert HIDDEN not in problem


def test_a_key_file_wins_over_the_shared_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk_test_file")
    environ = {"STRIPE_API_KEY": KEY, "METER_AGENT_API_KEY_FILE": str(file)}
    assert Config.from_env(environ).read_api_key() == "sk_test_file"
    assert Config.from_env({"STRIPE_API_KEY": KEY}, api_key_file=file).api_key is None


def test_a_key_by_keyword_leaves_the_variables_of_both_forms_unread() -> None:
    environ = {"METER_AGENT_API_KEY_FILE": "/nowhere", "STRIPE_API_KEY": "a b"}
    assert Config.from_env(environ, api_key=KEY).read_api_key() == KEY


def test_the_key_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("rk_live_old\n")
    config = Config(api_key_file=file)
    assert config.read_api_key() == "rk_live_old"
    file.write_text("rk_live_new\n")
    assert config.read_api_key() == "rk_live_new"
    file.unlink()
    with pytest.raises(ConfigError, match=r"API_KEY_FILE=.* cannot be read: No such file"):
        config.read_api_key()


@pytest.mark.parametrize("content", ["", " \n", "sk_a sk_b", "sk_\x00", "clé", "k" * 5000])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    (problem,) = problems(api_key_file=str(file))
    assert "must hold one API key and nothing else" in problem


def test_a_key_file_that_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert "it is not a regular file" in problems(api_key_file=path)[0]


def test_a_publishable_key_is_refused_with_a_hint() -> None:
    (problem,) = problems({"STRIPE_API_KEY": "pk_live_abc"})
    assert "'pk_live_***': must be a secret key (sk_) or a restricted key (rk_)" in problem


def test_the_key_of_an_organisation_needs_a_context() -> None:
    (problem,) = problems(api_key="sk_org_live_abc")
    assert problem.startswith("METER_AGENT_STRIPE_CONTEXT is not set")
    Config(api_key="sk_org_live_abc", stripe_context="acct_1")


def test_a_sandbox_is_never_sent_the_real_key() -> None:
    config = Config(api_key=KEY, sandbox_url="https://sandbox.example")
    assert config.read_api_key() == SANDBOX_API_KEY


def test_a_disabled_agent_has_no_key_to_read() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY is not set"):
        Config(disabled=True).read_api_key()


# --- secrets


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
    ours = [frame for frame in trace.stack if frame.filename.endswith("_config.py")]
    assert ours
    for frame in ours:
        shown = {name: text for name, text in (frame.locals or {}).items() if name != "environ"}
        assert HIDDEN not in str(shown)


def test_a_secret_is_its_text_where_it_is_used() -> None:
    assert f"Bearer {Secret(KEY)}" == f"Bearer {KEY}"
    assert f"{Secret(KEY)!r}" == "'sk_test_***'"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_that_cannot_be_printed_is_refused_all_the_same() -> None:
    assert "Unprintable object at" in problems(api_key=KEY, overflow=Unprintable())[0]
    assert "int object at" in problems(api_key=KEY, batch_size=10**5000)[0]


# --- derived values


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
        ({"spool_dir": "/spool", "dead_letter_file": "d.jsonl"}, Path("d.jsonl")),
        ({"dead_letter_file": Path("d.jsonl")}, Path("d.jsonl")),
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


# --- a value object

RICH = Config(
    api_key=KEY,
    spool_dir=Path("/spool"),
    payload_keys={"tokens": {"customer_key": "a", "value_key": "b"}},
)


def test_a_config_survives_pickling_and_copying() -> None:
    for copied in (pickle.loads(pickle.dumps(RICH)), copy.deepcopy(RICH), copy.copy(RICH)):
        assert copied == RICH
        assert hash(copied) == hash(RICH)
        assert repr(copied) == repr(RICH)


def test_a_changed_copy_is_checked_like_a_new_one() -> None:
    changed = dataclasses.replace(RICH, batch_size=5)
    assert (changed.batch_size, changed.payload_keys) == (5, RICH.payload_keys)
    assert changed != RICH
    with pytest.raises(ConfigError, match="METER_AGENT_BATCH_SIZE=0"):
        dataclasses.replace(RICH, batch_size=0)


def test_a_config_cannot_be_changed() -> None:
    keys: Any = RICH.payload_keys
    with pytest.raises(dataclasses.FrozenInstanceError):
        RICH.strict = True  # type: ignore[misc]
    for change in (lambda: keys.update(a={}), lambda: keys.pop("tokens"), keys.clear):
        with pytest.raises(TypeError, match="immutable"):
            change()
    with pytest.raises(TypeError, match="immutable"):
        keys["tokens"]["value_key"] = "c"


def test_a_config_keeps_its_own_copy_of_a_mapping() -> None:
    given_keys = {"tokens": {"value_key": "b"}}
    config = Config(api_key=KEY, payload_keys=given_keys)
    given_keys["tokens"]["value_key"] = "c"
    assert config.payload_keys == {"tokens": {"value_key": "b"}}


# --- guests and documents


def test_importing_reads_no_environment_and_loads_no_heavy_module() -> None:
    code = (
        "import os, sys, types\n"
        "package = types.ModuleType('meter_agent'); package.__path__ = ['meter_agent']\n"
        "sys.modules['meter_agent'] = package\n"
        "before = set(sys.modules)\n"
        "os.environ = None\n"
        "import meter_agent._config\n"
        "print(*set(sys.modules) - before)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=_generate.DOCS.parent,
    ).stdout.split()
    heavy = {"requests", "structlog", "tenacity", "asyncio", "ssl", "socket", "urllib.parse"}
    assert not heavy & set(loaded)


def test_the_reference_page_of_the_settings_is_up_to_date() -> None:
    assert _generate.stale_pages() == []


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_every_setting_is_explained_in_a_sentence_that_fits_a_table(setting: Any) -> None:
    assert setting.help.endswith(".")
    assert "|" not in setting.help + setting.kind.rule
    assert "\n" not in setting.help
    assert setting.kind.rule.startswith("must ")
