"""What a delivery asks of databases besides applying: sessions on its target, and questions that take nothing.

Nothing here becomes the owner of a target. A target that cannot be asked now is asked the next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from cdc.changes.column_numbers import ColumnNumbers
from cdc.changes.column_origin import ColumnOrigin
from cdc.changes.relation import Relation
from cdc.config import Config, SourceConfig, for_asyncpg
from cdc.errors import CdcError, ResyncNeeded, SourceUnavailable
from cdc.service.taking import say_if_lost
from cdc.source.catalog import read_object_names, read_origins, with_types_of_now
from cdc.source.column_numbers import read_column_numbers
from cdc.source.connection import Connection
from cdc.source.connection import connect as connect_source
from cdc.target import migrations, position
from cdc.target.history import SourceHistory
from cdc.target.session import Session, connect

ASK_SOURCE_S = 5.0
"""How long the source may take to answer a question about its catalog: a batch waits for it."""


async def open_session(config: Config, name: str) -> Session:
    """A session on the target called ``name``, as the worker uses it."""
    return await connect(
        for_asyncpg(config.targets[name].dsn.get_secret_value()),
        application_name=f"cdc {config.pipeline}",
        target=name,
        lock_timeout_ms=int(config.worker.lock_timeout_s * 1000),
        timeout_s=config.worker.connect_timeout_s,
    )


async def compare(config: Config, name: str, key: str, history: SourceHistory) -> tuple[ResyncNeeded | None, bool]:
    """Say in the target that it needs a resync, if it does: the slot is one that nobody can stream from.

    Returns what was said, and whether the target may ever have been loaded.
    """
    try:
        session = await open_session(config, name)
    except CdcError:
        return None, True
    try:
        if len(await migrations.pending(session)) == len(migrations.known()):
            return None, False
        refusal = await say_if_lost(session, key, history)
        state = await position.read(session, key)
    except CdcError:
        return None, True
    finally:
        await session.close()
    return refusal, state is not None and state.position is not None


async def waits_for_load(config: Config, name: str, key: str) -> str | None:
    """The target's state, if a worker can do nothing for it: it is being loaded, or was never loaded."""
    try:
        session = await open_session(config, name)
        try:
            state = await position.read(session, key)
        finally:
            await session.close()
    except CdcError:
        return None
    return state.state if state is not None and (state.state == "loading" or state.position is None) else None


class SourceCatalog:
    """What only the source's catalog can answer. A session for each question; all of them raise `SourceUnavailable`."""

    def __init__(self, source: SourceConfig) -> None:
        self._source = source

    async def read_origins(self, relation: Relation) -> Mapping[str, ColumnOrigin]:
        """How the columns of a relation came to be: asked once for a table that stops."""
        async with self._session() as connection:
            return (await read_origins(connection, [relation.oid], self._source)).get(relation.oid, {})

    async def read_numbers(self, tables: Collection[int]) -> Mapping[int, ColumnNumbers]:
        """Which columns tables (oids) have now: asked once for each relation that is new in a stream."""
        async with self._session() as connection:
            return (await read_column_numbers(connection, tables)).tables

    async def read_types(self, relation: Relation) -> Relation:
        """The relation with its types as they are now: asked for a table that stops, before it goes on."""
        async with self._session() as connection:
            return await with_types_of_now(connection, relation)

    async def read_names(self, objects: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """The names of objects that values of reg* types hold: asked once for each batch that has any."""
        async with self._session() as connection:
            return await read_object_names(connection, objects)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        source = self._source
        try:
            async with (
                asyncio.timeout(ASK_SOURCE_S),
                await connect_source(
                    source.dsn.get_secret_value(), application_name=f"{source.application_name} catalog"
                ) as connection,
            ):
                yield connection
        except TimeoutError:
            raise SourceUnavailable(f"the source does not answer within {ASK_SOURCE_S:g} seconds") from None
