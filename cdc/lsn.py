"""The log sequence number: a byte position in the write-ahead log of one PostgreSQL cluster.

An `Lsn` is an ``int`` (so it compares and subtracts at the speed of one) that prints the way PostgreSQL writes it,
``16/B374D848``: the upper and the lower 32 bits in hexadecimal (PostgreSQL's manual, "pg_lsn Type").
"""

from __future__ import annotations

import re
from typing import Self

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A position in the WAL; the difference of two is a number of bytes."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's notation, for example ``0/16B3748``. Raises ``ValueError`` for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if not spec or spec[-1] not in "dxX" else super().__format__(spec)


INVALID_LSN = Lsn(0)
"""What PostgreSQL calls InvalidXLogRecPtr: no position."""
