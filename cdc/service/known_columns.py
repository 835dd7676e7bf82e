"""Whether a name in the stream still means the column of the source that a target's rows were loaded from.

Names can be swapped in one transaction, and a dropped column's name can be given to another one; the rows that were
there keep the values of the former column then, silently. What tells columns is their number, which only the source's
catalog knows, and that is of now while the stream is of the past (hazard 15). So it is asked at two places:

- When a relation is planned. Renaming never changes the order of columns, so a relation whose columns are out of order
  by the recorded numbers has other names than those of then, whatever the catalog says. And one whose columns are
  those of the catalog, in its order, has the catalog's numbers. Any other is older: it is what it was loaded as.
- Every few seconds (`KnownColumns.compare`), for tables whose relations look the same although a column was dropped and
  added again, and for those that nothing is streamed of. A target that holds everything from before the look has met
  every relation of before, so what the catalog says is true of what it holds.

Nothing is asked where nothing is new: a relation is planned once a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from cdc.changes.column_numbers import ColumnNumbers
from cdc.changes.relation import Relation
from cdc.errors import CdcError
from cdc.routing.patterns import split
from cdc.routing.route import Route
from cdc.target import column_record
from cdc.target.column_record import ColumnRecord, ColumnsMoved, TargetColumns, pairs
from cdc.target.remedies import load_table_again, resync_command
from cdc.target.session import Session
from cdc.target.table_state import TableName

_log = structlog.get_logger(__name__)

ReadNumbers = Callable[[Collection[int]], Awaitable[Mapping[int, ColumnNumbers]]]
"""Asks the source for the columns of tables (oids). Raises `CdcError`."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What was read of several tables together: of the tables of ``routes``, and of ``oids`` at the source."""

    routes: frozenset[Route]
    there: Mapping[TableName, TargetColumns]
    records: Mapping[TableName, ColumnRecord]
    oids: frozenset[int]
    known: Mapping[int, ColumnNumbers] | CdcError


class KnownColumns:
    """The record of one generation (``key``), for one session."""

    def __init__(self, session: Session, key: str, target: str, *, follows: bool) -> None:
        self._session = session
        self._key = key
        self._target = target
        self._follows = follows
        self._unwritten: dict[str, ColumnRecord] = {}
        self._compared: dict[str, ColumnNumbers] = {}
        self._unverified: set[str] = set()
        self.being_read: set[str] = set()
        self.ask: ReadNumbers | None = None
        self._ahead: _Ahead | None = None

    @asynccontextmanager
    async def looking_ahead(self, relations: Collection[tuple[Relation, Route]]) -> AsyncIterator[None]:
        """Read together what `verify` asks for each of these; inside, it takes that."""
        oids = frozenset(oid for relation, _ in relations for oid in _oids(relation))
        known: Mapping[int, ColumnNumbers] | CdcError
        try:
            known = {} if self.ask is None else await self.ask(oids)
        except CdcError as refusal:
            known = refusal
        names = {(route.target_schema, route.target_table) for _, route in relations}
        there = await column_record.read_columns_of(self._session, names)
        sources = {(route.source_schema, route.source_table) for _, route in relations}
        records = await column_record.read_all(self._session, self._key, sources)
        self._ahead = _Ahead(frozenset(route for _, route in relations), there, records, oids, known)
        try:
            yield
        finally:
            self._ahead = None

    async def verify(self, relation: Relation, route: Route) -> None:
        """See that the names of a relation mean what its table was loaded from; columns that are new are noted.

        ``relation`` has the oid and the name of the table that is routed. Raises `ColumnsMoved`. `record` writes what
        was noted.
        """
        table = relation.qualified_name
        there = await self._there(route)
        if there is None:
            return
        if table in self.being_read:
            self._unverified.add(table)  # its rows are read anew, whatever they were
            return
        record = await self._record_of(route, there)
        self._refuse_mixed(route, record)
        oid, own_oid = _oids(relation)
        known = await self._ask({oid, own_oid}, table)
        own, of = known.get(own_oid), known.get(oid)
        names = [column.name for column in relation.columns]
        if own is not None and of is not None and own.explains(names):
            sent = {name: of.numbers[name] for name in names if name in of.numbers}
            self._compare(route, record, sent, of, there)
            found = pairs(route, sent, there)
            if record is None or not found.items() <= record.sources.items():
                self._unwritten[table] = (record or ColumnRecord(there.oid)).extended(found, there)
        if record is not None and (
            relation.leaf is None or (own is not None and of is not None and own.same_order(of))
        ):
            self._refuse_disorder(route, record, names, there)

    async def fits(self, table: str, oid: int, route: Route) -> None:
        """See the same for a table that nothing is known of but its oid at the source. Raises `ColumnsMoved`."""
        there = await column_record.read_columns(self._session, route)
        if there is not None:
            record = await self._record_of(route, there)
            self._refuse_mixed(route, record)
            of = (await self._ask({oid}, table)).get(oid)
            if of is not None and record is not None:
                self._compare(route, record, of.numbers, of, there)

    async def compare(self, table: str, of: ColumnNumbers, route: Route) -> ColumnsMoved | None:
        """What a look at the source's catalog says of a table that holds everything from before the look.

        A table of which nothing is recorded yet is noted. The source's answer is compared once.
        """
        if self._compared.get(table) == of or table in self.being_read:
            return None
        there = await column_record.read_columns(self._session, route)
        if there is None:
            return None
        record = await self._record_of(route, there)
        try:
            self._refuse_mixed(route, record)
            if record is None:
                self._unwritten[table] = ColumnRecord(there.oid, pairs(route, of.stored, there))
            else:
                recorded = {
                    name: number for name, number in of.numbers.items() if _is_recorded(name, route, there, record)
                }
                self._compare(route, record, recorded, of, there)
        except ColumnsMoved as moved:
            return moved
        self._compared[table] = of
        return None

    @property
    def has_news(self) -> bool:
        """Whether there is something to `record`."""
        return bool(self._unwritten)

    async def record(self) -> None:
        """Write down, in the transaction that is open, what was noted."""
        while self._unwritten:
            table, record = self._unwritten.popitem()
            await column_record.write(self._session, self._key, split(table), record)

    async def loaded(self, route: Route, source: Mapping[str, int]) -> None:
        """Record, in the transaction that is open, that a table's rows are read anew from these columns."""
        self._unwritten.pop(route.source_name, None)
        self._compared.pop(route.source_name, None)
        self._unverified.discard(route.source_name)
        await column_record.write_loaded(self._session, self._key, route, source)

    async def _there(self, route: Route) -> TargetColumns | None:
        if self._ahead is not None and route in self._ahead.routes:
            return self._ahead.there.get((route.target_schema, route.target_table))
        return await column_record.read_columns(self._session, route)

    async def _record_of(self, route: Route, there: TargetColumns) -> ColumnRecord | None:
        """What is known of a table. Of one that somebody has put in its place nothing is."""
        source = route.source_schema, route.source_table
        found = self._unwritten.get(route.source_name)
        if found is None and self._ahead is not None and route in self._ahead.routes:
            found = self._ahead.records.get(source)
        elif found is None:
            found = await column_record.read(self._session, self._key, source)
        return found if found is not None and (found.oid == there.oid or found.mixed) else None

    async def _ask(self, tables: Collection[int], table: str) -> Mapping[int, ColumnNumbers]:
        if self.ask is None:
            return {}
        try:
            if self._ahead is None or not self._ahead.oids.issuperset(tables):
                return await self.ask(tables)
            if isinstance(self._ahead.known, CdcError):
                raise self._ahead.known
        except CdcError as refusal:
            self._unverified.add(table)
            _log.info("the source cannot be asked about columns", table=table, reason=str(refusal))
            return {}
        return self._ahead.known

    def _refuse_mixed(self, route: Route, record: ColumnRecord | None) -> None:
        if record is not None and record.mixed is not None:
            table = route.source_name
            raise ColumnsMoved(record.mixed, sql=resync_command(table, self._target), source_table=table)

    def _compare(
        self,
        route: Route,
        record: ColumnRecord | None,
        sent: Mapping[str, int],
        of: ColumnNumbers,
        there: TargetColumns,
    ) -> None:
        """Raise `ColumnsMoved` where a column here holds another column of the source than the one of its name now."""
        if record is None:
            return
        names = {number: name for name, number in of.numbers.items()}
        here_of = {number: name for name, number in there.numbers.items()}
        holds = {of: here for here, of in record.sources.items() if here in here_of}
        said, is_known = [], True
        for name, number in sent.items():
            to = route.target_column(name)
            here = None if to is None else there.numbers.get(to)
            if to is None or here is None:
                continue
            shown = name if to == name else f"{name} (here {to})"
            held = record.sources.get(here)
            if held is None:
                if self._follows and number in holds:
                    said.append(f"{shown} was called otherwise, and its values are in {here_of[holds[number]]} here")
            elif held != number:
                is_known &= number in holds
                now = names.get(held)
                said.append(
                    f"under {shown} there are the values of "
                    + (
                        f"the column that is called {now} now"
                        if now
                        else "one that is gone, whose name another one has"
                    )
                )
        if said:
            self._refuse(route, record, "; ".join(said), is_mixed=not is_known)

    def _refuse_disorder(
        self, route: Route, record: ColumnRecord, names: Collection[str], there: TargetColumns
    ) -> None:
        """Raise `ColumnsMoved` for columns that do not come in the order of those that the table was loaded from."""
        last, last_name = 0, ""
        for name in names:
            to = route.target_column(name)
            number = None if to is None else record.sources.get(there.numbers.get(to, 0))
            if number is None:
                continue
            if number < last:
                self._refuse(route, record, f"{last_name} and {name} have changed places")
            last, last_name = number, name

    def _refuse(self, route: Route, record: ColumnRecord, said: str, *, is_mixed: bool = False) -> None:
        table = route.source_name
        is_mixed = is_mixed or table in self._unverified
        sentence = (
            f"target {self._target}: table {route.target_name} (from {table}): names of the source's columns mean "
            f"others than those that its rows were loaded from. In the rows that are here, {said}. To read them again, "
            f"{load_table_again(table, self._target)}."
        )
        if not is_mixed:
            sentence += " Where only names have changed there, they may be changed here in the same way instead."
        if is_mixed:
            self._unwritten[table] = ColumnRecord(record.oid, record.sources, sentence)
        raise ColumnsMoved(sentence, sql=resync_command(table, self._target), source_table=table)


def _oids(relation: Relation) -> tuple[int, int]:
    """The oid of the table that is routed, and that of the table whose rows these are: other ones for a partition."""
    return relation.oid, relation.oid if relation.leaf is None else relation.leaf.oid


def _is_recorded(name: str, route: Route, there: TargetColumns, record: ColumnRecord) -> bool:
    to = route.target_column(name)
    return to is not None and there.numbers.get(to) in record.sources
