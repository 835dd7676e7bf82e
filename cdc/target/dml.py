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

from cdc.identifiers import quote, quote_list
from cdc.target.table_plan import PlanColumn, TableShape


def insert(shape: TableShape, stage: str, low: int, high: int) -> str:
    """Insert staged rows. Where the target would take a second row of a key, it is left out: the count tells."""
    written = shape.written
    names = quote_list(shape.columns[place].name for place in written)
    values = ", ".join(_value(shape.columns[place], place) for place in written)
    guard = ""
    if shape.key and (shape.overlap or not shape.key_is_unique):
        guard = f" AND NOT EXISTS (SELECT FROM {shape.rows_name} AS t WHERE {_same_key(shape, 'new')})"
    return (
        f"INSERT INTO {shape.sql_name} ({names}) OVERRIDING SYSTEM VALUE "
        f"SELECT {values} FROM {stage} AS s WHERE {_between(low, high)}{guard} ORDER BY s.ordinal"
    )


def upsert(shape: TableShape, stage: str, low: int, high: int) -> str:
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
        f"INSERT INTO {shape.sql_name} ({quote_list(shape.columns[place].name for place in written)}) "
        f"OVERRIDING SYSTEM VALUE SELECT {', '.join(_value(shape.columns[place], place) for place in written)} "
        f"FROM {stage} AS s WHERE {_between(low, high)} ORDER BY s.ordinal "
        f"ON CONFLICT ({quote_list(shape.columns[place].name for place in shape.key)}) DO {action}"
    )


def update(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str | None:
    """Update rows whose key stays, but for the places ``unchanged``; `None` when no column is left to set.

    A column that cannot be updated (identity ALWAYS) must have the staged value already, or the count falls short.
    """
    sets = _updated(shape, unchanged)
    if not sets:
        return None
    return (
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, sets)} FROM {stage} AS s "
        f"WHERE {' AND '.join([_between(low, high), _same_key(shape, 'new'), *_fixed(shape, unchanged)])}"
    )


def change_key(shape: TableShape, stage: str, unchanged: Collection[int], low: int, high: int) -> str:
    """Update rows found by their old key, the key included."""
    return (
        f"UPDATE {shape.rows_name} AS t SET {_assignments(shape, _settable(shape, unchanged))} FROM {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'old')}"
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
    return _write_anew(shape, stage, unchanged, [_between(low, high), _same_key(shape, "old")])


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


def delete(shape: TableShape, stage: str, low: int, high: int) -> str:
    """Delete rows whose key is staged in the place of a new row's."""
    return (
        f"DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')}"
    )


def delete_old(shape: TableShape, stage: str, low: int, high: int, *, but_new: bool) -> str:
    """Delete rows found by their old key; with ``but_new`` not those that have the new key, too (1.0 is 1.00)."""
    stays = f" AND NOT ({_same_key(shape, 'new')})" if but_new else ""
    return (
        f"DELETE FROM {shape.rows_name} AS t USING {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'old')}{stays}"
    )


def key_exists(shape: TableShape, stage: str, low: int, high: int) -> str:
    """Whether the target holds a row of a staged key already."""
    return (
        f"SELECT EXISTS (SELECT FROM {shape.rows_name} AS t, {stage} AS s "
        f"WHERE {_between(low, high)} AND {_same_key(shape, 'new')})"
    )


def delete_whole_rows(shape: TableShape, stage: str, known: Sequence[int], low: int, high: int) -> str:
    """Delete, for each staged old row, exactly one row of the target that equals it byte by byte.

    The staged old rows must differ from each other. ``known`` are places that hold no NULL in any of them.
    """
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


def delete_leaf(shape: TableShape, columns: Sequence[tuple[str, str]] | None, bound: str) -> str:
    """Delete the rows of one partition of the source: those that fulfil ``bound``.

    `None` for ``columns``: every name that it uses means the same here. Otherwise they pair those of the source with
    the target's, and whatever else it names makes the server refuse the statement.
    """
    if columns is None:
        return f"DELETE FROM {shape.rows_name} AS t WHERE {bound}"
    named = "".join(f", {quote(there)} AS {quote(source)}" for source, there in columns)
    return (
        f"DELETE FROM {shape.rows_name} AS t USING (SELECT s.cdc_table, s.cdc_row FROM (SELECT tableoid AS cdc_table, "
        f"ctid AS cdc_row{named} FROM {shape.rows_name}) AS s WHERE {bound}) AS f "
        "WHERE t.tableoid = f.cdc_table AND t.ctid = f.cdc_row"
    )


def delete_all(shape: TableShape) -> str:
    """Empty a table that a foreign key forbids to truncate."""
    return f"DELETE FROM {shape.rows_name}"


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


def _between(low: int, high: int) -> str:
    return f"s.ordinal BETWEEN {low} AND {high}"


def _updated(shape: TableShape, unchanged: Collection[int]) -> list[int]:
    """What an update of rows that keep their key sets.

    In a table of nothing but its key, the key is set to itself, so that a missing row is still noticed.
    """
    sets = [place for place in _settable(shape, unchanged) if place not in shape.key]
    return sets or [place for place in shape.key if shape.columns[place].is_updatable]


def _fixed(shape: TableShape, unchanged: Collection[int]) -> list[str]:
    """Conditions: the columns that an UPDATE may not change have the staged value."""
    return [
        f"t.{quote(column.name)} {column.equals} s.new_{place + 1}"
        for place, column in enumerate(shape.columns)
        if column.is_written and not column.is_updatable and place not in shape.key and place not in unchanged
    ]


def _settable(shape: TableShape, unchanged: Collection[int]) -> list[int]:
    return [place for place, column in enumerate(shape.columns) if column.is_updatable and place not in unchanged]


def _assignments(shape: TableShape, places: Sequence[int]) -> str:
    return ", ".join(f"{quote(shape.columns[place].name)} = {_value(shape.columns[place], place)}" for place in places)


def _value(column: PlanColumn, place: int) -> str:
    value = f"s.new_{place + 1}"
    return value if column.cast is None else f"CAST({value} AS {column.cast})"


def _as_stored(column: PlanColumn, value: str) -> str:
    return value if column.match_cast is None else f"CAST({value} AS {column.match_cast})"


def _same_key(shape: TableShape, version: str) -> str:
    """The key equals that of the staged row. A replica identity holds no NULL."""
    conditions = []
    for place in shape.key:
        column = shape.columns[place]
        value = f"s.{version}_{place + 1}"
        if column.key_cast is not None:
            value = f"CAST({value} AS {column.key_cast})"
        conditions.append(f"t.{quote(column.name)} {column.equals} {value}")
    return " AND ".join(conditions)
