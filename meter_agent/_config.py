"""Every setting once: its name, its variable, its default, its rule, and what it does.

Guarantees:

* The environment is read here, and for the command line in `_found_settings`; only when asked.
* A `Config` that exists is valid. A wrong one raises a single `ConfigError` that lists every wrong
  setting with its variable, its value and its rule.
* The API key appears in no message, no repr, and not in the locals that a crash page prints:
  it is held as a `Secret`, a str whose repr is masked.

The reference page of the settings is generated from `SETTINGS`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from meter_agent import _api_key
from meter_agent import _setting_kinds as kinds
from meter_agent._event import PayloadKeys
from meter_agent._frozen import FrozenDict
from meter_agent._secret import Secret, shown
from meter_agent._setting import Setting, stored_form
from meter_agent._setting_names import nearest, unknown_names
from meter_agent.exceptions import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PREFIX",
    "SANDBOX_API_KEY",
    "SETTINGS",
    "Config",
    "Setting",
    "read_environment",
    "unknown_variables",
]

PREFIX: Final = "METER_AGENT_"
"""What the names of all our variables begin with."""

SANDBOX_API_KEY: Final = "sk_test_meter_agent_sandbox"
"""Sent to a sandbox in place of the configured key, so that a real one never reaches it."""

_SESSION_PATH = "/v2/billing/meter_event_session"
_STREAM_PATH = "/v2/billing/meter_event_stream"
_EVENT_PATH = "/v2/billing/meter_events"
_METERS_PATH = "/v1/billing/meters"


def _setting(default: Any, kind: kinds.Kind, meaning: str, **options: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "help": meaning}, **options)


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """All settings of an agent; immutable, hashable, picklable, and valid.

    Examples:
        Config(api_key="sk_live_...")               # checked at once
        Config.from_env()                           # METER_AGENT_* variables
        Config.from_env(batch_size=20)              # a keyword wins over its variable
        dataclasses.replace(config, strict=True)    # a changed copy

    Raises:
        ConfigError: Lists every wrong setting with its variable, its value and its rule.
    """

    api_key: str | None = _setting(
        None,
        kinds.or_unset(kinds.KEY),
        "Stripe secret key (`sk_`) or restricted key (`rk_`). Without the variable,"
        " `STRIPE_API_KEY` is read. Sent only to the API host, to open sessions.",
    )
    api_key_file: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        kinds.or_unset(kinds.FILE),
        "File with the key in it, in place of `api_key`; wins over `STRIPE_API_KEY`. Read anew for"
        " each session, so that a replaced key takes effect without a restart."
        f" At most {_api_key.FILE_BYTES_MAX} bytes; a larger file is refused.",
    )
    api_url: str = _setting("https://api.stripe.com", kinds.ADDRESS, "Host that opens sessions.")
    events_url: str = _setting(
        "https://meter-events.stripe.com", kinds.ADDRESS, "Host that takes the events."
    )
    sandbox_url: str | None = _setting(
        None,
        kinds.or_unset(kinds.ADDRESS),
        "A sandbox in place of both hosts. Needs no key and is never sent one.",
    )
    stripe_version: str = _setting(
        "2026-10-28.endive", kinds.API_VERSION, "`Stripe-Version` header of every request."
    )
    stripe_account: str | None = _setting(
        None,
        kinds.or_unset(kinds.HEADER),
        "`Stripe-Account` header: bill on behalf of a connected account.",
    )
    stripe_context: str | None = _setting(
        None,
        kinds.or_unset(kinds.HEADER),
        "`Stripe-Context` header: the account within an organisation. Needed with `sk_org` keys.",
    )
    disabled: bool = _setting(
        False,
        kinds.BOOL,
        "Turns the agent off: no thread, no file, no request, no key needed;"
        " `record()` returns False and counts under `disabled`.",
    )
    strict: bool = _setting(
        False,
        kinds.BOOL,
        "`record()` checks the event at once and raises `InvalidEventError`, for tests and"
        " development. Otherwise an invalid event becomes a dead letter.",
    )
    buffer_events: int = _setting(
        100_000,
        kinds.whole_number(1, 10_000_000),
        "Events held in memory. When so many wait, `overflow` decides.",
    )
    overflow: Literal["drop_newest", "drop_oldest", "block"] = _setting(
        "drop_newest",
        kinds.one_of("drop_newest", "drop_oldest", "block"),
        "What a full buffer does. `drop_newest`: `record()` returns False. `drop_oldest`: the"
        " oldest unsent event makes room. `block`: `record()` waits at most"
        " `block_timeout_seconds`, then returns False. Each event lost is counted under"
        " `overflow`, logged, handed to `on_drop`, and written to `dead_letter_file`; of those that"
        " wait for that, at most 1 000.",
    )
    block_timeout_seconds: float = _setting(
        1.0,
        kinds.number(0, 3600),
        "Longest wait of `record()` with `overflow=block`. After it the event is dropped, counted"
        " under `overflow`, and `record()` returns False.",
    )
    batch_size: int = _setting(
        100,
        kinds.whole_number(1, 100),
        "Most events of one request; Stripe takes 100. When so many wait, a request leaves at"
        " once and the rest go into the next one.",
    )
    flush_interval_seconds: float = _setting(
        1.0,
        kinds.number(0.001, 3600),
        "Longest wait for a batch to fill. When its oldest event is that old, it leaves as it is.",
    )
    max_in_flight: int = _setting(
        8,
        kinds.whole_number(1, 256),
        "Most requests, and sender threads, at a time. Beyond it events wait in the buffer.",
    )
    max_events_per_second: float = _setting(
        10_000.0,
        kinds.number(0.001, 1_000_000),
        "Most events that an agent sends in a second; Stripe's limit holds for all processes"
        " of an account together. Beyond it events wait in the buffer.",
    )
    connect_timeout_seconds: float = _setting(
        5.0,
        kinds.number(0.001, 300),
        "Longest wait for a connection. After it the batch is sent again with the same bytes.",
    )
    read_timeout_seconds: float = _setting(
        30.0,
        kinds.number(0.001, 600),
        "Longest silence of an answer; the whole exchange takes at most four times as long. After "
        "it the batch is sent again with the same bytes.",
    )
    retry_base_seconds: float = _setting(
        0.5,
        kinds.number(0.001, 3600),
        "Upper bound of the first random wait before a retry; it doubles with each failure until"
        " it reaches `retry_max_seconds`.",
    )
    retry_max_seconds: float = _setting(
        30.0,
        kinds.number(0.001, 3600),
        "Upper bound of every random wait before a retry; when it is reached, waits no longer grow"
        " and retries go on.",
    )
    resend_window_seconds: float = _setting(
        82_800.0,
        kinds.number(1, 86_399),
        "How long after its first attempt an event that Stripe may have accepted is sent again."
        " Stripe deduplicates for 24 hours. After it the event becomes `uncertain` and is kept"
        " for a human.",
    )
    shutdown_timeout_seconds: float = _setting(
        5.0,
        kinds.number(0, 3600),
        "Time that all agents of a process share for delivery at exit. After it what is left stays"
        " in the spool; without one it is dropped, counted under `shutdown`, and logged.",
    )
    spool_dir: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        kinds.or_unset(kinds.FILE),
        "Directory of the crash-safe buffer; setting it turns the buffer on. It must not be"
        " writable by others.",
    )
    spool_bytes: int = _setting(
        256 * 1024 * 1024,
        kinds.whole_number(1024 * 1024, 1024**4),
        "Most bytes that the spool takes on disk. When they are used up, `overflow` decides.",
    )
    spool_sync_seconds: float = _setting(
        0.0,
        kinds.number(0, 3600),
        "Longest time between two syncs of the spool to the disk, which is what a power failure"
        " can cost. 0: never synced; a crash of the process loses nothing either way.",
    )
    dead_letter_file: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        kinds.or_unset(kinds.FILE),
        "JSON Lines file of what could not be billed, and why. Without it:"
        " `dead-letters.jsonl` in `spool_dir`, else none and dead letters are only counted,"
        " logged and given to `on_dead_letter`.",
    )
    customer_key: str = _setting(
        "stripe_customer_id",
        kinds.PAYLOAD_KEY,
        "Payload key under which the meters look for the customer.",
    )
    value_key: str = _setting(
        "value", kinds.PAYLOAD_KEY, "Payload key under which the meters look for the value."
    )
    payload_keys: Mapping[str, Mapping[str, str]] = _setting(
        FrozenDict(),
        kinds.PAYLOAD_KEYS,
        "Other keys for single event names; JSON in the environment.",
    )
    handle_sigterm: bool = _setting(
        False,
        kinds.BOOL,
        "Deliver on SIGTERM what is recorded until then and meanwhile, within"
        " `shutdown_timeout_seconds`, then end the process; or call the handler that was there"
        " before. Takes effect where the agent is built in the main thread.",
    )

    def __post_init__(self) -> None:
        values = {name: stored_form(name, value) for name, value in vars(self).items()}
        vars(self).update(values)
        _raise_if_any(_find_problems(values, {}))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Read the settings from the environment.

        An empty variable counts as not set, and blanks around a value are ignored.

        Args:
            environ:
                The variables; None for those of this process.

            **overrides:
                Settings that win over their variables. A key by keyword, in whichever of its two
                forms, leaves the variables of both unread.

        Raises:
            ConfigError: Lists every wrong setting, of the environment and of *overrides*.
        """
        overrides = {name: stored_form(name, value) for name, value in overrides.items()}
        values, wrong = read_environment(os.environ if environ is None else environ, overrides)
        _raise_if_any(_all_problems(values | overrides, wrong))
        return cls(**(values | overrides))

    def __repr__(self) -> str:
        """Show what differs from the defaults, with secrets masked."""
        changed = (
            f"{setting.name}={shown(getattr(self, setting.name))}"
            for setting in SETTINGS
            if getattr(self, setting.name) != setting.default
        )
        return f"Config({', '.join(changed)})"

    @property
    def session_url(self) -> str:
        """Where sessions are opened."""
        return (self.sandbox_url or self.api_url).rstrip("/") + _SESSION_PATH

    @property
    def stream_url(self) -> str:
        """Where events are sent."""
        return (self.sandbox_url or self.events_url).rstrip("/") + _STREAM_PATH

    @property
    def event_url(self) -> str:
        """Where a single event is sent to be checked at once."""
        return (self.sandbox_url or self.api_url).rstrip("/") + _EVENT_PATH

    @property
    def meters_url(self) -> str:
        """Where the meters are listed."""
        return (self.sandbox_url or self.api_url).rstrip("/") + _METERS_PATH

    @property
    def stream_host(self) -> str:
        """The host that takes the events, with its port if it has one; for logs."""
        return self.stream_url.split("/")[2]

    @property
    def is_local(self) -> bool:
        """Whether everything stays on this host: both addresses are loopback."""
        return kinds.is_loopback(self.session_url) and kinds.is_loopback(self.stream_url)

    @property
    def dead_letter_path(self) -> Path | None:
        """The file of dead letters, if there is one."""
        if self.dead_letter_file is None and self.spool_dir is None:
            return None
        from pathlib import Path  # noqa: PLC0415  4 ms to import, and most agents have no files

        if self.dead_letter_file is not None:
            return Path(self.dead_letter_file)
        return Path(str(self.spool_dir), "dead-letters.jsonl")

    @property
    def encoder_keys(self) -> tuple[PayloadKeys, dict[str, PayloadKeys]]:
        """The payload keys of every event, and those of single event names."""
        default = PayloadKeys(self.customer_key, self.value_key)
        return default, _resolve_keys(default, self.payload_keys)

    def read_api_key(self) -> str:
        """Return the key to open a session with; reads *api_key_file* anew.

        The result is a `Secret`: put it into a header, its repr is masked.

        Raises:
            ConfigError: The file has become unreadable, or there is no key at all.
        """
        if self.sandbox_url is not None:
            return Secret(SANDBOX_API_KEY)
        return _api_key.read_key(self.api_key, self.api_key_file, self.stripe_context)


_init = Config.__init__


@functools.wraps(_init)
def _init_known(self: Config, **settings: Any) -> None:
    # Before Python refuses a name that is no setting, by a TypeError that names no other.
    settings = {name: stored_form(name, value) for name, value in settings.items()}
    if unknown_names(settings, Config.__dataclass_fields__):
        _raise_if_any(_all_problems(settings, {}))
    _init(self, **settings)


Config.__init__ = _init_known  # type: ignore[method-assign]


SETTINGS: Final[tuple[Setting, ...]] = tuple(
    Setting(
        item.name,
        PREFIX + item.name.upper(),
        item.default,
        item.metadata["kind"],
        item.metadata["help"],
    )
    for item in fields(Config)
)
"""Every setting, in the order of the reference page."""


def read_environment(
    environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that could be read, and a problem for each that could not."""
    values: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    key_names = {"api_key", "api_key_file"}
    skipped = overrides.keys() | (key_names if overrides.keys() & key_names else set())
    for setting in SETTINGS:
        if setting.name not in skipped:
            _read_variable(environ, setting, values, wrong)
    if not skipped >= key_names and not values.keys() & key_names:
        shared_key = environ.get("STRIPE_API_KEY", "").strip()
        if shared_key:
            values["api_key"] = Secret(shared_key)
    return values, wrong


def _read_variable(
    environ: Mapping[str, str], setting: Setting, values: dict[str, Any], wrong: dict[str, str]
) -> None:
    text = environ.get(setting.variable, "").strip()
    if not text:
        return
    try:
        values[setting.name] = stored_form(setting.name, setting.kind.parse(text))
    except ValueError:
        wrong[setting.name] = setting.refusal(text)


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
    """Return the `METER_AGENT_*` variables that are no setting, each with the nearest real name."""
    known = {setting.variable.removeprefix(PREFIX): setting.variable for setting in SETTINGS}
    names = os.environ if environ is None else environ
    # Without the prefix, which would make every name look like every other.
    unknown = sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return [
        (PREFIX + name, known.get(nearest(name, known) or ""))
        for name in unknown
        if name not in known
    ]


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


def _all_problems(given: Mapping[str, Any], unread: Mapping[str, str]) -> list[str]:
    defaults = {setting.name: setting.default for setting in SETTINGS}
    return unknown_names(given, defaults) + _find_problems({**defaults, **given}, unread)


def _find_problems(values: Mapping[str, Any], unread: Mapping[str, str]) -> list[str]:
    wrong = dict(unread)
    for setting in SETTINGS:
        if setting.name not in wrong and not setting.kind.accepts(values[setting.name]):
            wrong[setting.name] = setting.refusal(values[setting.name])
    ordered = [wrong[setting.name] for setting in SETTINGS if setting.name in wrong]
    return ordered + list(_broken_relations(values, wrong.keys()))


def _broken_relations(values: Mapping[str, Any], wrong: Any) -> Iterator[str]:
    # A relation is only asked when the settings it compares are right by themselves.
    for names, relation in _RELATIONS:
        problem = None if wrong & set(names) else relation(*(values[name] for name in names))
        if problem is not None:
            yield problem


def _resolve_keys(
    default: PayloadKeys, overrides: Mapping[str, Mapping[str, str]]
) -> dict[str, PayloadKeys]:
    return {event_name: default._replace(**keys) for event_name, keys in overrides.items()}


def _check_retries(base: float, longest: float) -> str | None:
    if base <= longest:
        return None
    return (
        f"METER_AGENT_RETRY_BASE_SECONDS={shown(base)}:"
        f" must not be more than METER_AGENT_RETRY_MAX_SECONDS={shown(longest)}"
    )


def _check_keys_differ(
    customer_key: str, value_key: str, payload_keys: Mapping[str, Mapping[str, str]]
) -> str | None:
    default = PayloadKeys(customer_key, value_key)
    if customer_key == value_key:
        return (
            f"METER_AGENT_VALUE_KEY={shown(value_key)}: must differ from METER_AGENT_CUSTOMER_KEY"
        )
    for event_name, keys in _resolve_keys(default, payload_keys).items():
        if keys.customer_key == keys.value_key:
            same = shown(dict(payload_keys[event_name]))
            return (
                f"METER_AGENT_PAYLOAD_KEYS={shown(event_name)}: {same}:"
                " customer_key and value_key must differ"
            )
    return None


_RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("api_key", "api_key_file"), _api_key.problem_with_source),
    (
        ("api_key", "api_key_file", "stripe_context", "sandbox_url", "disabled"),
        _api_key.problem_with_key,
    ),
    (("retry_base_seconds", "retry_max_seconds"), _check_retries),
    (("customer_key", "value_key", "payload_keys"), _check_keys_differ),
)
