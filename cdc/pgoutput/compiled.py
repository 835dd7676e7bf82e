"""Whether the compiled core is used: modules in Cython that do what plain Python does here, without an object per row.

They are built where there is a C compiler (`setup.py`), and chosen at import. The plain modules are their
specification, and take their place without a compiler, or where the environment says ``CDC_UNCOMPILED=1``.

    compiled                            what it stands for
    cdc/pgoutput/_messages.pyx          a list of messages, and cdc.pgoutput.framing.split_frames
    cdc/source/_copy_data.pyx           a loop around psycopg's PGconn.get_copy_data
    cdc/changes/_blocks.pyx             the runs that cdc.changes.accumulator collects
    cdc/changes/_rows.pyx               cdc.pgoutput.tuples, and cdc.target.copy_encoding
    cdc/changes/_folding.pyx            cdc.changes.compaction
    cdc/changes/_stream_records.pyx     cdc.changes.stream_records
"""

from __future__ import annotations

import importlib.util
import os
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


def is_compiled() -> bool:
    """Whether the compiled core is used. It is built as a whole, or not at all."""
    return IS_WANTED and all(importlib.util.find_spec(name) is not None for name in MODULES)
