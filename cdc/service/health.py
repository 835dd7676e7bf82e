"""How one target is: what `cdc status`, the metrics, the log and its lane are told, from one place."""

from __future__ import annotations

import asyncio

import structlog

from cdc.errors import CdcError, ResyncNeeded, TargetLoading, TerminalError
from cdc.observe.metrics import TargetMetrics

_log = structlog.get_logger(__name__)


class Health:
    """The state of one target in this process.

    ``state`` is one of `cdc.observe.metrics.STATES`, ``trouble`` says in a sentence what is wrong, and ``is_taken``
    whether the target is ours now. ``needs_nothing`` is said of one that is being loaded and has no position yet.
    """

    def __init__(self, name: str, metrics: TargetMetrics) -> None:
        self.name = name
        self.metrics = metrics
        self.state = "new"
        self.trouble: str | None = None
        self.is_taken = False
        self.needs_nothing = False
        self._was_taken = False
        self._news = asyncio.Event()

    @property
    def is_served(self) -> bool:
        """Whether the stream is of any use to this target: not while only a bootstrap can do something for it."""
        return self.state not in ("needs resync", "loading")

    def begin(self) -> None:
        """Nothing is known of the target any more; it may have been loaded meanwhile."""
        self.is_taken = False
        if not self.is_served:
            self.state = "new"

    def taken(self) -> None:
        """The target is ours, and nothing is wrong."""
        self.is_taken = True
        self.state, self.trouble = "streaming", None
        self.metrics.up(True)
        if self._was_taken:
            self.metrics.reconnected()
        self._was_taken = True
        self.tell()

    def failed(self, error: CdcError, again_in_s: float | None = None) -> None:
        """Something went wrong; it is tried again ``again_in_s`` seconds from now.

        What has been said already is said more quietly.
        """
        is_news = self.trouble != str(error)
        self.trouble = str(error)
        self.is_taken = False
        match error:
            case ResyncNeeded():
                self.state = "needs resync"
                level = _log.error if is_news else _log.info
                level("target needs a resync", target=self.name, reason=str(error))
            case TargetLoading(needs_nothing=needs_nothing):
                self.state = "loading"
                self.needs_nothing = needs_nothing
            case _:
                self.state = "stopped" if isinstance(error, TerminalError) else "retrying"
        if not isinstance(error, TargetLoading):
            self.metrics.error(error)
            if again_in_s is not None:
                self.metrics.retried()
                level = _log.warning if is_news else _log.info
                level(
                    "target failed", target=self.name, reason=str(error), sql=error.sql, again_in_s=round(again_in_s, 1)
                )
        self.metrics.state(self.state)
        self.metrics.up(False)
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next `tell`."""
        await self._news.wait()
