"""Reading many frames at once: the compiled loop over libpq's ``PQgetCopyData``, where it can be used.

psycopg hands out one frame a call. The compiled loop calls the same function of the same library on the same
connection, and needs no object per frame. The library must be the very one that psycopg has opened the connection with.
So its functions are looked up through psycopg's own module: ``dlsym`` on a loaded module searches the libraries that it
is linked with. Where the module is of another make, or its answers about a connection are not psycopg's, frames are
read one by one, as `cdc.pgoutput.framing` does it.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from psycopg import pq

from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.framing import Keepalive
from cdc.pgoutput.packed import Messages

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

if is_compiled():
    from cdc.source import _copy_data

_MODULES = {"binary": "psycopg_binary.pq", "c": "psycopg_c.pq"}


@dataclass(frozen=True, slots=True)
class _Functions:
    """Addresses of libpq's functions, and those that are called to compare its answers with psycopg's."""

    get_copy_data: int
    free_memory: int
    consume_input: int
    library: ctypes.CDLL


@dataclass(frozen=True, slots=True)
class FrameReader:
    """Takes frames out of the buffer of one connection, which must stay open meanwhile."""

    pgconn: PGconn
    _functions: _Functions

    def take(self, budget_bytes: int, budget_frames: int) -> tuple[Messages, list[Keepalive], int]:
        """Move the frames that are there out of the buffer and the socket, as many as the budget allows.

        Returns messages, keepalives, and what comes next: 1 perhaps more at once, 0 nothing now, -1 the stream has
        ended, -2 libpq reports an error. Raises `ProtocolError` for a damaged frame.
        """
        messages = Messages()
        address = _address(self.pgconn)
        if address is None:
            return messages, [], -2
        keepalives: list[Keepalive] = []
        functions = self._functions
        after = _copy_data.take(
            address,
            functions.get_copy_data,
            functions.free_memory,
            functions.consume_input,
            messages,
            keepalives,
            budget_bytes,
            budget_frames,
        )
        return messages, keepalives, after


def frame_reader(pgconn: PGconn) -> FrameReader | None:
    """The compiled reader for a connection that psycopg has opened; `None` where it cannot be used."""
    functions = _functions() if is_compiled() else None
    address = _address(pgconn)
    if functions is None or address is None:
        return None
    try:
        said = tuple(getattr(functions.library, name)(ctypes.c_void_p(address)) for name in _ASKED)
    except ctypes.ArgumentError:
        return None
    return FrameReader(pgconn, functions) if said == (pgconn.socket, pgconn.backend_pid) else None


def _address(pgconn: PGconn) -> int | None:
    """Where libpq keeps the connection; `None` once it is closed."""
    found: int | None = getattr(pgconn, "pgconn_ptr", None)
    return found


@cache
def _functions() -> _Functions | None:
    library = _library()
    if library is None:
        return None
    try:
        if library.PQlibVersion() != pq.version():
            return None
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _NAMES]
    except AttributeError:
        return None
    get_copy_data, free_memory, consume_input = addresses
    if not get_copy_data or not free_memory or not consume_input:
        return None
    return _Functions(get_copy_data, free_memory, consume_input, library)


_NAMES = ("PQgetCopyData", "PQfreemem", "PQconsumeInput")
_ASKED = ("PQsocket", "PQbackendPID")


def _library() -> ctypes.CDLL | None:
    """The library that psycopg calls, by way of its own module."""
    try:
        if pq.__impl__ == "python":
            # The same library in functions of our own: psycopg's take pointers to its own structures only.
            found: ctypes.CDLL = importlib.import_module("psycopg.pq._pq_ctypes").pq
            return ctypes.CDLL(found._name, handle=found._handle)
        module = importlib.import_module(_MODULES[pq.__impl__])
        return ctypes.CDLL(str(module.__file__))
    except (ImportError, KeyError, AttributeError, OSError):
        return None
