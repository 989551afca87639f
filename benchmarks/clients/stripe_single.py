"""Stripe's own package, one v1 meter event per call, as most integrations begin."""

from __future__ import annotations

from typing import Any

import stripe

from benchmarks.clients import Client
from benchmarks.clients.document import document
from benchmarks.clients.loop import Event, Loop, Post


def open_client(url: str, *, in_flight: int = 1, **_options: Any) -> Client:
    hosts: Any = {"api": url, "meter_events": url}

    def open_post() -> Post:
        events = stripe.StripeClient("sk_test_1", base_addresses=hosts).v1.billing.meter_events

        def post(batch: list[Event]) -> None:
            for event in batch:
                params: Any = document(event)
                del params["timestamp"]  # v1 takes unix seconds, by default now
                events.create(params)

        return post

    return Loop(open_post, in_flight, batch=1)
