"""CPU seconds: of the programs that ran for us, and of whole servers."""

from __future__ import annotations

import resource

from cdc.demo.postgres import Cluster
from tests.bench.processes import cpu_seconds
from tests.bench.servers import Servers


def used(servers: Servers) -> dict[str, float]:
    """So far: by programs that we started and that have ended ("own"), and by all processes of either server."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "own": ours.ru_utime + ours.ru_stime,
        "source": _server(servers.source),
        "target": _server(servers.target),
    }


def _server(cluster: Cluster) -> float:
    return 0.0 if cluster.pid is None else cpu_seconds(cluster.pid)
