"""What the exit status of a command says; the reference page explains each."""

from __future__ import annotations

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """The exit status of every command."""

    OK = 0
    BAD = 1
    """The answer is bad: books that do not balance, damage."""

    USAGE = 2
    """Usage or configuration."""

    PARTLY = 3
    """Some of it could not be done."""

    AUTHENTICATION = 4
    """Stripe refused the key."""

    UNREACHABLE = 5
    """Nothing was delivered for a while."""

    OUTPUT = 6
    """What a command prints could not be written; only of commands that change nothing."""

    INTERRUPTED = 130
    """Ctrl-C; what shells report of such a command."""
