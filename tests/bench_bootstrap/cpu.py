"""CPU seconds: of the programs that ran for us, and of whole servers."""

from __future__ import annotations

import resource

from tests.bench.processes import cpu_seconds
from tests.bench.servers import Servers


def used(servers: Servers) -> dict[str, float]:
    """So far: by programs that we started and that have ended ("own"), and by all processes of either server."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "own": ours.ru_utime + ours.ru_stime,
        "source": cpu_seconds(servers.source.pid),
        "target": cpu_seconds(servers.target.pid),
    }
