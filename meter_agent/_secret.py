"""Text that nobody should read by accident."""

from __future__ import annotations

import re

__all__ = ["Secret"]

_KIND = re.compile(r"(?:Bearer )?[srp]k_(?:org_)?(?:(?:test|live)_)?")


class Secret(str):
    """A str that tells its kind but not its content when it is printed as a part of something.

    Keys, tokens and the headers that carry them are held as this, so that a crash page or an error
    tracker that prints local variables, ours or those of the HTTP library, shows none of them.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        kind = _KIND.match(self)
        return f"'{kind.group() if kind else ''}***'"
