"""Imports that were under way in another thread when the process forked.

The sender threads import requests, tenacity and structlog when they first need them. A process that
forks in those 200 ms leaves its child with module locks whose owner does not exist there: the
child's own import of such a module would wait for ever. Python renews the global import lock after
a fork, but not the locks of single modules.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

__all__ = ["forget", "forget_unfinished"]


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
