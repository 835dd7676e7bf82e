"""Connections to a real source: what every session is set to, and what each refusal says."""

from __future__ import annotations

import asyncio

import pytest

from cdc.errors import CdcError, ConfigurationError, SetupError, SourceUnavailable
from cdc.lsn import Lsn
from cdc.source.connection import connect, place, source_errors
from cdc.source.replication import ReplicationConnection
from tests.conftest import MakeRole, MakeServer
from tests.database import Database


async def refusal(dsn: str, *, walsender: bool = False) -> CdcError:
    with pytest.raises(CdcError) as caught:
        await (ReplicationConnection.open(dsn, "cdc") if walsender else connect(dsn, application_name="cdc"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return caught.value


async def test_a_session_reads_values_the_same_on_every_server(source: Database) -> None:
    source.execute(f"ALTER DATABASE \"{source.name}\" SET datestyle = 'German'")
    source.execute(f"ALTER DATABASE \"{source.name}\" SET statement_timeout = '1s'")
    async with await connect(source.dsn, application_name="cdc test") as connection:
        cursor = await connection.execute(
            "SELECT current_setting('datestyle'), current_setting('statement_timeout'), current_setting('search_path'),"
            " current_setting('client_encoding'), current_setting('row_security'), current_setting('application_name')"
        )
        assert await cursor.fetchone() == ("ISO, MDY", "0", "pg_catalog", "UTF8", "off", "cdc test")


async def test_an_lsn_goes_there_and_back_as_an_lsn(source: Database) -> None:
    async with await connect(source.dsn, application_name="cdc") as connection:
        cursor = await connection.execute("SELECT %s, %s - '0/1'::pg_lsn", (Lsn.parse("1/A0"), Lsn.parse("0/11")))
        assert await cursor.fetchone() == (Lsn.parse("1/A0"), 16)


async def test_options_of_the_dsn_are_kept(source: Database) -> None:
    dsn = f"{source.dsn}?options=-c%20work_mem%3D7MB"
    async with await connect(dsn, application_name="cdc") as connection:
        cursor = await connection.execute("SELECT current_setting('work_mem'), current_setting('TimeZone')")
        assert await cursor.fetchone() == ("7MB", "UTC")


async def test_a_wrong_password_says_so_and_where_without_repeating_it(source: Database, make_role: MakeRole) -> None:
    role = make_role("LOGIN", password="right")
    error = await refusal(source.dsn_as(role, "hunter2-wrong"))
    assert isinstance(error, SetupError)
    assert "user or the password is wrong" in str(error)
    assert source.name in str(error)
    assert "hunter2" not in str(error)


async def test_a_wrong_database_says_so(source: Database) -> None:
    error = await refusal(source.dsn.replace(source.name, "no-such-database"))
    assert isinstance(error, SetupError)
    assert "/no-such-database: the database does not exist" in str(error)


async def test_a_role_that_does_not_exist_says_so(source: Database) -> None:
    error = await refusal(source.dsn_as("nobody-of-that-name"))
    assert isinstance(error, SetupError)
    assert "role does not exist" in str(error)


async def test_a_host_where_nothing_listens_is_temporary(unused_tcp_port: int) -> None:
    error = await refusal(f"postgresql://cdc:secret@127.0.0.1:{unused_tcp_port}/x")
    assert isinstance(error, SourceUnavailable)
    assert "nothing listens there" in str(error)
    assert "secret" not in str(error)


async def test_a_host_that_cannot_be_resolved_is_temporary() -> None:
    error = await refusal("postgresql://cdc:secret@no-such-host.invalid/x")
    assert isinstance(error, SourceUnavailable)
    assert "cannot be resolved" in str(error)


async def test_a_dsn_that_cannot_be_parsed_is_not_repeated() -> None:
    error = await refusal("postgresql://cdc:top%secret@host/x")
    assert isinstance(error, ConfigurationError)
    assert "top" not in str(error)


async def test_a_role_without_the_replication_attribute_gets_the_sql(source: Database, make_role: MakeRole) -> None:
    role = make_role("LOGIN")
    error = await refusal(source.dsn_as(role), walsender=True)
    assert isinstance(error, SetupError)
    assert "REPLICATION attribute" in str(error)
    assert error.sql == f'ALTER ROLE "{role}" REPLICATION;'


async def test_too_many_walsenders_is_temporary(own_server: MakeServer) -> None:
    server = own_server(max_wal_senders=1, max_replication_slots=2)
    async with await ReplicationConnection.open(server.dsn(), "first"):
        error = await refusal(server.dsn(), walsender=True)
    assert isinstance(error, SourceUnavailable)
    assert "max_wal_senders" in str(error)


async def test_an_error_of_a_statement_keeps_no_value(source: Database) -> None:
    source.execute("CREATE TABLE public.t (secret text PRIMARY KEY)")
    async with await connect(source.dsn, application_name="cdc") as connection:
        await connection.execute("INSERT INTO public.t VALUES ('very-secret')")
        with pytest.raises(CdcError) as caught, source_errors("write a row"):
            await connection.execute("INSERT INTO public.t VALUES ('very-secret')")
    assert "very-secret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.value.server is not None
    assert (caught.value.server.sqlstate, caught.value.server.constraint) == ("23505", "t_pkey")


async def test_a_session_that_is_terminated_is_temporary(source: Database) -> None:
    async with await connect(source.dsn, application_name="cdc") as connection:
        source.execute("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        with pytest.raises(SourceUnavailable), source_errors("answer"):
            await connection.execute("SELECT 1")


async def test_a_connect_that_is_cancelled_leaves_no_session(source: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await connect(source.dsn, application_name="cancelled")
    assert source.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled'") == 0


def test_a_place_shows_no_password() -> None:
    assert place("postgresql://u:p@db.example:5433/app") == "db.example:5433/app"
    assert place("host=db.example user=u password=p dbname=app") == "db.example/app"
