"""Two generations of a target in one database, for the tests of the swap: no source, no lane, only what they left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from cdc.identifiers import quote_qualified
from cdc.lsn import Lsn
from cdc.routing.route import Route
from cdc.target import migrations, position
from cdc.target.generation import generation_key
from cdc.target.session import Session, connect
from cdc.target.swap import SwapResult, TableSwap, swap
from tests.database import Database

PIPELINE = "cdc"
OLD_POSITION = Lsn.parse("1/100")
NEW_POSITION = Lsn.parse("1/200")
INCARNATION = UUID("00000000-0000-0000-0000-000000000001")
COLUMNS = '(id int PRIMARY KEY, name text, "group" int)'


def table_swap(name: str = "users", schema: str = "public", *, created_by_cdc: bool = True) -> TableSwap:
    """The swap of a table that has its source's name."""
    return TableSwap(Route(schema, name, schema, name), created_by_cdc)


@dataclass(slots=True)
class Generations:
    """The database, a session of ours on it, and what the swap said and asked."""

    database: Database
    session: Session
    said: list[str] = field(default_factory=list)
    asked: list[Lsn] = field(default_factory=list)

    async def caught_up(self, held: Lsn) -> Lsn:
        """A lane that is at its end already."""
        self.asked.append(held)
        return NEW_POSITION

    async def swap(
        self, *swaps: TableSwap, whole: bool = True, patience_s: float | None = 20, session: Session | None = None
    ) -> SwapResult:
        """The swap, of ``users`` unless tables are given."""
        return await swap(
            session or self.session,
            pipeline=PIPELINE,
            swaps=swaps or (table_swap(),),
            whole=whole,
            caught_up=self.caught_up,
            say=self.said.append,
            patience_s=patience_s,
        )

    def make(self, *names: str, rows: int = 3, columns: str = COLUMNS, new_columns: str | None = None) -> None:
        """Tables of both generations: the present one has ``rows`` rows named old, the new one one more, named new."""
        self.database.execute("CREATE SCHEMA IF NOT EXISTS cdc_new_public")
        for name in names:
            for schema, word, count in (("public", "old", rows), ("cdc_new_public", "new", rows + 1)):
                table = quote_qualified(schema, name)
                shape = new_columns if new_columns is not None and word == "new" else columns
                self.database.execute(f"CREATE TABLE {table} {shape}")
                self.database.execute(
                    f"INSERT INTO {table} (id, name) SELECT n, '{word}' FROM generate_series(1, {count}) AS n"
                )
                key = PIPELINE if word == "old" else generation_key(PIPELINE)
                self.record(key, name, schema)

    def record(self, key: str, name: str, schema: str, state: str = "streaming") -> None:
        """A row of cdc.target_table."""
        self.database.execute(
            "INSERT INTO cdc.target_table (pipeline, source_schema, source_table, target_schema, target_table, state,"
            " created_by_cdc) VALUES (%s, 'public', %s, %s, %s, %s, true)",
            key,
            name,
            schema,
            name,
            state,
        )

    def names(self, relation: str = "users") -> set[str]:
        """Whose rows a table or view of ``public`` shows: old, new."""
        return {name for (name,) in self.database.fetch(f'SELECT DISTINCT name FROM public."{relation}"')}

    def schemas(self) -> list[str]:
        """The schemas for tables that come and go."""
        rows = self.database.fetch(
            r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cdc\_new%' OR nspname LIKE 'cdc\_old%' ORDER BY 1"
        )
        return [name for (name,) in rows]

    def state(self) -> tuple[Sequence[object], ...]:
        """All that the cdc schema says about who holds what, and where every table is."""
        return tuple(
            self.database.fetch(query)
            for query in (
                "SELECT pipeline, fence, position, state FROM cdc.target ORDER BY 1",
                "SELECT pipeline, source_table, target_schema, position, state FROM cdc.target_table ORDER BY 1, 2",
                "SELECT c.oid, c.relname, c.relnamespace::regnamespace::text, c.relacl::text, c.reloptions::text"
                " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1",
            )
        )


@asynccontextmanager
async def generations(database: Database, dsn: str | None = None) -> AsyncIterator[Generations]:
    """A target with a present generation at OLD_POSITION and one beside it at NEW_POSITION; without tables as yet."""
    session = await connect(dsn or database.dsn, application_name="cdc swap", target="internal")
    try:
        await migrations.migrate(session)
        for key, at in ((PIPELINE, OLD_POSITION), (generation_key(PIPELINE), NEW_POSITION)):
            await position.register(session, key, "internal")
            database.execute(
                "UPDATE cdc.target SET position = %s::pg_lsn, system_identifier = '7', timeline = 1, slot = 'cdc',"
                " incarnation = %s, state = 'streaming', fence = 5 WHERE pipeline = %s",
                str(at),
                str(INCARNATION),
                key,
            )
        yield Generations(database, session)
    finally:
        await session.close()


@asynccontextmanager
async def as_owner(both: Generations, role: str) -> AsyncIterator[Generations]:
    """The same, seen by a role that is no superuser and owns what its own setup and load would have made."""
    both.database.execute(
        f"""
        GRANT CREATE, TEMPORARY ON DATABASE "{both.database.name}" TO "{role}";
        GRANT CREATE, USAGE ON SCHEMA public TO "{role}";
        ALTER SCHEMA cdc_new_public OWNER TO "{role}"; ALTER TABLE users OWNER TO "{role}";
        ALTER TABLE cdc_new_public.users OWNER TO "{role}";
        GRANT USAGE ON SCHEMA cdc TO "{role}"; GRANT ALL ON ALL TABLES IN SCHEMA cdc TO "{role}";
        """
    )
    session = await connect(both.database.dsn_as(role), application_name="cdc swap", target="internal")
    try:
        yield Generations(both.database, session)
    finally:
        await session.close()
