"""Stripe's own package, given batches of 100, as its examples do it."""

from __future__ import annotations

from typing import Any

import stripe

from benchmarks.clients import Client
from benchmarks.clients.document import document
from benchmarks.clients.loop import Event, Loop, Post


def open_client(url: str, *, in_flight: int = 1, **_options: Any) -> Client:
    hosts: Any = {"api": url, "meter_events": url}
    owner = stripe.StripeClient("sk_test_1", base_addresses=hosts)
    token = owner.v2.billing.meter_event_session.create().authentication_token

    def open_post() -> Post:
        stream = stripe.StripeClient(token, base_addresses=hosts).v2.billing.meter_event_stream

        def post(batch: list[Event]) -> None:
            events: list[Any] = [document(event) for event in batch]
            stream.create({"events": events})

        return post

    return Loop(open_post, in_flight)
