"""Segment's package; a longer queue than its default, so that it drops nothing."""

from __future__ import annotations

from typing import Any

from segment.analytics.client import Client as SegmentClient

from benchmarks.clients import CUSTOMER, EVENT, Client


class _Segment:
    call = f"track({CUSTOMER!r}, {EVENT!r}, {{'value': 1}})"

    def __init__(self, client: SegmentClient) -> None:
        self._client = client
        self.names: dict[str, Any] = {"track": client.track}

    def finish(self) -> None:
        self._client.flush()

    def close(self) -> None:
        pass


def open_client(url: str, *, capacity: int = 100_000, **_options: Any) -> Client:
    return _Segment(SegmentClient("key_1", host=url, max_queue_size=capacity))
