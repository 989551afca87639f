"""The settings and the key: where they come from, and what is wrong with them."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from meter_agent import Config, ConfigError
from meter_agent._config import PREFIX, SETTINGS, unknown_variables
from meter_agent._found_settings import find_settings
from meter_agent.cli.doctor.finding import Finding, failed, ok, warning
from meter_agent.cli.shell_words import shell_words

__all__ = ["check_key", "check_settings"]

_SETTINGS, _KEY = "settings", "key"
_VARIABLE = re.compile(PREFIX + r"[A-Z_]+")
_KIND = re.compile(r"(?P<kind>sk_org|sk|rk)_(?:(?P<mode>test|live)_)?")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

RESTRICTED_KEY = (
    "create a restricted key (Dashboard: Developers, API keys) that may write billing meter event"
    " sessions and read billing meters"
)


def check_settings(overrides: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the settings, or where they come from."""
    unknown = [_unknown(name, nearest) for name, nearest in unknown_variables()]
    try:
        config = Config.from_env(**overrides)
    except ConfigError as error:
        for problem in error.problems:
            yield failed(_SETTINGS, shell_words(problem), _advice(problem))
        yield from unknown
        return
    if config.disabled:
        yield warning(
            _SETTINGS,
            "METER_AGENT_DISABLED is on: nothing is recorded",
            "`unset METER_AGENT_DISABLED`",
        )
    elif not unknown:
        yield ok(_SETTINGS, _origins(overrides))
    yield from unknown


def _origins(overrides: Mapping[str, Any]) -> str:
    found = find_settings(**overrides)
    given = [f"{each.setting.name} by {each.origin}" for each in found if each.origin != "default"]
    rest = f"{len(found) - len(given)} by default"
    return ", ".join([*given, rest]) + "; all in `meter-agent config show`"


def _unknown(name: str, nearest: str | None) -> Finding:
    detail = f"{name} is no setting, and has no effect"
    if nearest is None:
        return warning(_SETTINGS, detail, f"`unset {name}`")
    advice = f"is {nearest} meant? Set that one instead, and `unset {name}`"
    return warning(_SETTINGS, detail, advice)


def _advice(problem: str) -> str:
    # A problem begins with its variable and says what is wrong; this says what to do.
    match = _VARIABLE.match(problem)
    name = match[0] if match else ""
    if name in _ADVICE:
        return _ADVICE[name]
    default = next((each.default for each in SETTINGS if each.variable == name), None)
    without = "to go without" if default is None else f"for its default ({default})"
    return f"correct {name}, or `unset {name}` {without}"


_ADVICE = {
    "METER_AGENT_API_KEY": (
        "have one key, a secret or restricted one, in one place: `export STRIPE_API_KEY=rk_...`, or"
        " METER_AGENT_API_KEY, or METER_AGENT_API_KEY_FILE; or work against a sandbox, without a"
        " key: `export METER_AGENT_SANDBOX_URL=http://127.0.0.1:12111`"
    ),
    "METER_AGENT_API_KEY_FILE": (
        "write the key, and nothing else, into a file that the user of the service may read"
        " (chmod 600), and name that file"
    ),
    "METER_AGENT_SANDBOX_URL": (
        "name the address that the sandbox printed when it was started:"
        " `export METER_AGENT_SANDBOX_URL=http://127.0.0.1:12111`"
    ),
    "METER_AGENT_STRIPE_CONTEXT": "name that account: `export METER_AGENT_STRIPE_CONTEXT=acct_...`",
}


def check_key(config: Config, origin: str) -> Iterator[Finding]:
    """Yield what kind of key it is, and what is wrong with the file it is in.

    Args:
        config: The settings, which hold a key.
        origin: The variable that the key comes from.
    """
    key = config.read_api_key()
    match = _KIND.match(key)
    where = f"{key!r} from {origin}"
    if match is None:
        advice = f"copy the key again: it begins with rk_ or sk_, and has no quotes in {origin}"
        yield warning(_KEY, f"{where} does not look like a key of Stripe's", advice)
        return
    mode = {"test": "test mode: nothing is billed", "live": "live mode"}.get(match["mode"] or "")
    told = f"{where}: {_KINDS[match['kind']]}{', ' + mode if mode else ''}"
    if match["kind"] == "sk":
        yield warning(_KEY, f"{told}; whoever has it can do everything", RESTRICTED_KEY)
        return
    yield ok(_KEY, told)


_KINDS = {
    "rk": "a restricted key",
    "sk": "a secret key",
    "sk_org": "the key of an organisation",
}


def check_key_file(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """Yield whether others may read the file of the key."""
    mode = os.stat(path).st_mode
    if mode & _OTHERS:
        yield warning(
            "key file",
            f"others may use {path} (mode {stat.S_IMODE(mode):04o})",
            f"`chmod 600 {shlex.quote(os.fspath(path))}`",
        )
    else:
        yield ok("key file", f"{path} is for its owner alone")
