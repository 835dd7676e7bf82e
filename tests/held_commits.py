"""Commits that wait for a synchronous standby that is not there: written, and seen by nobody until a test lets go."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg

from cdc.demo.postgres import Cluster

HELD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

_ENOUGH_S = 30.0


def hold_commits(server: Cluster) -> None:
    """Let commits wait, of sessions with ``synchronous_commit = on``; they do when this returns.

    A reload is carried out later than it is asked for, and by the checkpointer, of which no view tells. So commits of
    no consequence are tried until one waits: they write WAL, or they would not wait, in a database that no test reads.
    """
    server.configure({"synchronous_standby_names": "nobody"})
    server.reload()
    deadline = time.monotonic() + _ENOUGH_S
    with (
        psycopg.connect(server.dsn(), autocommit=True, options="-c synchronous_commit=on") as probe,
        psycopg.connect(server.dsn(), autocommit=True) as watch,
        ThreadPoolExecutor(1) as pool,
    ):
        while True:
            commit = pool.submit(probe.execute, "SELECT pg_logical_emit_message(true, '', '')")
            if _was_held(commit, watch, probe.info.backend_pid):
                return
            assert time.monotonic() < deadline, "commits do not wait for the standby"


def release_commits(server: Cluster) -> None:
    """Let no commit wait any longer; those that do end soon."""
    server.configure({"synchronous_standby_names": ""})
    server.reload()


def _was_held(commit: Future[Any], watch: psycopg.Connection[Any], backend: int) -> bool:
    """Whether a commit had to be sent on its way."""
    held = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
    while not commit.done():
        if watch.execute(held, (backend,)).fetchone() is not None:
            commit.result()
            return True
        time.sleep(0.01)
    commit.result()
    return False
