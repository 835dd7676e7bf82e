"""A worker with nothing behind it: ``python -m tests.bench.null_target DSN NAME LSN``.

Reads slot NAME with publication NAME as the worker of `cdc` does (`cdc.service.receiving`: the same connection, the
same options, whole transactions out of packed rows), and throws them away. Past LSN it prints how many messages it has
taken in, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from contextlib import suppress

from cdc.changes.spool import SpoolSpace
from cdc.config import WorkerConfig
from cdc.lsn import Lsn
from cdc.observe import names
from cdc.observe.metrics import Metrics
from cdc.service.acknowledgement import Acknowledgement
from cdc.service.partition_watch import PartitionWatch
from cdc.service.receiving import receive
from cdc.service.worker import GARBAGE_THRESHOLD
from cdc.source.connection import connect
from cdc.source.replication import ReplicationConnection

_LOOK_EVERY_S = 0.002

_LOOKS_PER_STATUS = 500
"""A status a second, as the worker's."""


async def read(dsn: str, name: str, until: Lsn) -> None:
    """Read up to ``until``, and wait for the end of standard input."""
    settings = WorkerConfig()
    metrics = Metrics(name)
    acknowledgement = Acknowledgement()
    async with (
        await ReplicationConnection.open(dsn, "bench null target") as stream,
        await connect(dsn, application_name="bench null target catalog") as catalog,
        asyncio.TaskGroup() as tasks,
    ):
        await stream.start(name, [name], streaming=True)
        receiving = tasks.create_task(
            receive(
                stream,
                catalog,
                (),
                acknowledgement=acknowledgement,
                answer=lambda: None,
                partitions=PartitionWatch(settings.partition_interval_s),
                spool=SpoolSpace(settings.max_spool_bytes),
                metrics=metrics.lane(),
                settings=settings,
            )
        )
        looks = 0
        while acknowledgement.received <= until:
            await asyncio.sleep(_LOOK_EVERY_S)
            looks += 1
            if looks % _LOOKS_PER_STATUS == 0:
                durable = acknowledgement.received
                await stream.send_status(durable, durable, durable)
        print(int(metrics.registry.get_sample_value(names.RECEIVED_MESSAGES.name, _only(metrics)) or 0), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        receiving.cancel()


def _only(metrics: Metrics) -> dict[str, str]:
    """The labels of the one series that counts messages."""
    return next(
        sample.labels
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == names.RECEIVED_MESSAGES.name
    )


def main(dsn: str, name: str, until: str) -> None:
    """Run as the worker does: on uvloop where it exists, and without looking for cycles all the time."""
    gc.set_threshold(GARBAGE_THRESHOLD, 50, 100)
    gc.freeze()
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        from uvloop import new_event_loop as loop_factory
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(read(dsn, name, Lsn.parse(until)))


if __name__ == "__main__":
    main(*sys.argv[1:])
