"""One setting: its name, its variable, its rule, and the form in which its value is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from meter_agent._frozen import FrozenDict
from meter_agent._secret import Secret, shown
from meter_agent._setting_kinds import Kind

__all__ = ["Setting", "stored_form"]


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

    @property
    def is_address(self) -> bool:
        """Whether its value may carry a secret where addresses do, before `@` or behind `?`."""
        return self.name.endswith("_url")

    def refusal(self, value: object) -> str:
        """Return what is wrong with a value that breaks the rule."""
        text = "'***'" if self.name == "api_key" else shown(value, is_address=self.is_address)
        return f"{self.variable}={text}: {self.kind.rule}"


def stored_form(name: str, value: Any) -> Any:
    """Return how a value that may be right is kept; a wrong one is left for its check."""
    if name == "api_key" and isinstance(value, str):
        return Secret(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if name.endswith(("_dir", "_file")) and isinstance(value, str):
        return _absolute(value)
    if name == "payload_keys" and isinstance(value, Mapping):
        return FrozenDict(
            (key, FrozenDict(keys) if isinstance(keys, Mapping) else keys)
            for key, keys in value.items()
        )
    return value


def _absolute(path: str) -> str:
    # Once, where the settings are made: the application may change its working directory later.
    # What cannot be made absolute is left for its check.
    if not path or "\0" in path:
        return path
    path = os.path.expanduser(path)
    try:
        absolute = path if path[0] == "~" else os.path.join(os.getcwd(), path)
    except OSError:  # the working directory has been removed
        return path
    # "link/.." is the directory above the target of the link; `normpath` makes it that of the link.
    return absolute if ".." in absolute.split(os.sep) else os.path.normpath(absolute)
