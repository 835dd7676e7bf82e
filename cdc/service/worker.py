"""The always-on process: one pipeline, its lanes, its HTTP door, and an orderly end.

`run` returns only after SIGTERM or SIGINT. Databases that are away, a slot that somebody else holds, a target that
needs a person: all of that is waited for and shown, never a reason to exit (Scalingo gives up after a dozen crashes,
and its deploys overlap: hazard 5). Only a configuration that cannot work ends it at once, with a sentence.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from cdc import __version__
from cdc.config import Config
from cdc.observe import logs
from cdc.observe.metrics import Metrics
from cdc.pgoutput import compiled
from cdc.service import http
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats
from cdc.service.lanes import Lanes
from cdc.service.notifications import notify
from cdc.service.refreshes import refresh_on_schedule
from cdc.service.sequences import follow_sequences

_log = structlog.get_logger(__name__)

GARBAGE_THRESHOLD = 200_000
"""After how many new containers the youngest generation is looked through for cycles. A batch makes tens of thousands
of lists that live until its commit and hold no cycle; looking through them each 700 costs a third of the worker's time
under a load of small transactions (2.7 s of CPU against 1.8 for 30,000 of pgbench's), and frees nothing."""


async def run(config: Config) -> None:
    """Replicate until told to stop.

    Then what was begun is finished or rolled back, what is durable is confirmed, and the slot is released, all within
    20 seconds. Raises `ConfigurationError` when the metrics address cannot be listened on.
    """
    gc.set_threshold(GARBAGE_THRESHOLD, 50, 100)
    gc.freeze()
    stop = asyncio.Event()
    logs.guard_process(asyncio.get_running_loop())
    _say_what_is_compiled()
    with _signals(stop.set), structlog.contextvars.bound_contextvars(pipeline=config.pipeline):
        metrics = Metrics(config.pipeline)
        metrics.worker(version=__version__)
        heartbeats = Heartbeats()
        deliveries = {
            name: Delivery(name, config, metrics=metrics.target(name), heartbeats=heartbeats) for name in config.targets
        }
        lanes = Lanes(config, deliveries, heartbeats=heartbeats, metrics=metrics, stop=stop)
        host, port = config.worker.metrics_host_and_port
        async with http.serve(
            host,
            port,
            metrics=metrics,
            readiness=lanes.missing,
            password=config.worker.metrics_password,
        ) as (address, bound_port):
            _log.info("worker started", targets=list(config.targets), metrics=f"{address}:{bound_port}")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(lanes.run())
                tasks.create_task(refresh_on_schedule(config, stop, notify, metrics=metrics))
                tasks.create_task(follow_sequences(config, deliveries, stop))
        _log.info("worker stopped")


def _say_what_is_compiled() -> None:
    if compiled.is_compiled():
        _log.info("the compiled core is used")
    elif compiled.IS_WANTED:
        _log.warning(
            "the compiled core is not built, or not whole: everything works, and takes several times as much CPU a row",
            why=compiled.why_not(),
        )
    else:
        _log.warning("the compiled core is not used, because CDC_UNCOMPILED is set")


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM (the platform) and SIGINT (a person) ask for an orderly end; a second SIGINT is the usual one."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _once, loop, number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _once(loop: asyncio.AbstractEventLoop, number: signal.Signals, stop: Callable[[], None]) -> None:
    _log.info("stopping", signal=number.name)
    loop.remove_signal_handler(number)
    stop()
