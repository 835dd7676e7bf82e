"""How a column of the source came to be, as far as the source's catalog knows it now.

The stream says that a column is there, not what it put into the rows that were there before it: ``ADD COLUMN …
DEFAULT`` changes them without a single change message (hazard 14). The catalog knows that, until the table is
rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ColumnOrigin:
    """What the catalog says of one column. It is DDL's, never a row's.

    ``filled_with`` is the text of the value that ``ADD COLUMN … DEFAULT`` gave to the rows that were there, computed
    once (``pg_attribute.attmissingval``); `None` when it gave none. ``may_be_filled``: those rows may have got values
    all the same, because the column has a default and the table has been rewritten, by that or by something later;
    nothing tells which. ``is_behind_dropped``: a column that stood before it has been dropped, so that it may have come
    in its place. ``is_listed``: a publication that is followed, and is somebody else's, sends some columns of its table
    only, so that it may have left this one out before; ``may_be_unlisted``: there is no such list now, but there may
    have been one (or the column is computed, and was not sent).
    """

    filled_with: str | None
    may_be_filled: bool
    is_behind_dropped: bool
    is_listed: bool = False
    may_be_unlisted: bool = False
