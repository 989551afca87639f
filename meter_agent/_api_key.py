"""The API key: where it comes from, and what is wrong with it.

What is returned in place of a key is held as a `Secret`, and no problem shows a part of one.
"""

from __future__ import annotations

import errno
import os

from meter_agent._secret import Secret, shown
from meter_agent._setting_kinds import is_header_text
from meter_agent.exceptions import ConfigError

__all__ = ["FILE_BYTES_MAX", "problem_with_key", "problem_with_source", "read_key"]

FILE_BYTES_MAX = 4096
"""A file that is larger holds no key."""

_NO_KEY = (
    "METER_AGENT_API_KEY is not set: set it, or STRIPE_API_KEY, or METER_AGENT_API_KEY_FILE;"
    " to run without a key set METER_AGENT_SANDBOX_URL or METER_AGENT_DISABLED=true"
)


def read_key(
    api_key: str | None, api_key_file: str | os.PathLike[str] | None, stripe_context: str | None
) -> Secret:
    """Return the key, of *api_key_file* as it is now.

    Raises:
        ConfigError: The file cannot be used, or there is no key, or not the right one.
        OSError: The process has no descriptor left to open the file with, or no memory.
    """
    key, problem = _load(api_key, api_key_file)
    problem = problem or _problem(key, stripe_context)
    if key is None or problem is not None:
        raise ConfigError([problem or _NO_KEY])
    return key


def problem_with_source(api_key: str | None, api_key_file: str | None) -> str | None:
    """Return what is wrong with where the key is said to be."""
    if api_key is None or api_key_file is None:
        return None
    both = f"METER_AGENT_API_KEY={api_key!r} and METER_AGENT_API_KEY_FILE={shown(api_key_file)}"
    return f"{both}: only one of the two may be set"


def problem_with_key(
    api_key: str | None,
    api_key_file: str | None,
    stripe_context: str | None,
    sandbox_url: str | None,
    disabled: bool,
) -> str | None:
    """Return what is wrong with the key, or that it is missing, if one is needed."""
    if disabled or sandbox_url is not None:
        return None
    if api_key is None and api_key_file is None:
        return _NO_KEY
    key, problem = _load(api_key, api_key_file)
    return problem or _problem(key, stripe_context)


_PASSES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Says nothing about the file: the process has too many open, or no memory."""


def _load(
    api_key: str | None, api_key_file: str | os.PathLike[str] | None
) -> tuple[Secret | None, str | None]:
    # The key, or what is wrong with the file that should hold it.
    if api_key_file is None:
        return (None if api_key is None else Secret(api_key)), None
    try:
        content = _read_file(api_key_file)
    except OSError as error:
        if error.errno in _PASSES:
            raise
        reason = error.strerror or "it is not a regular file"
        return None, f"METER_AGENT_API_KEY_FILE={shown(api_key_file)}: cannot be read: {reason}"
    key = Secret(content.decode("ascii", "replace").strip())
    if len(content) > FILE_BYTES_MAX or not is_header_text(key):
        rule = "must hold one API key and nothing else: printable ASCII without spaces"
        return None, f"METER_AGENT_API_KEY_FILE={shown(api_key_file)}: {rule}"
    return key, None


def _read_file(path: str | os.PathLike[str]) -> bytes:
    # A regular file only: opening a pipe would wait for its writer, and it can be read only once.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError
    with open(path, "rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def _problem(key: Secret | None, stripe_context: str | None) -> str | None:
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
