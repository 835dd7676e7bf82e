"""What is said of columns that a target's table lacks while the source cannot be asked about them."""

from __future__ import annotations

from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.relation import DataType
from cdc.routing.route import Route
from cdc.target.catalog import TargetColumn
from cdc.target.lacking import ColumnsLacking, LackingColumn

INTEGER = DataType(23, "pg_catalog", "int4", "integer")


def lacking() -> ColumnsLacking:
    surplus = TargetColumn("old", INTEGER, not_null=False, has_default=False, generated=False, identity="")
    route = Route("public", "t", "public", "t")
    return ColumnsLacking("here", "internal", route, (LackingColumn("new", "new", INTEGER),), (surplus,))


def test_a_column_is_called_gone_only_where_the_catalog_lacks_it() -> None:
    """Rows that do not bring it say nothing of that: a publication may list columns."""
    origin = ColumnOrigin(None, may_be_filled=False, is_behind_dropped=False)
    unasked = lacking().explained(None)
    assert "gone" not in str(unasked)
    assert (unasked.sql or "").splitlines()[0::2] == ["-- if old was renamed:", "-- if new is new:"]
    assert "that is gone at the source" in str(lacking().explained({"new": origin}))
    there = lacking().explained({"new": origin, "old": origin})
    assert "The source's table still has old" in str(there)
    assert (there.sql or "").endswith('ADD COLUMN "new" integer;  -- and then: cdc resync public.t --target internal')
