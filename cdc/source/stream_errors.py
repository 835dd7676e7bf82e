"""What a walsender says when a stream ends, in errors of ours.

Two of them have a type of their own, because a caller can do something about them:

::

    TerminalError
     ├─ BinaryRefused         some value has no binary form: start again with ``binary=False`` (hazard 25)
     └─ ResyncNeeded
         └─ StreamPoisoned    the slot can never be decoded: only another slot helps (hazards 24 and 26)
"""

from __future__ import annotations

import re

from psycopg import pq

from cdc.errors import CdcError, ResyncNeeded, ServerError, TerminalError
from cdc.source.connection import explain

_UNMAPPED = re.compile(rb"could not map file(node|number)")
"""An internal error of the server (XX000), which is never translated to another language."""


class BinaryRefused(TerminalError):
    """A value in the stream has no binary form: start again with text values."""


class StreamPoisoned(ResyncNeeded):
    """The slot can never be decoded: only another slot helps."""


def error_of(result: pq.abc.PGresult | None) -> ServerError | None:
    """What a failed result may tell: its SQLSTATE and names. `None` when it is no error of a server."""
    if result is None:
        return None
    fields = pq.DiagnosticField

    def field(which: pq.DiagnosticField) -> str | None:
        value = result.error_field(which)
        return value.decode("utf-8", "replace") if value else None

    state = field(fields.SQLSTATE)
    if state is None:
        return None
    return ServerError(
        state,
        field(fields.SCHEMA_NAME),
        field(fields.TABLE_NAME),
        field(fields.COLUMN_NAME),
        field(fields.CONSTRAINT_NAME),
        field(fields.DATATYPE_NAME),
    )


def explain_end(results: list[pq.abc.PGresult], slot: str) -> CdcError:
    """The error for the results that ended the stream of ``slot``; none of them is an error after a clean shutdown."""
    server = None
    for result in results:
        server = error_of(result) or server
        if _UNMAPPED.search(result.error_message):
            return StreamPoisoned(
                f"the slot {slot} can never be decoded: a table got new storage while the slot was being created; "
                f"drop it and bootstrap again",
                sql=f"SELECT pg_drop_replication_slot('{slot}');",
                server=server,
            )
    state = server.sqlstate if server else None
    if state == "42704":
        return missing_publication(server, slot)
    if state == "42883":
        return BinaryRefused(
            f"a value in the stream of slot {slot} has no binary form (a type without a send function): stream with "
            f"text values",
            server=server,
        )
    if state == "0A000":
        return TerminalError(
            f"publications that the slot {slot} streams send different columns of one table, which PostgreSQL does not "
            f"stream: give it the same column list in each, and follow only one of them (source.publications) until "
            f"the stream is past the changes that were made meanwhile; `cdc check` names the table",
            server=server,
        )
    if state == "58P01":
        return ResyncNeeded(
            f"the source has no longer the WAL that the slot {slot} needs: bootstrap the targets again",
            server=server,
        )
    return explain(server, f"stream from the slot {slot}")


def missing_publication(server: ServerError | None, slot: str) -> StreamPoisoned:
    """The error for a publication that is not there, or was not where the WAL was written (hazard 24)."""
    return StreamPoisoned(
        f"a publication that the slot {slot} streams does not exist on the source, or did not when the WAL that it "
        f"reads now was written: run `cdc setup`; if that does not help, the publication was dropped and created "
        f"again, and the targets have to be bootstrapped again",
        server=server,
    )
