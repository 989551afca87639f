"""Imports in a sender thread: beside threads that compute, and under way when the process forks.

An agent that the first `record()` has built imports what sending needs in its first sender thread.

A process that forks meanwhile leaves its child with module locks whose owner does not exist there:
the child's own import of such a module would wait for ever. Python renews the global import lock
after a fork, but not the locks of single modules.
"""

from __future__ import annotations

import importlib
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = [
    "end_short_switch_interval",
    "forget",
    "forget_unfinished",
    "short_switch_interval",
]

_SHORT_SECONDS: Final = 0.0005
# The interval that the application has set, and who wants the short one. Dicts, because each of
# their operations used here is one step.
_before: dict[str, float] = {}
_users: dict[object, None] = {}


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Within the block, threads that compute hand the interpreter over after 0.5 ms instead of 5.

    For the two pieces of work that cannot wait: importing what sending needs, and closing. The
    import reads 150 files, and each read gives the interpreter lock away. To get it back takes up
    to one switch interval for each thread that computes: beside eight of them, 15 s with the
    default interval and 1 s with this one.

    The interval belongs to the whole process (`sys.setswitchinterval`). It is left alone where the
    application has set a shorter one, and what the application sets within the block stays.
    """
    me = object()
    try:
        _users[me] = None
        interval = sys.getswitchinterval()
        if interval > _SHORT_SECONDS * 1.01:
            _before["interval"] = interval
            sys.setswitchinterval(_SHORT_SECONDS)
        yield
    finally:
        _users.pop(me, None)
        if not _users:
            _restore()


def end_short_switch_interval() -> None:
    """End all blocks: in a child of `fork`, where the threads that are in them do not exist."""
    _users.clear()
    _restore()


def _restore() -> None:
    interval = _before.pop("interval", None)
    if interval is not None and math.isclose(sys.getswitchinterval(), _SHORT_SECONDS, rel_tol=0.01):
        sys.setswitchinterval(interval)


def forget_unfinished() -> None:
    """In a forked child: forget modules that a thread of the parent was in the middle of importing.

    They are imported anew when they are next needed, and a package with all of its submodules:
    those that were complete are attributes of the package that is forgotten, and would be missing
    in the new one. Modules that the forking thread itself is importing are left alone: it goes on
    with them.
    """
    # Private to CPython, the same from 3.11 to 3.13; a test forks in the middle of an import on
    # each version. Where it is missing, the child is no worse off than without this function.
    locks: dict[str, Any] = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
    me = threading.get_ident()
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None)
        if owner is None or owner == me:
            continue
        locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            forget(name)


def forget(name: str) -> None:
    """Forget a module whose import has failed, so that it can be imported anew."""
    # A package goes with its submodules: one that stays in `sys.modules` would not be imported
    # again, and never become an attribute of the new package (tenacity relies on that).
    for other in list(sys.modules):
        if other == name or other.startswith(f"{name}."):
            sys.modules.pop(other, None)
