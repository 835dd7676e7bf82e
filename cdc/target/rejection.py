"""What it means when a target refuses a statement of the applier, in three classes.

- It passes: no connection, a full disk, a lock, a deadlock. `TargetUnavailable`, the same is tried again later.
- The rows are refused: a constraint, a value that does not fit, a row that should be there and is not. `Refused`,
  inside the applier only: the next slower path looks closer, and the slowest says which transaction of which table it
  is.
- The statement cannot run, whatever the rows: the table has changed since it was planned, a right is missing. `Unfit`,
  inside the applier only: the table is planned again, once, or stops.

Every error loses its text here (invariant 8): what remains is the SQLSTATE and the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum

import asyncpg

from cdc.changes.row_reader import ValueRefused
from cdc.changes.transaction import Kind, Part
from cdc.errors import BatchRejected, ReadAgain, ServerError, TableStopped, TransientError
from cdc.routing.route import Route
from cdc.target.catalog import TargetTable
from cdc.target.remedies import load_table_again
from cdc.target.session import server_error, translate
from cdc.target.suspects import NOT_SUPPORTED, suspects
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape

FOREIGN_KEY_VIOLATION = "23503"
UNIQUE_VIOLATION = "23505"
CHECK_VIOLATION = "23514"
_CAN_BE_DEFERRED = (FOREIGN_KEY_VIOLATION, UNIQUE_VIOLATION, "23P01")
"""Foreign keys, unique and exclusion constraints; a CHECK or NOT NULL cannot be."""

_TAKEN = (UNIQUE_VIOLATION, "23P01")
"""What a row meets that may not stand beside another."""

_UNKNOWN_LABEL = "22P02"
_MISSING_RIGHT = "42501"

NEEDED_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
"""What the applier does to every table; SELECT because an update finds its rows by their keys."""

_ABOUT_ROWS = ("22", "23", "54", "P0")
"""Classes of SQLSTATE that depend on the rows: data exceptions, constraints, sizes beyond a limit, triggers' errors."""

OUTDATED = frozenset(("08P01", "22P03", "42P01", "42703", "42704", "42804", "42883", "428C9", "55000"))
"""What the server says when a table, column or type is not what it was when the plan was made. (22P03 and 08P01: a
value is not in the binary format of its column, or too short for it.)"""


class Reason(Enum):
    """Why rows are refused."""

    SERVER = "the server"
    CONTRADICTION = "folding"
    MISSING = "missing"
    SURPLUS = "surplus"
    DUPLICATE = "duplicate"
    KEY_NOT_SENT = "key not sent"
    NOT_IDENTIFIED = "not identified"
    SHARED_TRUNCATE = "shared truncate"
    LEAF_TRUNCATE = "leaf truncate"
    UNDECIDED = "undecided"


class Refused(Exception):
    """Rows of one shape are refused. Control flow inside the applier.

    ``done`` counts the rows of the refused run that were applied before, ``plan`` and ``kind`` name the run; the row by
    row replay knows them.
    """

    def __init__(self, shape: TableShape, reason: Reason, server: ServerError | None = None) -> None:
        super().__init__(reason.value)
        self.shape = shape
        self.reason = reason
        self.server = server
        self.plan: TablePlan | None = None
        self.kind: Kind | None = None
        self.done = 0

    @property
    def concerns_one_table(self) -> bool:
        """Whether the order of this table's own changes may make it possible: any constraint but a foreign key."""
        return self.reason is Reason.SERVER and not self.waits_for_others

    @property
    def waits_for_others(self) -> bool:
        """Whether changes of other tables may make it possible: a foreign key."""
        return self.server is not None and self.server.sqlstate == FOREIGN_KEY_VIOLATION


class Unfit(Exception):
    """A statement for one shape cannot run at all. Control flow inside the applier."""

    def __init__(self, shape: TableShape, server: ServerError) -> None:
        super().__init__(server.sqlstate)
        self.shape = shape
        self.server = server

    @property
    def is_outdated(self) -> bool:
        """Whether planning the table again may help."""
        return self.server.sqlstate in OUTDATED

    @property
    def is_missing_right(self) -> bool:
        """Whether our role lacks a right."""
        return self.server.sqlstate == _MISSING_RIGHT


Guard = Callable[[TableShape], AbstractContextManager[None]]
"""Classifies the driver's errors of a statement that concerns a table; see `guard_for`."""


def guard_for(where: str) -> Guard:
    """The guard of statements on the target ``where``."""

    @contextmanager
    def guard(shape: TableShape) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as error:
            server = server_error(error)
            translated = translate(error, f"writing to {shape.schema}.{shape.name}", where)
            if server.sqlstate in OUTDATED:
                raise Unfit(shape, server) from None
            if isinstance(translated, TransientError):
                raise translated from None
            if server.sqlstate[:2] in _ABOUT_ROWS:
                raise Refused(shape, Reason.SERVER, server) from None
            raise Unfit(shape, server) from None

    return guard


def verdict(refused: Refused, part: Part, plan: TablePlan, target: str) -> TableStopped | BatchRejected:
    """What the applier says when no path could apply a transaction: which table, which transaction, what to do."""
    route, server = plan.route, refused.server
    where = f"target {target}: table {route.target_name} (from {route.source_name})"
    which = f"the transaction at {part.commit_lsn} (xid {part.xid})"
    change = {Kind.INSERT: "an insert", Kind.UPDATE: "an update", Kind.DELETE: "a delete", None: "a change"}[
        refused.kind
    ]
    if server is not None and server.sqlstate[:2] == "23" and refused.reason is Reason.SERVER:
        mend = (
            "Drop the constraint or make it deferrable"
            if server.sqlstate in _CAN_BE_DEFERRED
            else "Drop the constraint"
        )
        if server.sqlstate == UNIQUE_VIOLATION and refused.shape.is_insert_only:
            mend = (
                "The updates and deletes of this table are not published, so what the source deleted may still be "
                f"there: load it again ({load_table_again(plan.source_table, target)}), or drop the constraint"
            )
        if plan.shape.keeps_deleted and server.sqlstate in _TAKEN:
            mend = (
                'A row that the source has deleted and that stays here (deletes = "keep") may be in the way: drop the '
                "constraint, or put a unique index over the other rows in its place (WHERE the column that notes "
                "deletions IS NULL)"
            )
        if plan.shape.keeps_deleted and server.sqlstate == FOREIGN_KEY_VIOLATION:
            mend += (
                '. If a row that the source has deleted and that stays here (deletes = "keep") points to a key that '
                "another row has left, only dropping it helps"
            )
        breaks = f"breaks a rule that the source does not have ({server}). {mend}"
        if server.sqlstate == CHECK_VIOLATION and server.constraint is None and plan.shape.is_partitioned:
            breaks = f"has no partition of the target's table to go into ({server}). Create it, or a default partition"
        return BatchRejected(
            f"{where}: {change} of {which} {breaks}; it is tried again then.",
            source_table=plan.source_table,
            commit_lsn=part.commit_lsn,
            xid=part.xid,
            server=server,
        )
    sql = None
    again = load_table_again(plan.source_table, target)
    differs = f"so source and target differ: load this table again ({again})"
    if refused.shape.fired:
        fired = ", ".join(refused.shape.fired)
        differs += f". Or rows were suppressed or changed by what fires for replicated rows here, {fired}: disable it"
    match refused.reason:
        case Reason.MISSING:
            sentence = f"{change} of {which} finds no row, {differs}."
        case Reason.SURPLUS:
            sentence = f"{change} of {which} finds more than one row, {differs}."
        case Reason.DUPLICATE:
            sentence = f"{change} of {which} brings a key that is already there, {differs}."
            if refused.shape.keeps_deleted and refused.shape.deleted_at is None:
                sentence += (
                    " Or it is the key of a row that the source has deleted and that stays here, and nothing tells "
                    "which those are: name a column of this table that notes deletions (deleted_at)."
                )
            if refused.shape.shares_keys:
                sentence += (
                    " If rows of the source only trade their keys within one transaction, or move between tables that "
                    "are routed here: this table's key would have to be deferrable."
                )
        case Reason.KEY_NOT_SENT:
            sentence = (
                f"{change} of {which} has a key value that is stored out of line and that the source did not send; "
                "minor releases of PostgreSQL since February 2022 send it. Update the source, and then load this table "
                f"again ({again})."
            )
        case Reason.NOT_IDENTIFIED:
            sentence = (
                f"{change} of {which} does not say which row it means: the source's table has no replica identity."
            )
        case Reason.SHARED_TRUNCATE:
            sentence = (
                f"{which} truncates the source's table, but other tables are routed to this one, too, so that "
                f"nobody can tell which rows are to go: load this table again ({again})."
            )
        case Reason.LEAF_TRUNCATE:
            return ReadAgain(
                f"{where}: {which} truncates partitions of the source's table, and nothing here tells which rows were "
                "theirs: the worker reads the table again by itself, and lets it go on then.",
                source_table=plan.source_table,
                commit_lsn=part.commit_lsn,
                xid=part.xid,
            )
        case Reason.UNDECIDED:
            sentence = (
                f"{change} of {which} gives a row another key without sending all its values, while the table is being "
                "joined to its backup, and the rows do not tell whether the backup holds that change already: load "
                f"this table from the live source ({again})."
            )
        case _ if server is not None and server.sqlstate == _UNKNOWN_LABEL:
            sentence, sql = _unknown_label(plan, which, server)
        case _:
            sentence = (
                f"{change} of {which} has a value that the target's table cannot take ({server}). {_fitting(plan)}"
            )
    return TableStopped(
        f"{where}: {sentence}",
        sql=sql,
        server=server,
        source_table=plan.source_table,
        commit_lsn=part.commit_lsn,
        xid=part.xid,
    )


def unfit_verdict(unfit: Unfit, part: Part, plan: TablePlan, target: str, role: str) -> TableStopped:
    """What the applier says when a table's statements cannot run although its catalog has nothing against them."""
    where = f"target {target}: table {plan.route.target_name} (from {plan.route.source_name})"
    if unfit.is_missing_right:
        sentence = (
            f"the role {role} has every right on it, and may not write to it all the same ({unfit.server}): see what "
            "its triggers and its schema ask for."
        )
    elif unfit.is_outdated:
        sentence = f"it, or a column or type of it, is not what the rows need ({unfit.server}). Run cdc check."
    else:
        sentence = f"the server refuses to write to it ({unfit.server})."
    found = suspects(plan.relation, [column.name for column in plan.relation.columns])
    if found.xml and unfit.server.sqlstate == NOT_SUPPORTED:
        sentence += (
            f" Values of {', '.join(found.xml)} are xml, which a server that was built without libxml does not take: "
            "leave these columns out of the route, or use another build of the server."
        )
    elif found.objects and unfit.server.sqlstate != NOT_SUPPORTED:
        sentence += f" Values of {', '.join(found.objects)} name objects, which have to exist there, too."
    return TableStopped(
        f"{where}: {sentence}",
        server=unfit.server,
        source_table=plan.source_table,
        commit_lsn=part.commit_lsn,
        xid=part.xid,
    )


def value_verdict(refused: ValueRefused, part: Part, plan: TablePlan, target: str) -> TableStopped:
    """What the applier says of a value that is not as it was planned."""
    column = plan.relation.columns[refused.column_index]
    mend = ""
    if not refused.advises:
        again = load_table_again(plan.source_table, target)
        mend = (
            " Give such rows another value at the source, then load the table again, because the value stays in the "
            f"stream: {again}. Or leave the column out of the route."
        )
    return TableStopped(
        f"target {target}: table {plan.route.target_name} (from {plan.route.source_name}): column {column.name} of a "
        f"row of the transaction at {part.commit_lsn} (xid {part.xid}): {refused.reason}. {_known_by(plan)}.{mend}",
        source_table=plan.source_table,
        commit_lsn=part.commit_lsn,
        xid=part.xid,
    )


def lacks_rights(route: Route, table: TargetTable, target: str, role: str, server: ServerError) -> TableStopped:
    """What the applier says when our role lacks a right on a table, as its catalog says, too. ``role`` is quoted."""
    return TableStopped(
        f"target {target}: table {route.target_name} (from {route.source_name}): the role {role} may not write to it "
        f"({server}).",
        sql=f"GRANT {', '.join(NEEDED_RIGHTS)} ON {table.sql_name} TO {role}",
        server=server,
        source_table=route.source_name,
    )


def _fitting(plan: TablePlan) -> str:
    """Where to look for a value that does not fit, and what can be done, without the value."""
    known = _known_by(plan)
    if not plan.differing:
        return f"{known}; every column has the source's type, so look at the checks of its types."
    return (
        f"{known}; of another type than at the source are: {', '.join(plan.differing)}. Give the column a type that "
        "holds the source's values; it is tried again then."
    )


def _known_by(plan: TablePlan) -> str:
    key = ", ".join(plan.shape.columns[place].name for place in plan.shape.key)
    return f"Its rows are known by {key}" if key else "Its rows have no key"


def _unknown_label(plan: TablePlan, which: str, server: ServerError) -> tuple[str, str | None]:
    """A value that is no label of the target's enum (hazard 13); which one, only an administrator may look at."""
    if not plan.enums:
        return f"a row of {which} has a value that the target's table cannot take ({server}). {_fitting(plan)}", None
    names = ", ".join(f"{column} ({enum.sql})" for column, enum in plan.enums)
    sql = "; ".join(
        f"ALTER TYPE {enum.sql} ADD VALUE '<label>'" for enum in dict.fromkeys(enum for _, enum in plan.enums)
    )
    other = f"Unless it is a value that does not fit: {_fitting(plan)}" if plan.differing else f"{_known_by(plan)}."
    return (
        f"a row of {which} has a label that an enum type does not have at the target ({server}); its enum columns: "
        f"{names}. Add the labels that the source's values have and this type lacks. {other}",
        sql,
    )
