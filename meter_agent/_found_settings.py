"""The settings as an operator looks at them: each with its origin, also those that are wrong.

For the command line alone; an agent reads a `Config`, and this module is not imported with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from meter_agent._config import SETTINGS, read_environment
from meter_agent._secret import Secret, mask_address, mask_keys
from meter_agent._setting import Setting, stored_form

__all__ = ["FoundSetting", "find_settings"]


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
    overrides = {name: stored_form(name, value) for name, value in overrides.items()}
    read, wrong = read_environment(environ, overrides)
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
            problem = setting.refusal(value)
        found.append(FoundSetting(setting, _masked(setting, value), origin, problem))
    return found


def _masked(setting: Setting, value: Any) -> Any:
    if isinstance(value, Secret):
        return repr(value).strip("'")
    if not isinstance(value, str):
        return value
    text = mask_keys(value)
    return mask_address(f"'{text}'")[1:-1] if setting.is_address else text
