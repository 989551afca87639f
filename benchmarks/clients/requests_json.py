"""What a user writes with `requests`: a session, and `json=`."""

from __future__ import annotations

from typing import Any

import requests

from benchmarks.clients import Client
from benchmarks.clients.document import document
from benchmarks.clients.loop import Event, Loop, Post


def open_client(url: str, *, in_flight: int = 1, **_options: Any) -> Client:
    target = f"{url}/v2/billing/meter_event_stream"

    def open_post() -> Post:
        session = requests.Session()
        headers = {"Authorization": "Bearer token_1"}

        def post(batch: list[Event]) -> None:
            events = [document(event) for event in batch]
            session.post(target, json={"events": events}, headers=headers).raise_for_status()

        return post

    return Loop(open_post, in_flight)
