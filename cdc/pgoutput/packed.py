"""Messages of the stream, packed where the compiled core is there: `Messages`, and what is asked of many at once.

Packed or not, messages are a sequence of bytes. What only looks for something does so here, without an object per
message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdc.pgoutput import framing
from cdc.pgoutput.compiled import is_compiled
from cdc.pgoutput.framing import Keepalive

if TYPE_CHECKING or is_compiled():
    from cdc.pgoutput._messages import Messages
else:

    class Messages(tuple):
        """Stands for the compiled class where it is not used; nothing is an instance of it."""


if is_compiled():
    from cdc.pgoutput import _messages

__all__ = ["Messages", "find_kind", "size_bytes", "split_frames"]


def split_frames(frames: Sequence[bytes]) -> tuple[Sequence[bytes], list[Keepalive]]:
    """What `cdc.pgoutput.framing.split_frames` does, packed where that is possible."""
    if not is_compiled():
        return framing.split_frames(frames)
    return _messages.split_frames(frames)


def find_kind(messages: Sequence[bytes], kinds: bytes, start: int = 0) -> int:
    """The index of the first message, from ``start`` on, of one of the ``kinds`` (first bytes); -1 without one."""
    if isinstance(messages, Messages):
        return messages.find(kinds, start)
    for index in range(start, len(messages)):
        if messages[index][:1] and messages[index][0] in kinds:
            return index
    return -1


def size_bytes(messages: Sequence[bytes]) -> int:
    """Bytes of all messages."""
    return messages.size_bytes if isinstance(messages, Messages) else sum(map(len, messages))
