"""What a person sees of the demo: its steps, and between them how far behind every target is.

On a terminal the picture of ``cdc status --watch`` stands below the steps and is renewed twice a second. Elsewhere, and
with ``--json``, it is a line every few seconds (then on standard error: standard output has the verdict alone).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from cdc.config import Config
from cdc.observe.status import PipelineStatus, duration, size
from cdc.service.state import Observer

PICTURE_INTERVAL_S = 0.5
LINE_INTERVAL_S = 5.0

RATE_WINDOW_S = 5.0
"""Rows per second are a mean over so long: the counters of a target are written every other second."""


class Screen:
    """Where the demo says what it does."""

    def __init__(self, *, as_json: bool) -> None:
        self._console = Console(stderr=as_json, highlight=False)
        self._is_live = self._console.is_terminal and not as_json
        self._steps = 0
        self._stop = asyncio.Event()

    def step(self, text: str) -> None:
        """A step begins, in one sentence."""
        self._steps += 1
        self._console.print(f"[bold cyan]{self._steps}[/bold cyan] {escape(text)}", soft_wrap=True)

    def detail(self, text: str) -> None:
        """Something that belongs to the step."""
        self._console.print(f"  [dim]{escape(text)}[/dim]", soft_wrap=True)

    def show(self, renderable: object) -> None:
        """Anything that rich can show."""
        self._console.print(renderable)

    def stop(self) -> None:
        """No more pictures."""
        self._stop.set()

    async def follow(self, config: Config, transactions: Callable[[], int]) -> None:
        """Show the pipeline until `stop`. ``transactions`` counts what the source has committed."""
        seen: deque[PipelineStatus] = deque()
        begun_at = asyncio.get_running_loop().time()
        async with Observer(config) as observer:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while not self._stop.is_set():
                    seen.append(await observer.look())
                    while len(seen) > 2 and (seen[-1].at - seen[1].at).total_seconds() >= RATE_WINDOW_S:
                        seen.popleft()
                    if self._is_live:
                        live.update(seen[-1].render(seen[0], all_tables=False), refresh=True)
                    else:
                        elapsed = asyncio.get_running_loop().time() - begun_at
                        self._console.print(
                            f"  {elapsed:4.0f} s  {transactions():,} transactions; {_line(seen[-1], seen[0])}",
                            soft_wrap=True,
                        )
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PICTURE_INTERVAL_S if self._is_live else LINE_INTERVAL_S):
                            await self._stop.wait()


def _line(seen: PipelineStatus, before: PipelineStatus) -> str:
    """All targets in one line."""
    elapsed = (seen.at - before.at).total_seconds()
    parts = []
    for now, then in zip(seen.targets, before.targets, strict=True):
        rate = f"{max(0, now.rows_applied - then.rows_applied) / elapsed:,.0f}" if elapsed else "-"
        parts.append(
            f"{now.name}: {now.state}, {duration(now.lag_s)} and {size(now.lag_bytes)} behind, {rate} rows/s, "
            f"{len(now.tables)} tables" + (f", {len(now.stopped_tables)} stopped" if now.stopped_tables else "")
        )
    return "; ".join(parts)
