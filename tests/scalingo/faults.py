"""What a test wants to go wrong at the stand-in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class _Fault:
    method: str
    path: str
    status: int
    body: object
    headers: dict[str, str]
    is_done_first: bool


@dataclass
class Faults:
    """Answers that are given instead of the right ones, each once, in the order in which they were said."""

    waiting: list[_Fault] = field(default_factory=list)

    def answer(
        self,
        method: str,
        path: str,
        status: int,
        body: object = "",
        *,
        times: int = 1,
        headers: dict[str, str] | None = None,
        is_done_first: bool = False,
    ) -> None:
        """The next requests whose path ends so get this answer; a body that is no text is sent as JSON.

        Status 0 cuts the connection without an answer. ``is_done_first`` does what was asked, and then loses the
        answer.
        """
        self.waiting += [_Fault(method, path, status, body, headers or {}, is_done_first) for _ in range(times)]

    def too_many(self, path: str, *, times: int = 1) -> None:
        """Scalingo's 429: a plain text."""
        for method in ("GET", "POST"):
            self.answer(method, path, 429, "Retry later", times=times)

    def of(self, method: str, path: str) -> _Fault | None:
        """The fault for a request, which is used up."""
        for fault in self.waiting:
            if fault.method == method and path.endswith(fault.path):
                self.waiting.remove(fault)
                return fault
        return None


@dataclass
class Downloads:
    """How archives are sent."""

    knows_ranges: bool = True
    has_length: bool = True
    has_etag: bool = True
    address_lifetime_s: float = 300.0
    """Seconds for which a download address is good."""
    uses: int | None = None
    """How often a download address is good; `None`: as often as one likes."""
    expired_status: int = 403
    cut_after: deque[int] = field(default_factory=deque)
    """Bytes after which a download is cut, one download after the other."""
    stall_after: deque[int] = field(default_factory=deque)
    """Bytes after which nothing comes any more, one download after the other."""
    bytes_per_s: float | None = None
    refuse: deque[int] = field(default_factory=deque)
    """Statuses that the next downloads answer."""
    size_said: int | None = None
    """What a backup says its size is; the archive's unless given."""
