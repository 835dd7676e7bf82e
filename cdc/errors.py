"""One tree of exceptions; the type says whether trying again can help.

::

    CdcError                        what went wrong, where, and what to do
     ├─ TerminalError               trying again cannot help: somebody has to act
     │   ├─ ConfigurationError      the configuration names something that does not exist, or contradicts itself
     │   ├─ ProtocolError           bytes of the stream that are not what PostgreSQL's manual says
     │   ├─ SetupError              something that `cdc setup` or an administrator provides is missing
     │   ├─ ResyncNeeded            slot and position do not meet: a target can only be loaded again
     │   ├─ TableStopped            one table of one target cannot go on; the others can
     │   │   └─ ReadAgain           it can when its rows have been read again, which the worker does by itself
     │   └─ BatchRejected           a target's constraint refuses a transaction that the source committed
     └─ TransientError              the same again, later, can succeed
         ├─ SourceUnavailable       no connection to the source, or it was lost
         ├─ SlotInUse               another worker holds the slot (SQLSTATE 55006)
         ├─ TargetUnavailable       no connection to the target, or it was lost, is full, or is busy
         ├─ TargetLoading           a bootstrap is loading the target: nobody else may take it until that is done
         ├─ FenceLost               another worker has taken the target
         └─ BackupUnavailable       the provider of the backups does not answer, or an archive broke off

Every message is one sentence or two that a person can act on: what, where, what to do. None holds a row value or a
secret: of an error of PostgreSQL only the SQLSTATE and the name fields (schema, table, column, constraint, type) are
kept, because both its message and its DETAIL can quote values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerError:
    """What may be repeated of an error that a PostgreSQL server sent: its code and its names, never its text.

    The fields are those of the ErrorResponse message (PostgreSQL's manual, "Error and Notice Message Fields").
    """

    sqlstate: str
    schema: str | None = None
    table: str | None = None
    column: str | None = None
    constraint: str | None = None
    type: str | None = None

    def __str__(self) -> str:
        names = [
            f"{field} {value}"
            for field, value in (
                ("table", f"{self.schema}.{self.table}" if self.schema and self.table else self.table),
                ("column", self.column),
                ("constraint", self.constraint),
                ("type", self.type),
            )
            if value
        ]
        return f"SQLSTATE {self.sqlstate}" + (f" ({', '.join(names)})" if names else "")


class CdcError(Exception):
    """Root of everything that `cdc` raises on purpose.

    ``sql`` is what an operator could run to mend it, where there is such a statement; ``server`` what the server said.
    """

    def __init__(self, message: str, *, sql: str | None = None, server: ServerError | None = None) -> None:
        super().__init__(message)
        self.sql = sql
        self.server = server


class TerminalError(CdcError):
    """Trying again cannot help: somebody has to act."""


class TransientError(CdcError):
    """The same again, later, can succeed."""


class ConfigurationError(TerminalError):
    """The configuration names something that does not exist, or contradicts itself."""


class ProtocolError(TerminalError):
    """Bytes of the stream that are not what PostgreSQL's manual says."""


class SetupError(TerminalError):
    """Something that `cdc setup` or an administrator provides is missing."""


class ResyncNeeded(TerminalError):
    """Slot and position do not meet: the target can only be loaded again."""


class TableStopped(TerminalError):
    """One table of one target cannot go on; the others can.

    ``source_table`` (``schema.table``) is the table at the source, ``commit_lsn`` (an `cdc.lsn.Lsn`) and ``xid`` the
    transaction that it cannot take. They are `None` where it is the table's shape that does not fit, whatever comes.
    ``relation`` (a `cdc.changes.relation.Relation`) are the rows that the target's catalog has no place for: asking it
    again tells when that has been mended. `None` where only trying the transaction again can tell.
    """

    def __init__(
        self,
        message: str,
        *,
        sql: str | None = None,
        server: ServerError | None = None,
        source_table: str | None = None,
        commit_lsn: int | None = None,
        xid: int | None = None,
        relation: object | None = None,
    ) -> None:
        super().__init__(message, sql=sql, server=server)
        self.source_table = source_table
        self.commit_lsn = commit_lsn
        self.xid = xid
        self.relation = relation


class ReadAgain(TableStopped):
    """One table of one target cannot go on before its rows have been read again: the worker asks for that itself."""


class BatchRejected(TerminalError):
    """A target's constraint refuses a transaction that the source committed.

    ``source_table`` (``schema.table``) is where at the source the refused rows come from, ``commit_lsn`` (an
    `cdc.lsn.Lsn`) and ``xid`` name the transaction.
    """

    def __init__(
        self,
        message: str,
        *,
        source_table: str,
        commit_lsn: int,
        xid: int,
        sql: str | None = None,
        server: ServerError | None = None,
    ) -> None:
        super().__init__(message, sql=sql, server=server)
        self.source_table = source_table
        self.commit_lsn = commit_lsn
        self.xid = xid


class SourceUnavailable(TransientError):
    """No connection to the source, or it was lost."""


class SlotInUse(TransientError):
    """Another worker holds the slot (SQLSTATE 55006)."""


class TargetUnavailable(TransientError):
    """No connection to the target, or it was lost, is full, or is busy."""


class TargetLoading(TransientError):
    """A bootstrap is loading the target: nobody else may take it until that is done.

    ``needs_nothing`` says that it has no position yet, so that it needs nothing of any slot.
    """

    def __init__(
        self,
        message: str,
        *,
        sql: str | None = None,
        server: ServerError | None = None,
        needs_nothing: bool = False,
    ) -> None:
        super().__init__(message, sql=sql, server=server)
        self.needs_nothing = needs_nothing


class FenceLost(TransientError):
    """Another worker has taken the target."""


class BackupUnavailable(TransientError):
    """The provider of the backups does not answer, or an archive broke off."""
