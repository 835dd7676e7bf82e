"""Types as a catalog lists them, put together: the same for the source and for every target, so that the two compare.

Both sides ask their catalog for the types by oid and modifier, and for every type that those are made of
(sql/source/types.sql, sql/target/catalog_types.sql: the same columns, in the order of `TypeRow`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cdc.changes.relation import Attribute, DataType

TypeKey = tuple[int, int]
"""A type's oid and its modifier (-1: none), as a Relation message carries them."""


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type as a catalog lists it.

    ``element_oid`` is an array's element, a domain's base, a range's subtype or a multirange's range; what follows
    ``has_send`` is what `DataType` says of attributes, ranges, row types and intervals.
    """

    oid: int
    typmod: int
    schema: str
    name: str
    sql: str
    kind: str
    element_oid: int | None
    element_typmod: int | None
    labels: Sequence[str]
    has_send: bool
    attribute_names: Sequence[str]
    attribute_oids: Sequence[int]
    attribute_typmods: Sequence[int]
    range_options: str | None
    is_row_type: bool
    lacks_infinity: bool


def described(rows: Iterable[TypeRow], wanted: Iterable[TypeKey]) -> dict[TypeKey, DataType]:
    """Those of the wanted types that are among the rows, with what they are made of."""
    by_key = {(row.oid, row.typmod): row for row in rows}
    by_oid = {row.oid: row for row in by_key.values()}

    def has_binary(oid: int) -> bool:
        """Whether the type and everything that it is made of can be sent: an array calls its element's (hazard 25)."""
        row = by_oid.get(oid)
        if row is None or not row.has_send:
            return False
        inner = [*row.attribute_oids, *([] if row.element_oid is None else [row.element_oid])]
        return all(has_binary(part) for part in inner)

    def build(row: TypeRow) -> DataType:
        element = by_key.get((row.element_oid or 0, -1 if row.element_typmod is None else row.element_typmod))
        attributes = zip(row.attribute_names, row.attribute_oids, row.attribute_typmods, strict=True)
        return DataType(
            oid=row.oid,
            schema=row.schema,
            name=row.name,
            sql=row.sql,
            kind=row.kind,
            element=None if element is None else build(element),
            labels=tuple(row.labels),
            has_binary=has_binary(row.oid),
            attributes=tuple(Attribute(name, build(by_key[oid, typmod])) for name, oid, typmod in attributes),
            range_options=row.range_options,
            is_row_type=row.is_row_type,
            lacks_infinity=row.lacks_infinity,
        )

    return {key: build(by_key[key]) for key in wanted if key in by_key}
