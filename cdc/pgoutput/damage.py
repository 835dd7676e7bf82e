"""How this room says that bytes are not what PostgreSQL's manual promises: always one `ProtocolError`, of one form.

The message names the kind of message, the byte at which reading failed, and what should have stood there. It never
repeats what did stand there, because that may be a row's value.
"""

from __future__ import annotations

from cdc.errors import ProtocolError


def damaged(what: str, offset: int, expected: str) -> ProtocolError:
    """Compose the error for ``what``, unreadable at byte ``offset``, where ``expected`` should be."""
    return ProtocolError(
        f"{what} is damaged at byte {offset}: expected {expected}. Start the worker again; if this comes back, "
        "something between source and worker changes bytes, or the source speaks a protocol that is unknown here."
    )
