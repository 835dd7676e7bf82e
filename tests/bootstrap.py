"""What the tests of a bootstrap share: a configuration, what a target holds, and something to do while it copies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdc.bootstrap.progress import Silence
from cdc.config import Config
from cdc.lsn import Lsn
from cdc.service import provision
from tests.database import Database, unique_name

NO_FILES = Path(__file__).parent / "no-enrichment"
"""A directory that is not there."""


def make_config(source: Database, targets: dict[str, dict[str, Any]]) -> Config:
    slot = unique_name("slot").replace("-", "_")
    return Config.model_validate(
        {
            "source": {"dsn": source.dsn, "slot": slot, "publication": slot},
            "targets": targets,
            # The files that are shipped for Pix would find the tables of tests that are called like Pix's.
            "bootstrap": {"enrichment": NO_FILES},
        }
    )


async def set_up(config: Config) -> None:
    await provision.setup(config, lambda _: None)


def rows(database: Database, table: str, columns: str = "t.*") -> list[tuple[Any, ...]]:
    return sorted(database.fetch(f"SELECT ({columns})::text FROM {table} AS t"))


def states(target: Database) -> dict[str, tuple[str, Lsn | None]]:
    found = target.fetch(
        "SELECT source_schema || '.' || source_table, state, consistent_from::text FROM cdc.target_table"
    )
    return {name: (state, Lsn.parse(lsn) if lsn else None) for name, state, lsn in found}


class OnBegin(Silence):
    """Does something once, when the first copy of a table is about to begin: the snapshot is older than that."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act
        self.said: list[str] = []

    def begin(self, target: str, table: str, ranges: int) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()

    def say(self, message: str) -> None:
        self.said.append(message)


def slot_position(source: Database, config: Config) -> Lsn:
    return Lsn.parse(
        source.fetchval(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", config.source.slot
        )
    )


def follow(target: Database, *include: str, **more: Any) -> dict[str, Any]:
    return {"dsn": target.dsn, "include": list(include) or ["public.*"], **more}


async def until(condition: Callable[[], object]) -> None:
    """Wait for something in a database, which nobody announces."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
