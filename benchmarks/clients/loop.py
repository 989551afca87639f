"""Clients that a user writes as a loop: a list of events, sent in batches by threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.clients import BATCH, CUSTOMER, EVENT

Event = tuple[str, str, int]
Post = Callable[[list[Event]], object]


class Loop:
    """Sends through *open_post()*, once for each thread."""

    call = f"append(({EVENT!r}, {CUSTOMER!r}, 1))"

    def __init__(self, open_post: Callable[[], Post], in_flight: int, batch: int = BATCH) -> None:
        self._posts = [open_post() for _ in range(in_flight)]
        self._batch = batch
        self._events: list[Event] = []
        self.names: dict[str, Any] = {"append": self._events.append}

    def finish(self) -> None:
        events = self._events
        batches = [events[at : at + self._batch] for at in range(0, len(events), self._batch)]
        events.clear()
        if len(self._posts) == 1:
            self._send(self._posts[0], batches)
            return
        batches.reverse()
        with ThreadPoolExecutor(len(self._posts)) as pool:
            for sent in [pool.submit(self._send, post, batches) for post in self._posts]:
                sent.result()

    @staticmethod
    def _send(post: Post, batches: list[list[Event]]) -> None:
        while batches:
            try:
                batch = batches.pop()
            except IndexError:
                return  # another thread took the last one
            post(batch)

    def close(self) -> None:
        pass
