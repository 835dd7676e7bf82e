"""Whether the compiled core is used: modules in Cython that do what plain Python does here, without an object per row.

They are built where there is a C compiler (`setup.py`). The plain modules are their specification, and take their place
without a compiler, or where the environment says ``CDC_UNCOMPILED=1``. The choice is made here, once and for all of
them: they hand structures of C to each other, so a few of them are of no use. Modules are named by strings, because
their rooms lie below this one; they import nothing that asks here.

    compiled                            what it stands for
    cdc/pgoutput/_messages.pyx          a list of messages, and cdc.pgoutput.framing.split_frames
    cdc/source/_copy_data.pyx           a loop around psycopg's PGconn.get_copy_data
    cdc/changes/_blocks.pyx             the runs that cdc.changes.accumulator collects
    cdc/changes/_rows.pyx               cdc.pgoutput.tuples, and cdc.target.copy_encoding
    cdc/changes/_folding.pyx            cdc.changes.compaction
    cdc/changes/_stream_records.pyx     cdc.changes.stream_records
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Final

IS_WANTED: Final = os.environ.get("CDC_UNCOMPILED", "") in ("", "0")
"""Whether the compiled modules shall be used where they are there."""

MODULES: Final = (
    "cdc.pgoutput._messages",
    "cdc.source._copy_data",
    "cdc.changes._blocks",
    "cdc.changes._rows",
    "cdc.changes._folding",
    "cdc.changes._stream_records",
)


@cache
def why_not() -> str | None:
    """Why the compiled core is not used; `None` where it is."""
    if not IS_WANTED:
        return "CDC_UNCOMPILED is set"
    for name in MODULES:
        try:
            importlib.import_module(name)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            # Beside a module that is missing: Cython's errors where one was built with another state of the others.
            return f"{name}: {error}"
    return None


def is_compiled() -> bool:
    """Whether the compiled core is used, as a whole: the one choice that all modules go by."""
    return why_not() is None
