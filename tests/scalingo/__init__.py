"""A stand-in for Scalingo: its authentication, its API, both places of its database API, and its downloads.

An ASGI application on a real socket, served by uvicorn in a thread of its own, so that a test that blocks, one that
runs on an event loop and a `cdc` in another process can all talk to it. Its archives are made by a real ``pg_dump`` of
a database, when a backup is asked for. What it knows of Scalingo is in its documentation and its clients; the rest
(expired addresses, ranges, sizes) can be had in each way that is possible. The fixture is ``scalingo``::

    def test_…(scalingo: StandIn, source: Database) -> None:
        scalingo.add_database(source.dsn)
        async with open_backups(scalingo.bootstrap()) as backups: …

Faults are said before they happen: ``scalingo.faults.answer("POST", "/tokens/exchange", 503, times=2)``,
``scalingo.downloads.cut_after = [1000, 5000]``, ``scalingo.may_begin.clear()``.
"""

from tests.scalingo.dumps import Addon, StoredBackup
from tests.scalingo.faults import Downloads, Faults
from tests.scalingo.server import StandIn, serve

__all__ = ["Addon", "Downloads", "Faults", "StandIn", "StoredBackup", "serve"]
