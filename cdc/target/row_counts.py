"""How many rows a statement changed, and whether those are as many as were staged for it.

The count is how the applier notices that source and target differ: it sends sets of rows and gets one number back.
"""

from __future__ import annotations

from cdc.target.rejection import Reason, Refused
from cdc.target.table_shape import TableShape


def row_count(tag: str) -> int:
    """The number of rows in a command tag, ``UPDATE 3``."""
    return int(tag.rpartition(" ")[2])


def check_count(shape: TableShape, changed: int, expected: int, *, may_fall_short: bool = False) -> None:
    """Raise `Refused` when a statement changed another number of rows than were staged for it."""
    if changed > expected:
        raise Refused(shape, Reason.SURPLUS)
    if changed < expected and not may_fall_short:
        raise Refused(shape, Reason.MISSING)
