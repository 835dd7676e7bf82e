"""A following target whose tables hold their rows, and nothing else yet: where the tests of definitions begin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cdc.bootstrap import definitions
from cdc.bootstrap.copying import Job, TargetAccess
from cdc.bootstrap.courtesy import Copies
from cdc.bootstrap.definitions import BuildTarget
from cdc.config import Config
from cdc.identifiers import quote_list, quote_qualified
from cdc.routing.router import build_routes
from cdc.routing.target_routes import TargetRoutes
from cdc.source.catalog import read_tables
from cdc.source.connection import connect as connect_source
from cdc.target import migrations, schema, table_state
from cdc.target.run_record import begin_run
from cdc.target.session import Session, connect
from tests.bootstrap import make_config
from tests.database import Database


@dataclass
class Stage:
    """One source, one target that follows, and how to build on it."""

    source: Database
    target: Database
    config: Config
    jobs: list[Job]
    session: Session
    build_target: BuildTarget
    said: list[str] = field(default_factory=list)

    async def build(self, *, concurrently: bool = False) -> list[str]:
        self.said.clear()
        async with await connect_source(self.source.dsn, application_name="cdc test") as connection:
            return await definitions.build(
                self.jobs,
                {self.build_target.access.name: self.build_target},
                connection,
                concurrently=concurrently,
                config=self.config,
                say=self.said.append,
            )

    def indexes(self, namespace: str = "public") -> dict[str, str]:
        return index_definitions(self.target, namespace)

    def steps(self) -> list[tuple[str, str]]:
        return self.target.fetch(
            "SELECT kind, object FROM cdc.bootstrap_step WHERE finished_at IS NOT NULL ORDER BY 1, 2"
        )


def index_definitions(database: Database, namespace: str = "public") -> dict[str, str]:
    return dict(database.fetch("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s", namespace))


def constraints(database: Database, kind: str, namespace: str = "public") -> dict[str, str]:
    """The definitions of constraints by name; tables and columns are in them without their schema."""
    return dict(
        database.fetch(
            "SELECT conname, replace(pg_get_constraintdef(k.oid), %s || '.', '') FROM pg_constraint k"
            " JOIN pg_namespace n ON n.oid = connamespace WHERE contype = %s AND n.nspname = %s",
            namespace,
            kind,
            namespace,
        )
    )


def copy_rows(source: Database, of: str, target: Database, to: str, columns: str) -> None:
    """What a table holds, as text."""
    with (
        source.connection().cursor() as reader,
        target.connection().cursor() as writer,
        reader.copy(f"COPY {of} ({columns}) TO STDOUT".encode()) as rows,
        writer.copy(f"COPY {to} ({columns}) FROM STDIN".encode()) as sink,
    ):
        for chunk in rows:
            sink.write(chunk)


@asynccontextmanager
async def stage(
    source: Database,
    target: Database,
    *,
    bootstrap: Mapping[str, Any] | None = None,
    jobs: int = 3,
    is_beside: bool = False,
    only: frozenset[str] | None = None,
    is_loaded: bool = False,
    **wanted: Any,
) -> AsyncIterator[Stage]:
    """Create the tables that the target gets, with rows and primary keys, and record them as streaming.

    ``wanted`` is the target's configuration; all of ``public`` unless given. ``is_loaded``: an earlier stage did that.
    """
    plain = make_config(source, {"internal": {"dsn": target.dsn, **(wanted or {"include": ["public.*"]})}})
    config = Config.model_validate(
        {
            "source": {"dsn": source.dsn, "slot": plain.source.slot},
            "targets": {"internal": {"dsn": target.dsn, **(wanted or {"include": ["public.*"]})}},
            "bootstrap": dict(bootstrap or {}),
        }
    )
    async with AsyncExitStack() as stack:
        async with await connect_source(source.dsn, application_name="cdc test") as connection:
            tables = {table.name: table for table in await read_tables(connection) if table.is_publishable}
        columns = {name: [column.name for column in table.relation.columns] for name, table in tables.items()}
        settings = config.targets["internal"]
        routes = TargetRoutes(settings, is_beside, only).places(build_routes("internal", settings, columns))
        session = await connect(target.dsn, application_name="cdc test", target="internal")
        stack.push_async_callback(session.close)
        await migrations.migrate(session)
        target.execute(
            "INSERT INTO cdc.target (pipeline, target, fence) VALUES ('cdc', 'internal', 7) ON CONFLICT DO NOTHING"
        )
        for route in routes:
            table = tables[route.source_name]
            new = schema.new_table(route, table.relation, not_null=table.not_null, primary_key=table.primary_key)
            if not is_loaded:
                await schema.create_table(session, new)
                names = quote_list(column.name for column in new.columns if column.name != route.deleted_at)
                copy_rows(source, quote_qualified(*route.source_name.split(".", 1)), target, new.sql_name, names)
                await schema.add_primary_key(session, new)
            await table_state.mark_streaming(session, "cdc", route, consistent_from=None, created_by_cdc=True)
        states = {state.source_name: state for state in await table_state.read(session, "cdc")}

        async def ready() -> Session:
            return session

        record = await begin_run(ready, "cdc", "internal", "live")
        workers = [Job(source.dsn, "cdc test", Copies()) for _ in range(jobs)]
        for worker in workers:
            stack.push_async_callback(worker.close)
        access = TargetAccess("internal", target.dsn, "cdc", 7)
        yield Stage(source, target, config, workers, session, BuildTarget(access, settings, routes, states, record))
