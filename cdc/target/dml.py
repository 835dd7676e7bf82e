"""The statements that move staged rows into a target table.

They are built, because column lists cannot be parameters, and they hold names, types and ordinals only, never a value:
a target's statement log may be shipped elsewhere (invariant 8). Every one touches exactly the rows staged between two
ordinals, and PostgreSQL's command tag tells how many rows it changed, which the caller compares.

The target's table is ``t`` and the staged rows are ``s``. Tables that inherit from it are tables of their own: what is
not written into the table names it with ONLY, unless it is partitioned. ``stage`` is the name of a staging table; its
columns are named by place (`cdc.target.staging`): ``ordinal``, ``new_1``…, ``old_1``….
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from cdc.identifiers import quote, quote_list
from cdc.target.table_shape import PlanColumn, TableShape

Ordinal = int | str
"""An ordinal, or the parameter of a prepared statement that stands for one."""


def insert(shape: TableShape, stage: str, low: Ordinal, high: Ordinal) -> str:
    """Insert staged rows. Where the target would take a second row of a key, it is left out: the count tells."""
    written = shape.written
    names = quote_list(shape.columns[place].name for place in written)
    values = ", ".join(_value(shape.columns[place], place) for place in written)
    guard = ""
    if shape.key and (shape.overlap or shape.keeps_deleted or not shape.key_is_unique):
        guard = f" AND NOT EXISTS (SELECT FROM {shape.rows_name} AS t WHERE {_same_key(shape, 'new')})"
    into = f"({names}) OVERRIDING SYSTEM VALUE" if written else ""
    return (
        f"INSERT INTO {shape.sql_name} {into} "
        f"SELECT {values} FROM {stage} AS s WHERE {_between(low, high)}{guard} ORDER BY s.ordinal"
    )


def upsert(shape: TableShape, stage: str, low: int, high: int, *, over: str | None = None) -> str:
    """Insert staged rows, or give their values to the rows that the target has of their keys.

    The shape's ``key_is_arbiter`` must hold. A column that cannot be updated stays as it is in a row that is there.
    """
    written = shape.written
    sets = _updated(shape, ())
    action = "NOTHING"
    if sets:
        names = [quote(shape.columns[place].name) for place in sets]
        action = f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)}"
    return (
        f"INSERT INTO {shape.sql_name} AS t ({quote_list(shape.columns[place].name for place in written)}) "
        f"OVERRIDING SYSTEM VALUE SELECT {', '.join(_value(shape.columns[place], place) for place in written)} "
        f"FROM {stage} AS s WHERE {_between(low, high)} ORDER BY s.ordinal "
        f"ON CONFLICT ({quote_list(shape.columns[place].name for place in shape.key)}) DO {action}"
        f"{'' if over is None else f' WHERE {over}'}"
    )


def update(shape: TableShape, stage: str, unchanged: Collection[int], low: Ordinal, high: Ordinal) -> str | None:
    """Update rows whose key stays, but for the places ``unchanged``; `None` when no column is left to set.

    A column that cannot be updated (identity ALWAYS) must have the staged value already, or the count falls short.
    """
    sets = _updated(shape, unchanged)
    if not sets:
        return None
    conditions = [_between(low, high), _same_key(shape, "new"), *_live(shape), *_fixed(shape, unchanged)]
    return _counted(
        shape,
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, sets)} FROM {stage} AS s "
        f"WHERE {' AND '.join(conditions)}",
        low,
        high,
    )


def change_key(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str:
    """Update rows found by their old key, the key included."""
    return _counted(
        shape,
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, _settable(shape, unchanged))} FROM {stage} AS s "
        f"WHERE {' AND '.join([_between(low, high), _same_key(shape, 'old'), *_live(shape)])}",
        low,
        high,
    )


def take_over(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str | None:
    """Update rows found by their new key, the key's bytes included; `None` when no column can be set."""
    sets = _settable(shape, unchanged)
    if not sets:
        return None
    return (
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, sets)} FROM {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')}"
    )


def replace(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str:
    """Write rows anew that an UPDATE may not change (identity ALWAYS): found by their old key, deleted, inserted.

    The old row's values stay where the new one has none: for unchanged ones and for the target's own columns.
    PostgreSQL inserts what the deletion returns, so each row is gone before it comes again.
    """
    return _write_anew(shape, stage, unchanged, [_between(low, high), _same_key(shape, "old"), *_live(shape)])


def renew(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str | None:
    """Write those rows anew, as `replace`, that have the new key and other values where an UPDATE may not change them.

    `None` when every column can be updated.
    """
    fixed = _fixed(shape, unchanged)
    if not fixed:
        return None
    return _write_anew(
        shape, stage, unchanged, [_between(low, high), _same_key(shape, "new"), f"NOT ({' AND '.join(fixed)})"]
    )


def _write_anew(shape: TableShape, stage: str, unchanged: Collection[int], conditions: Sequence[str]) -> str:
    place_of = {column.name: place for place, column in enumerate(shape.columns)}
    kept = []
    for number, name in enumerate(shape.all_columns):
        place = place_of.get(name)
        if place is None or place in unchanged:
            kept.append(f"t.{quote(name)} AS kept_{number}")
        else:
            kept.append(f"{_value(shape.columns[place], place)} AS kept_{number}")
    values = [f"kept_{number}" for number in range(len(shape.all_columns))]
    return (
        f"WITH gone AS (DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {' AND '.join(conditions)} RETURNING {', '.join(kept)}) "
        f"INSERT INTO {shape.sql_name} ({quote_list(shape.all_columns)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(values)} FROM gone"
    )


def delete(shape: TableShape, stage: str, low: Ordinal, high: Ordinal) -> str:
    """Delete rows whose key is staged in the place of a new row's; where deleted rows stay, note the time in them."""
    if shape.keeps_deleted:
        noted, live = _deletion(shape)
        return _counted(
            shape,
            f"UPDATE {shape.rows_name} AS t SET {noted} FROM {stage} AS s "
            f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')} AND {live}",
            low,
            high,
        )
    return _counted(
        shape,
        f"DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')}",
        low,
        high,
    )


def delete_old(shape: TableShape, stage: str, low: int, high: int, *, but_new: bool) -> str:
    """Delete rows found by their old key; with ``but_new`` not those that have the new key, too (1.0 is 1.00)."""
    stays = f" AND NOT ({_same_key(shape, 'new')})" if but_new else ""
    return (
        f"DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'old')}{stays}"
    )


def key_exists(shape: TableShape, stage: str, low: int, high: int, *, old: bool = False) -> str:
    """Whether the target holds a row of a staged key already: of the same bytes, not of what its index equates.

    One that is noted as deleted does not count. With ``old`` the old key is asked for.
    """
    return (
        f"SELECT EXISTS (SELECT FROM {shape.rows_name} AS t, {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'old' if old else 'new', by_bytes=True)}"
        f"{'' if shape.deleted_at is None else f' AND {_deletion(shape)[1]}'})"
    )


def new_row_exists(shape: TableShape, stage: str, low: int, high: int) -> str:
    """Whether the target holds a row that equals a staged new one byte by byte."""
    ours = ", ".join(f"t.{quote(shape.columns[place].name)}" for place in shape.written)
    theirs = ", ".join(_as_stored(shape.columns[place], f"s.new_{place + 1}") for place in shape.written)
    return (
        f"SELECT EXISTS (SELECT FROM {shape.rows_name} AS t, {stage} AS s "
        f"WHERE {_between(low, high)} AND {_record(ours)} OPERATOR(pg_catalog.*=) {_record(theirs)})"
    )


def delete_whole_rows(shape: TableShape, stage: str, known: Sequence[int], low: int, high: int) -> str:
    """Delete, for each staged old row, exactly one row of the target that equals it byte by byte.

    The staged old rows must differ from each other. ``known`` are places that hold no NULL in any of them. Where
    deleted rows stay, the time is noted in it; a row in which one is noted equals none of the source's.
    """
    if shape.keeps_deleted:
        noted, _ = _deletion(shape)
        return (
            f"UPDATE {shape.rows_name} AS t SET {noted} "
            f"FROM {stage} AS s, ({_one_each(shape, stage, known, low, high)}) AS f "
            f"WHERE {_between(low, high)} AND s.ordinal = f.ordinal AND t.ctid = f.row_id AND t.tableoid = f.row_table"
        )
    return (
        f"DELETE FROM {shape.rows_name} AS t USING ({_one_each(shape, stage, known, low, high)}) AS f "
        "WHERE t.ctid = f.row_id AND t.tableoid = f.row_table"
    )


def update_whole_rows(
    shape: TableShape, stage: str, unchanged: Collection[int], known: Sequence[int], low: int, high: int
) -> str:
    """Update, for each staged old row, exactly one row of the target that equals it; as `delete_whole_rows`."""
    return (
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, _settable(shape, unchanged))} "
        f"FROM {stage} AS s, ({_one_each(shape, stage, known, low, high)}) AS f "
        f"WHERE {_between(low, high)} AND s.ordinal = f.ordinal AND t.ctid = f.row_id AND t.tableoid = f.row_table"
    )


def truncate(shapes: Sequence[TableShape], *, restart_identity: bool) -> str:
    """Empty tables in one statement, so that foreign keys among them are no obstacle; nothing else is emptied."""
    names = ", ".join(shape.rows_name for shape in shapes)
    return f"TRUNCATE {names}{' RESTART IDENTITY' if restart_identity else ''}"


def delete_leaf(shape: TableShape, columns: Sequence[tuple[str, str]] | None, bound: str, commit_time_us: int) -> str:
    """Delete the rows of one partition of the source: those that fulfil ``bound``.

    `None` for ``columns``: every name that it uses means the same here. Otherwise they pair those of the source with
    the target's, and whatever else it names makes the server refuse the statement. Where deleted rows stay, it is noted
    in them when the transaction was that emptied the partition.
    """
    condition, other = bound, None
    if columns is not None:
        named = "".join(f", {quote(there)} AS {quote(source)}" for source, there in columns)
        other = (
            f"(SELECT s.cdc_table, s.cdc_row FROM (SELECT tableoid AS cdc_table, ctid AS cdc_row{named} "
            f"FROM {shape.rows_name}) AS s WHERE {bound}) AS f"
        )
        condition = "t.tableoid = f.cdc_table AND t.ctid = f.cdc_row"
    if shape.keeps_deleted:
        return note_deleted(shape, commit_time_us, condition, other=other)
    return f"DELETE FROM {shape.rows_name} AS t{f' USING {other}' if other else ''} WHERE {condition}"


def delete_all(shape: TableShape) -> str:
    """Empty a table that a foreign key forbids to truncate."""
    return f"DELETE FROM {shape.rows_name}"


def insert_over_deleted(shape: TableShape, stage: str, low: int, high: int) -> list[str]:
    """Insert staged rows, or give their values to rows of their keys that are noted as deleted.

    The statements together change as many rows as are staged, unless a key is there that is not noted as deleted.
    """
    deleted = f"NOT {_deletion(shape)[1]}"
    found = [_between(low, high), _same_key(shape, "new"), deleted]
    fixed = _fixed(shape, ())
    statements = []
    if fixed:
        statements.append(_write_anew(shape, stage, (), [*found, f"NOT ({' AND '.join(fixed)})"]))
    if shape.key_is_arbiter:
        return [*statements, upsert(shape, stage, low, high, over=deleted)]
    overwrite = (
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, _updated(shape, ()))} FROM {stage} AS s "
        f"WHERE {' AND '.join(found)}"
    )
    return [*statements, overwrite, insert(shape, stage, low, high)]


def delete_in_the_way(shape: TableShape, stage: str, low: int, high: int) -> str:
    """Delete the deleted rows that stayed under new keys to which other rows move.

    Where nothing notes which were deleted, it is those that are there under such a key and do not move there.
    """
    which = f"NOT ({_same_key(shape, 'old')})" if shape.deleted_at is None else f"NOT {_deletion(shape)[1]}"
    return (
        f"DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')} AND {which}"
    )


def note_deleted(shape: TableShape, commit_time_us: int, condition: str = "true", *, other: str | None = None) -> str:
    """Note in rows ``t`` that are not noted as deleted that they were, by the transaction of that time.

    ``other`` is what the condition reads besides.
    """
    assert shape.deleted_at is not None  # asked only where a column notes it
    column = shape.columns[shape.deleted_at]
    time = datetime(2000, 1, 1) + timedelta(microseconds=commit_time_us)
    # A timestamp takes no notice of the zone: it is meant in UTC, as the bytes of a staged one are.
    literal = f"CAST('{time.isoformat(sep=' ')}+00' AS {column.stage_type})"
    return (
        f"UPDATE {shape.rows_name} AS t SET {quote(column.name)} = {literal}{f' FROM {other}' if other else ''} "
        f"WHERE {condition} AND {_deletion(shape)[1]}"
    )


def remove(shape: TableShape, condition: str, *, other: str | None = None) -> str:
    """Delete rows ``t`` that the source is found not to have; where deleted rows stay, note the present time in them.

    ``other`` is what the condition reads besides. Not for tables where rows stay and nothing notes the time.
    """
    if not shape.keeps_deleted:
        return f"DELETE FROM {shape.rows_name} AS t{f' USING {other}' if other else ''} WHERE {condition}"
    _, live = _deletion(shape)
    assert shape.deleted_at is not None  # `_deletion` has asked
    column = shape.columns[shape.deleted_at]
    now = "pg_catalog.now()"
    if column.stage_type.endswith("without time zone"):
        now = f"({now} AT TIME ZONE 'UTC')"
    return (
        f"UPDATE {shape.rows_name} AS t SET {quote(column.name)} = {now}{f' FROM {other}' if other else ''} "
        f"WHERE {condition} AND {live}"
    )


def _counted(shape: TableShape, sql: str, low: Ordinal, high: Ordinal) -> str:
    """The statement, whose command tag tells when a staged row was found more than once.

    Where no unique index keeps the target's keys apart, one row that is there twice and one that is missing would come
    to the right number of rows: then each staged row counts once, and if any was found twice, there are too many.
    """
    if shape.key_is_unique or shape.overlap:
        return sql
    assert isinstance(low, int)
    assert isinstance(high, int)
    expected = high - low + 1
    return (
        f"WITH changed AS ({sql} RETURNING s.ordinal) SELECT 1 FROM changed GROUP BY ordinal "
        f"UNION ALL SELECT 1 FROM generate_series(1, {expected + 1}) "
        "WHERE EXISTS (SELECT FROM changed GROUP BY ordinal HAVING count(*) > 1)"
    )


def _one_each(shape: TableShape, stage: str, known: Sequence[int], low: int, high: int) -> str:
    """For each staged old row the address of one row of the target that equals it.

    ``*=`` compares whole rows as bytes, which works for every type, but no index or hash helps it. So columns of
    well-behaved types that hold no NULL are compared by ``=`` beside it: PostgreSQL finds the candidates by those.
    """
    places = shape.written
    ours = ", ".join(f"t.{quote(shape.columns[place].name)}" for place in places)
    theirs = ", ".join(_as_stored(shape.columns[place], f"s.old_{place + 1}") for place in places)
    equal = [
        f"t.{quote(shape.columns[place].name)} = {_as_stored(shape.columns[place], f's.old_{place + 1}')}"
        for place in known
    ]
    conditions = " AND ".join(
        [_between(low, high), *equal, f"{_record(ours)} OPERATOR(pg_catalog.*=) {_record(theirs)}"]
    )
    return (
        "SELECT DISTINCT ON (s.ordinal) s.ordinal, t.ctid AS row_id, t.tableoid AS row_table "
        f"FROM {stage} AS s, {shape.rows_name} AS t WHERE {conditions} ORDER BY s.ordinal"
    )


def _record(values: str) -> str:
    """One value of all of them. Without the cast PostgreSQL would compare two rows column by column."""
    return f"CAST(ROW({values}) AS record)"


def _between(low: Ordinal, high: Ordinal) -> str:
    return f"s.ordinal BETWEEN {low} AND {high}"


def _updated(shape: TableShape, unchanged: Collection[int]) -> list[int]:
    """What an update of rows that keep their key sets.

    In a table of nothing but its key, the key is set to itself, so that a missing row is still noticed.
    """
    sets = [place for place in _settable(shape, unchanged) if place not in shape.key]
    return sets or [place for place in shape.key if shape.columns[place].is_updatable]


def _deletion(shape: TableShape) -> tuple[str, str]:
    """The assignment that notes the staged time of a deletion, and the condition that none is noted yet."""
    assert shape.deleted_at is not None  # without a column that notes it a delete does nothing
    name = quote(shape.columns[shape.deleted_at].name)
    return f"{name} = s.new_{shape.deleted_at + 1}", f"(t.{name} IS NULL)"


def _live(shape: TableShape) -> list[str]:
    """The condition that a row has not been deleted at the source; in overlap, rows may hold what is yet to come."""
    return [] if shape.deleted_at is None or shape.overlap else [_deletion(shape)[1]]


def _fixed(shape: TableShape, unchanged: Collection[int]) -> list[str]:
    """Conditions: the columns that an UPDATE may not change have the staged value."""
    return [
        f"t.{quote(column.name)} {column.equals} {column.compared(f's.new_{place + 1}')}"
        for place, column in enumerate(shape.columns)
        if column.is_written and not column.is_updatable and place not in shape.key and place not in unchanged
    ]


def _settable(shape: TableShape, unchanged: Collection[int]) -> list[int]:
    return [place for place, column in enumerate(shape.columns) if column.is_updatable and place not in unchanged]


def _assignments(shape: TableShape, places: Sequence[int]) -> str:
    return ", ".join(f"{quote(shape.columns[place].name)} = {_value(shape.columns[place], place)}" for place in places)


def _value(column: PlanColumn, place: int) -> str:
    value = column.read(f"s.new_{place + 1}")
    return value if column.cast is None else f"CAST({value} AS {column.cast})"


def _as_stored(column: PlanColumn, value: str) -> str:
    value = column.read(value)
    return value if column.match_cast is None else f"CAST({value} AS {column.match_cast})"


def _same_key(shape: TableShape, version: str, *, by_bytes: bool = False) -> str:
    """The key equals that of the staged row. A replica identity holds no NULL.

    Where the target's equality takes different keys for one, and no unique index of it keeps those apart, or
    ``by_bytes``, their texts are compared.
    """
    conditions = []
    for place in shape.key:
        column = shape.columns[place]
        value = column.compared(f"s.{version}_{place + 1}")
        if place in shape.loose and (by_bytes or not shape.key_is_unique):
            ours, theirs = f"CAST(t.{quote(column.name)} AS text)", f"CAST({value} AS text)"
            conditions.append(f'{ours} COLLATE "C" = {theirs} COLLATE "C"')
        else:
            conditions.append(f"t.{quote(column.name)} {column.equals} {value}")
    return " AND ".join(conditions)
