"""CPU seconds: of the programs that ran for us, and of whole servers."""

from __future__ import annotations

import resource

import psutil  # type: ignore[import-untyped]  # psutil brings no types

from cdc.demo.postgres import Cluster
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
    """Of all processes of a server so far, those included that have ended."""
    postmaster = psutil.Process(cluster.pid)
    own = postmaster.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)
