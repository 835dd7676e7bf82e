"""What one target has still to apply: parts of transactions, in order, bounded in bytes.

The lane puts, the target's applier takes. A queue counts what its parts take of memory; targets that want the same
tables share their parts, so the queues of a lane take between the longest of them and their sum.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from cdc.changes.transaction import Part
from cdc.lsn import Lsn


class PartQueue:
    """Parts for one target, first in first out.

    ``pull``, where it is given, hands over what the lane has read and still keeps together: it is called when nothing
    is left here. ``is_hungry``: somebody waits for parts at this moment.

    ``full`` is a state, not a wall: the lane that sees it stops reading, and one part (bounded by itself) may be put
    beyond the limit. ``gone`` is the commit record of the last transaction that was forgotten, if any was.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: deque[Part] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.size = 0
        self.received = Lsn(0)
        self.gone: Lsn | None = None
        self.closed = False
        self.pull: Callable[[], None] | None = None
        self.is_hungry = False

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.size >= self._limit_bytes

    @property
    def idle_at(self) -> Lsn | None:
        """Up to where the stream is known to hold nothing more for this target; `None` while parts are waiting."""
        return None if self._parts else self.received

    def put(self, part: Part) -> None:
        """Add a part at the end."""
        self._parts.append(part)
        self.size += part.size
        if self.full:
            self._room.clear()
        self._news.set()

    def note(self, received: Lsn) -> None:
        """Remember that everything committed before ``received`` has been put; wakes whoever waits for news."""
        self.received = max(self.received, received)
        self._news.set()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._news.set()

    def close(self) -> None:
        """Let the applier finish what it has begun, and take nothing more."""
        self.closed = True
        self._news.set()
        self._room.set()

    def clear(self) -> None:
        """Forget every part that is waiting."""
        self._parts.clear()
        self.size = 0
        self._room.set()

    def take(self, limit_bytes: int) -> list[Part]:
        """Remove whole transactions from the front, up to ``limit_bytes`` but at least one.

        A large transaction comes alone, one part at a call.
        """
        taken: list[Part] = []
        size = 0
        while self._parts:
            part = self._parts[0]
            if taken and (size + part.size > limit_bytes or not part.is_last):
                break
            taken.append(self._parts.popleft())
            size += part.size
            if not (part.is_first and part.is_last):
                break
        self.size -= size
        if not self.full:
            self._room.set()
        return taken

    def without(self, parts: list[Part], is_held: Callable[[Part], bool]) -> list[Part]:
        """Parts that were taken, without those that the target holds: these are forgotten."""
        kept = []
        for part in parts:
            if is_held(part):
                self.forget(part)
            else:
                kept.append(part)
        return kept

    def forget(self, part: Part) -> None:
        """A part that was taken is of no more use: only the slot has it, and this stream does not bring it again."""
        self.gone = part.commit_lsn if self.gone is None else max(self.gone, part.commit_lsn)

    def put_back(self, parts: list[Part]) -> None:
        """Return parts to the front, in their order."""
        self._parts.extendleft(reversed(parts))
        self.size += sum(part.size for part in parts)
        self._news.set()

    async def wait_for_news(self, timeout_s: float | None = None) -> None:
        """Wait until a part is there, `note` was called, the queue is closed, or ``timeout_s`` has passed."""
        if self._parts or self.closed:
            return
        self._news.clear()
        if self.pull is not None:
            self.pull()
            if self._parts:
                return
        self.is_hungry = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self.is_hungry = False

    async def wait_for_room(self) -> None:
        """Wait until the queue is not full."""
        await self._room.wait()
