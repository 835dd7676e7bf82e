"""How one relation's rows get into one target table: decided once, before the first row.

`plan_table` is pure: from a relation, a route and what the target's catalog says of the table it makes a `TablePlan`,
or raises `TableStopped` with a sentence and, where there is one, the SQL that mends it. `cdc check` asks it the same
question before anything runs.

A plan has two halves. `TableShape` is the target's half: columns, key, how each value gets in; everything that a
statement is built from. Relations that are routed to one table alike share one shape, and are folded together. The
`RowReader` is the source's half: how to take that shape's columns out of a message of this relation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cdc.changes.relation import DataType, Relation, ReplicaIdentity
from cdc.changes.row_reader import RowReader, row_reader
from cdc.changes.translation import ObjectOids, Translate, Unlike, names_objects, text_translation, translation
from cdc.errors import TableStopped
from cdc.identifiers import quote, quote_qualified
from cdc.pgoutput.tuples import BINARY, TEXT
from cdc.routing.projection import Projection, project
from cdc.routing.route import Route
from cdc.target.catalog import TargetColumn, TargetTable
from cdc.target.conversion import (
    conversion,
    equality,
    fits_exactly,
    is_comparable,
    needs_cast_to_compare,
    type_name,
)
from cdc.target.deletion_column import unfit
from cdc.target.lacking import ColumnsLacking, LackingColumn
from cdc.target.remedies import load_table_again
from cdc.target.table_shape import PlanColumn, TableShape


@dataclass(frozen=True, slots=True, eq=False)
class TablePlan:
    """How the rows of ``relation`` get into one table of a target. Compared by identity.

    ``is_shared`` says that other relations are routed to the same table, ``version`` which state of the table it was
    made for (cdc.target.table_version). ``differing`` are the columns whose types differ, each with both, for messages;
    ``enums`` the target's columns that travel and hold enums, each with the enum, as the target knows it.
    ``names_objects``: values that travel name objects, which are looked up first (cdc.target.object_oids).
    ``key_objects`` reads those columns of them by which rows are found; `None` where there are none.
    """

    relation: Relation
    route: Route
    shape: TableShape
    reader: RowReader
    is_shared: bool = False
    version: str = ""
    differing: tuple[str, ...] = ()
    enums: tuple[tuple[str, DataType], ...] = ()
    names_objects: bool = False
    key_objects: RowReader | None = None

    @property
    def source_table(self) -> str:
        """``schema.table`` at the source."""
        return self.relation.qualified_name


def plan_table(
    relation: Relation,
    route: Route,
    table: TargetTable | None,
    *,
    target: str,
    follows: bool,
    triggers_disabled: bool,
    is_shared: bool = False,
    flipped: Collection[int] = (),
    overlap: bool = False,
    objects: ObjectOids | None = None,
    thorough: bool = False,
) -> TablePlan:
    """Decide how ``relation`` gets into ``table``.

    Args:
        relation: The shape of the rows, as the stream describes it.
        route: What the target wants of it.
        table: What the target's catalog says of the route's table; `None` when there is none.
        target: The target's name, for messages.
        follows: Whether the target's schema follows the source's (``schema = "follow"``) or belongs to somebody else.
        triggers_disabled: Whether foreign keys and triggers do not fire in our session.
        is_shared: Whether other relations are routed to the same table.
        flipped: Columns of the relation, by index, whose values come in the other format than their type's send
            function suggests: all of them in a stream of text values (hazard 25).
        overlap: Whether the table may hold changes already that are streamed over it: it was restored from a backup and
            its target is not cut over yet.
        objects: Where the oids of objects in values of reg* types are found.
        thorough: Whether to look into values of composite types that could pass as they are.

    Raises:
        TableStopped: the rows cannot be written as they are, with what to do about it.
    """
    planner = _Planner(
        relation,
        route,
        f"target {target}: table {route.target_name} (from {route.source_name})",
        target,
        follows,
        ObjectOids() if objects is None else objects,
        thorough,
    )
    found = planner.writable(table)
    projection = planner.projection(found)
    planner.check_left_out(found, projection)
    key = planner.key(found, projection)
    if overlap and not key:
        raise planner.stop(
            "changes that a backup may hold already can only be applied where a key identifies the rows; copy this "
            "table from the live source."
        )
    as_text = tuple((index in flipped) == column.type.has_binary for index, column in enumerate(relation.columns))
    columns, direct, translations = planner.columns(found, projection, as_text)
    noted = planner.deletion_column(found, projection)
    key_names = {projection.target_columns[place] for place in key or ()}
    fires = not triggers_disabled
    all_columns = tuple(column.name for column in found.columns if not column.generated)
    filled = {*projection.target_columns, *(column.name for column in noted)}
    # A row that was deleted is not written anew either: what the source had is nowhere else.
    holds_more = route.keeps_deleted or (fires and bool(found.referenced_by)) or not filled.issuperset(all_columns)
    replaces_rows = any(not columns[place].is_updatable and columns[place].is_written for place in key or ())
    shape = TableShape(
        schema=found.schema,
        name=found.name,
        columns=(*columns, *noted),
        key=key or (),
        matches_whole_row=key is None,
        key_is_unique=any(k.is_immediate and set(k.columns) <= key_names for k in found.unique_keys),
        key_is_arbiter=any(k.is_immediate and set(k.columns) == key_names for k in found.unique_keys),
        shares_keys=is_shared or relation.replica_identity is ReplicaIdentity.FULL,
        loose=frozenset(place for place in key or () if planner.is_loose(found, columns[place])),
        # COPY without a list of columns would mean all of them.
        copies_directly=direct and bool(columns),
        holds_more=holds_more,
        keeps_rows=holds_more and not replaces_rows,
        replaces_rows=replaces_rows,
        loses_rows=fires and any(k.on_delete == "c" for k in found.foreign_keys),
        moves_rows=fires
        and any(
            (k.on_update in "cnd" or k.on_delete in "nd") and (key is None or not key_names.isdisjoint(k.columns))
            for k in found.foreign_keys
        ),
        all_columns=all_columns,
        references=frozenset((k.referenced_schema, k.referenced_table) for k in found.foreign_keys if fires),
        defers=fires and found.can_defer,
        fired=tuple(
            f"{trigger.kind} {trigger.name}"
            for trigger in found.triggers
            if trigger.fires(as_replica=triggers_disabled)
        ),
        overlap=overlap,
        keeps_deleted=route.keeps_deleted,
        deleted_at=len(columns) if noted else None,
        is_partitioned=found.relkind == "p",
    )
    wire = bytes(TEXT if text else BINARY for text in as_text)
    reader = row_reader(
        relation, wire, projection.indices, shape.key, translations, notes_time=shape.deleted_at is not None
    )
    named = [place for place in translations if names_objects(relation.columns[projection.indices[place]].type)]
    known_by = [projection.indices[place] for place in named if shape.matches_whole_row or place in shape.key]
    return TablePlan(
        relation,
        route,
        shape,
        reader,
        is_shared,
        differing=_differing(relation, found, projection),
        enums=tuple(_enums(found, projection)),
        names_objects=bool(named),
        key_objects=_objects_reader(relation, wire, known_by, planner.objects) if known_by else None,
    )


def _objects_reader(relation: Relation, wire: bytes, indices: Sequence[int], objects: ObjectOids) -> RowReader:
    """A reader of these columns alone, which asks for the objects that their values name."""
    types = [relation.columns[index].type for index in indices]
    found = {
        place: text_translation(one, objects) if wire[index] == TEXT else translation(one, one, objects)
        for place, (index, one) in enumerate(zip(indices, types, strict=True))
    }
    asking = {place: translate for place, translate in found.items() if translate is not None}
    return row_reader(relation, wire, tuple(indices), (), asking)


def _enums(table: TargetTable, projection: Projection) -> Iterator[tuple[str, DataType]]:
    for name in projection.target_columns:
        column = table.column(name)
        if column is not None:
            yield from ((name, enum) for enum in dict.fromkeys(_enums_in(column.type)))


def _enums_in(data_type: DataType) -> Iterator[DataType]:
    if data_type.kind == "e":
        yield data_type
    for part in data_type.parts:
        yield from _enums_in(part)


def _differing(relation: Relation, table: TargetTable, projection: Projection) -> tuple[str, ...]:
    found = []
    for index, name in zip(projection.indices, projection.target_columns, strict=True):
        source, column = relation.columns[index].type, table.column(name)
        if column is not None and column.type.sql != source.sql:
            found.append(f"{name} ({source.sql} at the source, {column.type.sql} here)")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Planner:
    """The questions that a plan answers, one by one; each can stop the table."""

    relation: Relation
    route: Route
    where: str
    target: str
    follows: bool
    objects: ObjectOids
    thorough: bool

    def stop(self, sentence: str, sql: str | None = None) -> TableStopped:
        return TableStopped(f"{self.where}: {sentence}", sql=sql, source_table=self.relation.qualified_name)

    def alter(self, action: str) -> str:
        return f"ALTER TABLE {quote_qualified(self.route.target_schema, self.route.target_table)} {action}"

    def writable(self, table: TargetTable | None) -> TargetTable:
        if table is None:
            if self.follows:
                raise self.stop("the table does not exist there; run cdc bootstrap, which creates it with its rows.")
            raise self.stop("the table does not exist there; its owner has to create it, or the route has to go.")
        if not table.is_writable:
            raise self.stop("this is not a table that rows can be written to (it may be a view).")
        if table.persistence == "u":
            raise self.stop(
                "it is UNLOGGED: a crash of the server empties it, while the position says that its rows are there.",
                self.alter("SET LOGGED"),
            )
        if table.row_security:
            raise self.stop(
                f"row security applies to the role {table.role}, so rows could be hidden from it or refused.",
                f"ALTER ROLE {quote(table.role)} BYPASSRLS",
            )
        return table

    def projection(self, table: TargetTable) -> Projection:
        """The columns that travel, in the target's order."""
        projection = project(self.relation, self.route)
        if projection.missing:
            raise self.stop(self.missing(table, projection.missing))
        lacking = [
            (index, name)
            for index, name in zip(projection.indices, projection.target_columns, strict=True)
            if table.column(name) is None
        ]
        if lacking and (self.route.columns is not None or self.follows):
            columns = [(self.relation.columns[index], name) for index, name in lacking]
            raise ColumnsLacking(
                self.where,
                self.target,
                self.route,
                tuple(LackingColumn(column.name, name, column.type) for column, name in columns),
                tuple(
                    column
                    for column in table.columns
                    if column.name not in projection.target_columns
                    and column.name != self.route.deleted_at
                    and not column.generated
                ),
            )
        ignored = {name for _, name in lacking}
        travelling = [
            (index, name)
            for index, name in zip(projection.indices, projection.target_columns, strict=True)
            if name not in ignored
        ]
        if not travelling and self.relation.columns:
            raise self.stop("the source's table and this one have no column in common.")
        return Projection(tuple(index for index, _ in travelling), tuple(name for _, name in travelling)).in_order_of(
            [column.name for column in table.columns]
        )

    def missing(self, table: TargetTable, names: Sequence[str]) -> str:
        """What to do about columns that the route lists and the rows do not have."""
        sentence = (
            f"the route lists columns that the source's table does not have any more: {', '.join(names)}. If they were "
            "dropped, take them out of the configuration and restart the worker. "
        )
        gone = {self.route.target_column(name) for name in names}
        types = [column.type for column in table.columns if column.name in gone]
        candidates = [
            column.name
            for column in self.relation.columns
            if self.route.target_column(column.name) is None and any(fits_exactly(column.type, one) for one in types)
        ]
        if not candidates:
            return sentence + "If they were renamed, list their new names there."
        where = (
            "rename the target's column, too"
            if self.follows
            else "rename the target's column, too, or map the new name to it"
        )
        return sentence + (
            f"If they were renamed (the table has {', '.join(candidates)}, of a type that fits), list the new names in "
            f"the configuration, {where}, and restart the worker; to undo it at the source does not help, because what "
            "was written in between stays in its WAL under the new names."
        )

    def check_left_out(self, table: TargetTable, projection: Projection) -> None:
        """Columns that no row fills must be able to do without."""
        for column in table.columns:
            is_filled = column.name in projection.target_columns or column.has_default or column.generated
            if column.not_null and not is_filled:
                raise self.stop(
                    f"its column {column.name} is NOT NULL without a default, and nothing at the source fills it.",
                    self.alter(f"ALTER COLUMN {quote(column.name)} DROP NOT NULL"),
                )
            if self.follows and column.generated and column.name in projection.target_columns:
                # What is computed is not sent: it became a plain column (DROP EXPRESSION), and may hold anything now.
                raise self.stop(
                    f"the source sends values of {column.name}, which this table computes itself.",
                    self.alter(f"ALTER COLUMN {quote(column.name)} DROP EXPRESSION"),
                )

    def key(self, table: TargetTable, projection: Projection) -> tuple[int, ...] | None:
        """Places of the key; ``()`` when only inserts can arrive, `None` when rows are known by all their values."""
        if self.relation.replica_identity is ReplicaIdentity.FULL:
            return self._key_of_whole_rows(table, projection)
        places = []
        for index in self.relation.key:
            place = projection.place_of(index)
            if place is None:
                raise self.stop(
                    f"column {self.relation.columns[index].name} is part of the source's key and not among the columns "
                    "that go there, so updates and deletes could not find their rows. Route it, too."
                )
            places.append(place)
        return tuple(sorted(places))

    def _key_of_whole_rows(self, table: TargetTable, projection: Projection) -> tuple[int, ...] | None:
        """REPLICA IDENTITY FULL sends every column: whatever is unique at the target can identify the row."""
        not_null = {column.name for column in table.columns if column.not_null}
        usable = [
            key
            for key in table.unique_keys
            if key.is_immediate and set(key.columns) <= not_null & set(projection.target_columns)
        ]
        if not usable:
            return None
        best = min(usable, key=lambda key: (not key.is_primary, len(key.columns), key.name))
        return tuple(sorted(projection.target_columns.index(name) for name in best.columns))

    def is_loose(self, table: TargetTable, column: PlanColumn) -> bool:
        there = table.column(column.name)
        return there is not None and there.equates_texts

    def deletion_column(self, table: TargetTable, projection: Projection) -> tuple[PlanColumn, ...]:
        """The column that notes when a row was deleted, if the route asks for one. It is staged as what it is."""
        if self.route.deleted_at is None:
            return ()
        problem = unfit(self.route, table, projection.target_columns)
        if problem is not None:
            raise self.stop(problem.sentence, problem.sql)
        column = table.column(self.route.deleted_at)
        assert column is not None  # it would be unfit
        kind = column.type.sql
        return (PlanColumn(column.name, kind, None, None, None, equality(column.type), True, True, True),)

    def columns(
        self, table: TargetTable, projection: Projection, as_text: tuple[bool, ...]
    ) -> tuple[tuple[PlanColumn, ...], bool, dict[int, Translate]]:
        """The columns of the shape, whether COPY may write to all of them, and what is translated, by place."""
        columns: list[PlanColumn] = []
        translations: dict[int, Translate] = {}
        all_direct = True
        for index, name in zip(projection.indices, projection.target_columns, strict=True):
            column = table.column(name)
            assert column is not None  # the projection holds columns of the table only
            planned, direct, translate = self._column(
                self.relation.columns[index].type, column, as_text[index], table.lacks_infinity
            )
            if translate is not None:
                translations[len(columns)] = translate
            columns.append(planned)
            all_direct = all_direct and direct
        return tuple(columns), all_direct, translations

    def _column(
        self, source: DataType, column: TargetColumn, as_text: bool, lacks_infinity: bool
    ) -> tuple[PlanColumn, bool, Translate | None]:
        target = column.type
        if self.follows and source.sql == target.sql and not fits_exactly(source, target):
            raise self.stop(
                f"column {column.name} is of type {target.sql}, which is made of {target.plain.sql} there and of "
                f"{source.plain.sql} at the source. Make the domain there what it is at the source."
            )
        if self.follows and not fits_exactly(source, target):
            raise self.stop(
                f"column {column.name} is of type {target.sql}, and of type {source.sql} at the source. What the "
                "source computed anew for rows that were there (ALTER COLUMN … TYPE … USING …) is not streamed: if it "
                f"did, load the table again afterwards ({load_table_again(self.route.source_name, self.target)}).",
                self.alter(f"ALTER COLUMN {quote(column.name)} TYPE {source.sql}"),
            )
        try:
            way = conversion(
                source,
                target,
                as_text=as_text,
                objects=self.objects,
                thorough=self.thorough,
                lacks_infinity=lacks_infinity,
            )
        except Unlike as unlike:
            raise self.stop(f"column {column.name}: {unlike}.", unlike.sql) from None
        if way is None:
            raise self.stop(
                f"column {column.name} is of type {target.sql}, and cdc does not convert values of the source's type "
                f"{source.sql} to it.",
                self.alter(f"ALTER COLUMN {quote(column.name)} TYPE {source.sql}"),
            )
        same = (
            not as_text
            and way.cast is None
            and ((way.is_direct and way.translate) or not needs_cast_to_compare(source, target))
        )
        planned = PlanColumn(
            name=column.name,
            stage_type=way.stage_type,
            cast=way.cast,
            key_cast=None if same else type_name(target),
            match_cast=None if same and source.sql == target.sql and target.kind != "d" else target.sql,
            equals=equality(target),
            is_written=not column.generated,
            is_updatable=not column.generated and column.identity != "a",
            is_comparable=is_comparable(target),
            read_as=way.read_as,
        )
        return planned, way.is_direct and not column.generated, way.translate
