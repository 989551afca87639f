"""Celery: deliver when a prefork worker's process ends.

Such a process leaves by `os._exit`, without `atexit`: when the worker shuts down, and each time it
is replaced (*worker_max_tasks_per_child*, *worker_max_memory_per_child*). It needs nothing when it
starts: a forked agent starts over by itself. With the pools *solo* and *threads* the tasks run in
the main process, which runs `atexit`.
"""

from __future__ import annotations

from typing import Any

from meter_agent._lifecycle import close_all

try:
    from celery.signals import worker_process_shutdown
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.celery needs the package 'celery': pip install celery"
    ) from error

__all__ = ["install"]


def install() -> None:
    """Close the agents of each worker process when it ends. May be called more than once.

    Call it where the Celery application is made, so that it runs in every worker.
    """
    worker_process_shutdown.connect(_deliver)


def _deliver(**_signal: Any) -> None:
    close_all()
