"""Built-in types of which PostgreSQL does not read what it sends: an empty value, in its own binary format.

``oidvectorrecv``, ``int2vectorrecv`` and ``tsqueryrecv`` refuse what their counterparts send for an empty value (tried
on 15 and 18). A column of such a type is staged as text, which is made here of the binary value. Inside of another
value it cannot be text: there an empty one is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from struct import Struct

_COUNT = Struct(">i")
_DISTANCE = Struct(">H")

_OPERAND, _OPERATOR = 1, 2
_NOT, _PHRASE = 1, 4
_SIGNS = {2: "&", 3: "|"}
_WEIGHTS = ((8, "A"), (4, "B"), (2, "C"), (1, "D"))


def _vector(element: Struct, value: bytes) -> bytes:
    """An oidvector or int2vector: the binary format of an array (20 bytes in front), each element with its length."""
    return " ".join(str(number) for _, number in element.iter_unpack(value[20:])).encode()


def _tsquery(value: bytes) -> bytes:
    """A tsquery: a count, and items in Polish notation, of two operands the right one first (tsquerysend)."""
    items: list[tuple[int, int, str]] = []
    position = 4
    for _ in range(_COUNT.unpack_from(value)[0]):
        kind, first, second = value[position], value[position + 1], 0
        position += 2
        if kind == _OPERAND:
            is_prefix = value[position]
            end = value.index(0, position + 1)
            lexeme = value[position + 1 : end].decode()
            marks = "*" * is_prefix + "".join(letter for bit, letter in _WEIGHTS if first & bit)
            quoted = lexeme.replace("\\", "\\\\").replace("'", "''")
            items.append((0, 0, f"'{quoted}'{':' if marks else ''}{marks}"))
            position = end + 1
        else:
            if first == _PHRASE:
                second = _DISTANCE.unpack_from(value, position)[0]
                position += 2
            items.append((first, second, ""))
    stack: list[str] = []
    for operator, distance, operand in reversed(items):
        if not operator:
            stack.append(operand)
        elif operator == _NOT:
            stack.append(f"!({stack.pop()})")
        else:
            right, left = stack.pop(), stack.pop()
            sign = f"<{distance}>" if operator == _PHRASE else _SIGNS[operator]
            stack.append(f"({left}) {sign} ({right})")
    return stack[0].encode() if stack else b""


AS_TEXT: dict[str, Callable[[bytes], bytes]] = {
    "oidvector": partial(_vector, Struct(">iI")),
    "int2vector": partial(_vector, Struct(">ih")),
    "tsquery": _tsquery,
}
"""The text of a value by the name of its type. Damaged bytes raise one of `DAMAGE`."""

DAMAGE = (struct.error, IndexError, ValueError, KeyError)
"""What reading bytes that are no such value raises."""


def is_empty(name: str, value: bytes) -> bool:
    """Whether it is the value that cannot be read back."""
    return len(value) == (4 if name == "tsquery" else 20)
