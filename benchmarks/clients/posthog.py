"""PostHog's package; a longer queue than its default, so that it drops nothing."""

from __future__ import annotations

from typing import Any

from posthog import Posthog

from benchmarks.clients import CUSTOMER, EVENT, Client


class _Posthog:
    call = f"capture({EVENT!r}, distinct_id={CUSTOMER!r}, properties={{'value': 1}})"

    def __init__(self, client: Posthog) -> None:
        self._client = client
        self.names: dict[str, Any] = {"capture": client.capture}

    def finish(self) -> None:
        self._client.flush(240)

    def close(self) -> None:
        pass


def open_client(url: str, *, capacity: int = 100_000, **_options: Any) -> Client:
    return _Posthog(Posthog("phc_1", host=url, max_queue_size=capacity))
