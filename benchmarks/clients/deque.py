"""The floor of `record()`: what any client does at the least, keep four things. Ships nothing."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from benchmarks.clients import CUSTOMER, EVENT, Client


class _Deque:
    call = f"append(({EVENT!r}, {CUSTOMER!r}, 1, now()))"

    def __init__(self) -> None:
        events: deque[tuple[str, str, int, float]] = deque()
        self.names: dict[str, Any] = {"append": events.append, "now": time.time}

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_client(_url: str, **_options: Any) -> Client:
    return _Deque()
