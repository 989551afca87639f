"""All checks in their order: a check that rests on a failed one is not made."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from meter_agent import Config, ConfigError
from meter_agent._found_settings import find_settings
from meter_agent.cli.doctor.account import Account
from meter_agent.cli.doctor.files import check_dead_letter_file, check_spool
from meter_agent.cli.doctor.finding import Finding, State, not_checked, ok
from meter_agent.cli.doctor.hosts import Hosts
from meter_agent.cli.doctor.process import check_process, check_resend_window
from meter_agent.cli.doctor.settings import check_key, check_key_file, check_settings

__all__ = ["examine"]


def examine(
    overrides: Mapping[str, Any], events: Collection[str], *, offline: bool
) -> Iterator[Finding]:
    """Yield the findings as they come. No check sends a meter event.

    Args:
        overrides: Settings that win over the environment.
        events: Event names that must have a meter.
        offline: Ask nobody.
    """
    yield from check_settings(overrides)
    try:
        config = Config.from_env(**overrides)
    except ConfigError:
        yield not_checked("everything else", "the settings are wrong")
        return
    origins = {each.setting.name: each.origin for each in find_settings(**overrides)}
    key_origin = origins["api_key_file" if config.api_key_file is not None else "api_key"]
    if config.sandbox_url is not None:
        yield ok("key", "none is needed, and none is sent to a sandbox")
    elif not config.disabled:
        yield from check_key(config, key_origin)
        if config.api_key_file is not None:
            yield from check_key_file(config.api_key_file)
    yield from _check_stripe(config, key_origin, events, offline=offline)
    yield from check_spool(config)
    yield check_dead_letter_file(config)
    yield check_resend_window(config)
    yield check_process(config)


def _check_stripe(
    config: Config, key_origin: str, events: Collection[str], *, offline: bool
) -> Iterator[Finding]:
    if config.disabled:
        yield not_checked("stripe", "the agent is disabled")
        return
    with contextlib.closing(Hosts(config)) as hosts:
        way = list(hosts.check_ways())
        yield from way
        if offline:
            yield not_checked("stripe", "--offline: nobody was asked")
            return
        if any(finding.state is State.FAILED for finding in way):
            yield not_checked("stripe", "the way there is not right")
            return
        yield from hosts.check_hosts()
        yield hosts.check_clock()
        if config.session_url in hosts.unreachable:
            yield not_checked("session", "the host does not answer")
            return
    with contextlib.closing(Account(config, key_origin)) as account:
        session = account.check_session()
        yield session
        if session.state is State.FAILED:
            yield not_checked("meters", "no session could be opened")
        else:
            yield from account.check_meters(events)
