"""Every setting once: its name, its variable, its default, its rule, and what it does.

Guarantees:

* This is the only module that reads the environment, and it does so only when asked.
* A `Config` that exists is valid. A wrong one raises a single `ConfigError` that lists every wrong
  setting with its variable, its value and its rule.
* The API key appears in no message, no repr, and not in the locals that a crash page prints:
  it is held as a `Secret`, a str whose repr is masked.

The reference page of the settings is generated from `SETTINGS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn

from meter_agent._event import NAME_CHARACTERS_MAX, PayloadKeys, is_name
from meter_agent._secret import Secret
from meter_agent.exceptions import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PREFIX",
    "SANDBOX_API_KEY",
    "SETTINGS",
    "Config",
    "FoundSetting",
    "Kind",
    "Setting",
    "find_settings",
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
_FIRST_V2_VERSION = "2024-09-30"
_KEY_FILE_BYTES_MAX = 4096
_SHOWN_CHARACTERS_MAX = 100

# A whitelist instead of `urlsplit`: nothing that two URL parsers could read differently gets
# through, and the import costs nothing.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~%/-]*)?"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\]")
_HEADER_TEXT = re.compile(r"[!-~]{1,1000}")
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.[a-z0-9_]+")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# People paste keys into the wrong variable.
_KEY_ANYWHERE = re.compile(r"([srp]k_(?:org_(?:(?:test|live)_)?|test_|live_))[\w-]+")
_SECRETS_IN_URL = re.compile(r"(?<=['\"]).*@|(?<=[?#])[^'\"]+")
_BOOLS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLS |= {"0": False, "false": False, "no": False, "off": False}


class Kind(NamedTuple):
    """What the values of a setting are like."""

    rule: str
    """Ends the sentence "this setting ..."; shown in errors and in the reference."""
    parse: Callable[[str], Any]
    """Reads an environment variable; raises ValueError."""
    accepts: Callable[[Any], bool]
    """Whether the value keeps the rule."""


class Setting(NamedTuple):
    """One setting; what the reference page is generated from."""

    name: str
    """The field of `Config`, and the keyword of `configure()`."""
    variable: str
    """The environment variable."""
    default: Any
    """The value without keyword and variable."""
    kind: Kind
    """Its rule, and how it is read and checked."""
    help: str
    """What it does, and what happens at the limit if it is one. Markdown."""


class _FrozenDict(dict[str, Any]):
    # Keeps a `Config` immutable and hashable, and still compares equal to what was passed in.
    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a Config is immutable: use dataclasses.replace() to change it")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def _parse_bool(text: str) -> bool:
    try:
        return _BOOLS[text.lower()]
    except KeyError:
        raise ValueError from None


def _parse_int(text: str) -> int:
    # Stricter than `int`, which takes "1_000" and digits of every script.
    if _WHOLE_NUMBER.fullmatch(text) is None:
        raise ValueError
    return int(text)


def _parse_float(text: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError
    return float(text)


def _parse_payload_keys(text: str) -> Any:
    import json  # noqa: PLC0415  one setting, rarely used

    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError from None


def _between(value: object, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low <= value <= high  # type: ignore[operator]  # false for NaN


def _int(low: int, high: int) -> Kind:
    return Kind(
        f"must be a whole number from {low} to {high}",
        _parse_int,
        lambda value: isinstance(value, int) and _between(value, low, high),
    )


def _float(low: float, high: float) -> Kind:
    return Kind(
        f"must be a number from {low:.10g} to {high:.10g}",
        _parse_float,
        lambda value: _between(value, low, high),
    )


def _one_of(*choices: str) -> Kind:
    return Kind(
        f"must be one of {', '.join(choices)}",
        str,
        lambda value: isinstance(value, str) and value in choices,
    )


def _is_header_text(value: object) -> bool:
    # Printable ASCII without blanks: no value can smuggle a second header into a request.
    return isinstance(value, str) and _HEADER_TEXT.fullmatch(value) is not None


def _is_url(value: object) -> bool:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match["port"] or 443) < 65_536:
        return False
    return match["scheme"] == "https" or _LOOPBACK.fullmatch(match["host"]) is not None


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_version(value: object) -> bool:
    return (
        isinstance(value, str)
        and _VERSION.fullmatch(value) is not None
        and value >= _FIRST_V2_VERSION
    )


def _is_payload_key(value: object) -> bool:
    return isinstance(value, str) and is_name(value)


def _is_payload_keys(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_payload_key(event_name)
        and isinstance(keys, dict)
        and keys.keys() <= set(PayloadKeys._fields)
        and all(map(_is_payload_key, keys.values()))
        for event_name, keys in value.items()
    )


def _or_unset(kind: Kind) -> Kind:
    return kind._replace(accepts=lambda value: value is None or kind.accepts(value))


_BOOL = Kind(
    "must be 1, true, yes, on, 0, false, no or off (in Python: a bool)",
    _parse_bool,
    lambda value: isinstance(value, bool),
)
_KEY = Kind(
    "must be printable ASCII without spaces, whether it comes from here or from STRIPE_API_KEY",
    Secret,
    _is_header_text,
)
_HEADER = Kind("must be printable ASCII without spaces", str, _is_header_text)
_ADDRESS = Kind(
    "must be an https:// address without user, query and fragment"
    " (http:// only to 127.0.0.1, [::1] or localhost)",
    str,
    _is_url,
)
_FILE = Kind("must be a path (str or PathLike of str)", str, _is_path)
_API_VERSION = Kind(
    f"must look like 2026-10-28.endive and be {_FIRST_V2_VERSION} or later", str, _is_version
)
_PAYLOAD_KEY = Kind(
    f"must be 1 to {NAME_CHARACTERS_MAX} characters without control characters",
    str,
    _is_payload_key,
)
_PAYLOAD_KEYS = Kind(
    "must map event names to an object with customer_key, value_key or both,"
    ' for example {"tokens": {"value_key": "count"}}',
    _parse_payload_keys,
    _is_payload_keys,
)


def _setting(default: Any, kind: Kind, meaning: str, **options: Any) -> Any:
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
        _or_unset(_KEY),
        "Stripe secret key (`sk_`) or restricted key (`rk_`). Without the variable,"
        " `STRIPE_API_KEY` is read. Sent only to the API host, to open sessions.",
    )
    api_key_file: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        _or_unset(_FILE),
        "File with the key in it, in place of `api_key`; wins over `STRIPE_API_KEY`. Read anew for"
        " each session, so that a replaced key takes effect without a restart."
        f" At most {_KEY_FILE_BYTES_MAX} bytes; a larger file is refused.",
    )
    api_url: str = _setting("https://api.stripe.com", _ADDRESS, "Host that opens sessions.")
    events_url: str = _setting(
        "https://meter-events.stripe.com", _ADDRESS, "Host that takes the events."
    )
    sandbox_url: str | None = _setting(
        None,
        _or_unset(_ADDRESS),
        "A sandbox in place of both hosts. Needs no key and is never sent one.",
    )
    stripe_version: str = _setting(
        "2026-10-28.endive", _API_VERSION, "`Stripe-Version` header of every request."
    )
    stripe_account: str | None = _setting(
        None, _or_unset(_HEADER), "`Stripe-Account` header: bill on behalf of a connected account."
    )
    stripe_context: str | None = _setting(
        None,
        _or_unset(_HEADER),
        "`Stripe-Context` header: the account within an organisation. Needed with `sk_org` keys.",
    )
    disabled: bool = _setting(
        False,
        _BOOL,
        "Turns the agent off: no thread, no file, no request, no key needed;"
        " `record()` returns False and counts under `disabled`.",
    )
    strict: bool = _setting(
        False,
        _BOOL,
        "`record()` checks the event at once and raises `InvalidEventError`, for tests and"
        " development. Otherwise an invalid event becomes a dead letter.",
    )
    buffer_events: int = _setting(
        100_000,
        _int(1, 10_000_000),
        "Events held in memory. When so many wait, `overflow` decides.",
    )
    overflow: Literal["drop_newest", "drop_oldest", "block"] = _setting(
        "drop_newest",
        _one_of("drop_newest", "drop_oldest", "block"),
        "What a full buffer does. `drop_newest`: `record()` returns False. `drop_oldest`: the"
        " oldest unsent event makes room. `block`: `record()` waits at most"
        " `block_timeout_seconds`, then returns False. Each event lost is counted under"
        " `overflow` and logged.",
    )
    block_timeout_seconds: float = _setting(
        1.0,
        _float(0, 3600),
        "Longest wait of `record()` with `overflow=block`. After it the event is dropped, counted"
        " under `overflow`, and `record()` returns False.",
    )
    batch_size: int = _setting(
        100,
        _int(1, 100),
        "Most events of one request; Stripe takes 100. When so many wait, a request leaves at"
        " once and the rest go into the next one.",
    )
    flush_interval_seconds: float = _setting(
        1.0,
        _float(0.001, 3600),
        "Longest wait for a batch to fill. When its oldest event is that old, it leaves as it is.",
    )
    max_in_flight: int = _setting(
        8,
        _int(1, 256),
        "Most requests, and sender threads, at a time. Beyond it events wait in the buffer.",
    )
    max_events_per_second: float = _setting(
        10_000.0,
        _float(0.001, 1_000_000),
        "Most events that an agent sends in a second; Stripe's limit holds for all processes"
        " of an account together. Beyond it events wait in the buffer.",
    )
    connect_timeout_seconds: float = _setting(
        5.0,
        _float(0.001, 300),
        "Longest wait for a connection. After it the batch is sent again with the same bytes.",
    )
    read_timeout_seconds: float = _setting(
        30.0,
        _float(0.001, 600),
        "Longest silence of an answer. After it the batch is sent again with the same bytes.",
    )
    retry_base_seconds: float = _setting(
        0.5,
        _float(0.001, 3600),
        "Upper bound of the first random wait before a retry; it doubles with each failure until"
        " it reaches `retry_max_seconds`.",
    )
    retry_max_seconds: float = _setting(
        30.0,
        _float(0.001, 3600),
        "Upper bound of every random wait before a retry; when it is reached, waits no longer grow"
        " and retries go on.",
    )
    resend_window_seconds: float = _setting(
        82_800.0,
        _float(1, 86_399),
        "How long after its first attempt an event that Stripe may have accepted is sent again."
        " Stripe deduplicates for 24 hours. After it the event becomes `uncertain` and is kept"
        " for a human.",
    )
    shutdown_timeout_seconds: float = _setting(
        5.0,
        _float(0, 3600),
        "Time that all agents of a process share for delivery at exit. After it what is left stays"
        " in the spool; without one it is dropped, counted under `shutdown`, and logged.",
    )
    spool_dir: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        _or_unset(_FILE),
        "Directory of the crash-safe buffer; setting it turns the buffer on. It must not be"
        " writable by others.",
    )
    spool_bytes: int = _setting(
        256 * 1024 * 1024,
        _int(1024 * 1024, 1024**4),
        "Most bytes that the spool takes on disk. When they are used up, `overflow` decides.",
    )
    spool_sync_seconds: float = _setting(
        0.0,
        _float(0, 3600),
        "Longest time between two syncs of the spool to the disk, which is what a power failure"
        " can cost. 0: never synced; a crash of the process loses nothing either way.",
    )
    dead_letter_file: str | os.PathLike[str] | None = _setting(  # noqa: RUF009  a field()
        None,
        _or_unset(_FILE),
        "JSON Lines file of what could not be billed, and why. Without it:"
        " `dead-letters.jsonl` in `spool_dir`, else none and dead letters are only counted,"
        " logged and given to `on_dead_letter`.",
    )
    customer_key: str = _setting(
        "stripe_customer_id",
        _PAYLOAD_KEY,
        "Payload key under which the meters look for the customer.",
    )
    value_key: str = _setting(
        "value", _PAYLOAD_KEY, "Payload key under which the meters look for the value."
    )
    payload_keys: Mapping[str, Mapping[str, str]] = _setting(
        _FrozenDict(),
        _PAYLOAD_KEYS,
        "Other keys for single event names; JSON in the environment.",
    )
    handle_sigterm: bool = _setting(
        False,
        _BOOL,
        "Deliver what is buffered on SIGTERM, within `shutdown_timeout_seconds`, then call the"
        " handler that was there before.",
    )

    def __post_init__(self) -> None:
        values = {name: _freeze(name, value) for name, value in vars(self).items()}
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
        overrides = {name: _freeze(name, value) for name, value in overrides.items()}
        values, wrong = _read_environment(os.environ if environ is None else environ, overrides)
        defaults = {setting.name: setting.default for setting in SETTINGS}
        _raise_if_any(_find_problems(defaults | values | overrides, wrong))
        return cls(**(values | overrides))

    def __repr__(self) -> str:
        """Show what differs from the defaults, with secrets masked."""
        shown = (
            f"{setting.name}={_show(getattr(self, setting.name))}"
            for setting in SETTINGS
            if getattr(self, setting.name) != setting.default
        )
        return f"Config({', '.join(shown)})"

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
        hosts = (_URL.match(url) for url in (self.session_url, self.stream_url))
        return all(host and _LOOPBACK.fullmatch(host["host"]) for host in hosts)

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
        key, problem = _load_key(self.api_key, self.api_key_file)
        problem = problem or _key_problem(key, self.stripe_context)
        if key is None or problem is not None:
            raise ConfigError([problem or _NO_KEY])
        return key


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


class FoundSetting(NamedTuple):
    """A setting as it stands in front of an agent, to be shown: secrets are masked."""

    setting: Setting
    value: Any
    """What is in force or, when it is wrong, what is written there."""
    origin: str
    """`keyword`, `default`, or the variable that it comes from."""
    problem: str | None
    """What is wrong with it by itself."""


def find_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> list[FoundSetting]:
    """Return every setting with its origin, also when some are wrong; `Config.from_env` for people.

    Args:
        environ: The variables; None for those of this process.
        **overrides: Settings by keyword, as `Config.from_env` takes them.
    """
    environ = os.environ if environ is None else environ
    overrides = {name: _freeze(name, value) for name, value in overrides.items()}
    read, wrong = _read_environment(environ, overrides)
    found = []
    for setting in SETTINGS:
        name, variable = setting.name, setting.variable
        text = environ.get(variable, "").strip()
        if name in overrides:
            value, origin = overrides[name], "keyword"
        elif name in wrong:
            value, origin = text, variable
        elif name in read:
            value, origin = read[name], variable if text else "STRIPE_API_KEY"
        else:
            value, origin = setting.default, "default"
        problem = wrong.get(name)
        if problem is None and not setting.kind.accepts(value):
            problem = _problem(setting, value)
        found.append(FoundSetting(setting, _masked(setting, value), origin, problem))
    return found


def _masked(setting: Setting, value: Any) -> Any:
    if isinstance(value, Secret):
        return repr(value).strip("'")
    if not isinstance(value, str):
        return value
    text = _KEY_ANYWHERE.sub(r"\1***", value)
    # In quotes, for that is how the pattern knows an address.
    return _SECRETS_IN_URL.sub("***", f"'{text}'")[1:-1] if setting.name.endswith("_url") else text


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[tuple[str, str | None]]:
    """Return the `METER_AGENT_*` variables that are no setting, each with the nearest real name."""
    known = [setting.variable for setting in SETTINGS]
    names = os.environ if environ is None else environ
    unknown = sorted(name for name in names if name.startswith(PREFIX) and name not in known)
    return [(name, _nearest(name, known)) for name in unknown]


def _nearest(name: str, known: list[str]) -> str | None:
    import difflib  # noqa: PLC0415  only for a mistyped name

    # Without the prefix, which would make every name look like every other.
    suffixes = [variable.removeprefix(PREFIX) for variable in known]
    matches = difflib.get_close_matches(name.removeprefix(PREFIX), suffixes, n=1)
    return PREFIX + matches[0] if matches else None


def _freeze(name: str, value: Any) -> Any:
    # The stored form of a value that may be right; a wrong one is left for its check.
    if name == "api_key" and isinstance(value, str):
        return Secret(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name == "payload_keys" and isinstance(value, Mapping):
        return _FrozenDict(
            (key, _FrozenDict(keys) if isinstance(keys, Mapping) else keys)
            for key, keys in value.items()
        )
    return value


def _read_environment(
    environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    # The values that could be read, and a problem for each that could not.
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
        values[setting.name] = _freeze(setting.name, setting.kind.parse(text))
    except ValueError:
        wrong[setting.name] = _problem(setting, text)


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


def _find_problems(values: Mapping[str, Any], unread: Mapping[str, str]) -> list[str]:
    wrong = dict(unread)
    for setting in SETTINGS:
        if setting.name not in wrong and not setting.kind.accepts(values[setting.name]):
            wrong[setting.name] = _problem(setting, values[setting.name])
    ordered = [wrong[setting.name] for setting in SETTINGS if setting.name in wrong]
    return ordered + list(_broken_relations(values, wrong.keys()))


def _broken_relations(values: Mapping[str, Any], wrong: Any) -> Iterator[str]:
    # A relation is only asked when the settings it compares are right by themselves.
    for names, relation in _RELATIONS:
        problem = None if wrong & set(names) else relation(*(values[name] for name in names))
        if problem is not None:
            yield problem


def _problem(setting: Setting, value: object) -> str:
    is_secret, is_url = setting.name == "api_key", setting.name.endswith("_url")
    shown = "'***'" if is_secret else _show(value, _SECRETS_IN_URL if is_url else None)
    return f"{setting.variable}={shown}: {setting.kind.rule}"


def _show(value: object, secrets: re.Pattern[str] | None = None) -> str:
    if isinstance(value, Secret):
        return repr(value)
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  code of the application, or an int too long to print
        text = object.__repr__(value)
    # Masked before it is cut, so that no cut leaves a part of a key that is no longer recognised.
    text = _KEY_ANYWHERE.sub(r"\1***", text)
    if secrets is not None:
        text = secrets.sub("***", text)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[: _SHOWN_CHARACTERS_MAX - 1] + "…"


def _resolve_keys(
    default: PayloadKeys, overrides: Mapping[str, Mapping[str, str]]
) -> dict[str, PayloadKeys]:
    return {event_name: default._replace(**keys) for event_name, keys in overrides.items()}


_NO_KEY = (
    "METER_AGENT_API_KEY is not set: set it, or STRIPE_API_KEY, or METER_AGENT_API_KEY_FILE;"
    " to run without a key set METER_AGENT_SANDBOX_URL or METER_AGENT_DISABLED=true"
)


def _load_key(
    api_key: str | None, api_key_file: str | os.PathLike[str] | None
) -> tuple[Secret | None, str | None]:
    # The key, or what is wrong with the file that should hold it.
    if api_key_file is None:
        return (None if api_key is None else Secret(api_key)), None
    try:
        content = _read_key_file(api_key_file)
    except OSError as error:
        reason = error.strerror or "it is not a regular file"
        return None, f"METER_AGENT_API_KEY_FILE={_show(api_key_file)}: cannot be read: {reason}"
    key = Secret(content.decode("ascii", "replace").strip())
    if len(content) > _KEY_FILE_BYTES_MAX or not _is_header_text(key):
        rule = "must hold one API key and nothing else: printable ASCII without spaces"
        return None, f"METER_AGENT_API_KEY_FILE={_show(api_key_file)}: {rule}"
    return key, None


def _read_key_file(path: str | os.PathLike[str]) -> bytes:
    # A regular file only: opening a pipe would wait for its writer, and it can be read only once.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError
    with open(path, "rb") as file:
        return file.read(_KEY_FILE_BYTES_MAX + 1)


def _key_problem(key: Secret | None, stripe_context: str | None) -> str | None:
    if key is None:
        return None
    if key.startswith("pk_"):
        return (
            f"METER_AGENT_API_KEY={key!r}: must be a secret key (sk_) or a restricted key (rk_);"
            " this is a publishable one, which cannot bill, wherever it comes from"
            " (METER_AGENT_API_KEY, STRIPE_API_KEY or METER_AGENT_API_KEY_FILE)"
        )
    if key.startswith("sk_org") and stripe_context is None:
        return (
            "METER_AGENT_STRIPE_CONTEXT is not set: it must name the account to bill,"
            f" because {key!r} is the key of an organisation"
        )
    return None


def _check_key_source(api_key: str | None, api_key_file: str | None) -> str | None:
    if api_key is None or api_key_file is None:
        return None
    shown = f"METER_AGENT_API_KEY={api_key!r} and METER_AGENT_API_KEY_FILE={_show(api_key_file)}"
    return f"{shown}: only one of the two may be set"


def _check_key(
    api_key: str | None,
    api_key_file: str | None,
    stripe_context: str | None,
    sandbox_url: str | None,
    disabled: bool,
) -> str | None:
    if disabled or sandbox_url is not None:
        return None
    if api_key is None and api_key_file is None:
        return _NO_KEY
    key, problem = _load_key(api_key, api_key_file)
    return problem or _key_problem(key, stripe_context)


def _check_retries(base: float, longest: float) -> str | None:
    if base <= longest:
        return None
    return (
        f"METER_AGENT_RETRY_BASE_SECONDS={_show(base)}:"
        f" must not be more than METER_AGENT_RETRY_MAX_SECONDS={_show(longest)}"
    )


def _check_keys_differ(
    customer_key: str, value_key: str, payload_keys: Mapping[str, Mapping[str, str]]
) -> str | None:
    default = PayloadKeys(customer_key, value_key)
    if customer_key == value_key:
        return (
            f"METER_AGENT_VALUE_KEY={_show(value_key)}: must differ from METER_AGENT_CUSTOMER_KEY"
        )
    for event_name, keys in _resolve_keys(default, payload_keys).items():
        if keys.customer_key == keys.value_key:
            shown = _show(dict(payload_keys[event_name]))
            return (
                f"METER_AGENT_PAYLOAD_KEYS={_show(event_name)}: {shown}:"
                " customer_key and value_key must differ"
            )
    return None


_RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("api_key", "api_key_file"), _check_key_source),
    (("api_key", "api_key_file", "stripe_context", "sandbox_url", "disabled"), _check_key),
    (("retry_base_seconds", "retry_max_seconds"), _check_retries),
    (("customer_key", "value_key", "payload_keys"), _check_keys_differ),
)
