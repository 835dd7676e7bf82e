"""Sessions on a real server: their settings hold, whatever is configured there."""

from __future__ import annotations

import socket

import pytest

from cdc.errors import CdcError, SetupError, TargetUnavailable
from cdc.target.session import SETTINGS, connect, target_errors
from tests.conftest import MakeDatabase, MakeRole


async def test_settings_hold_whatever_the_database_configures(make_target: MakeDatabase) -> None:
    target = make_target()
    for setting, value in (
        ("DateStyle", "German"),
        ("synchronous_commit", "off"),
        ("statement_timeout", "1"),
        ("search_path", "public"),
        ("default_transaction_isolation", "serializable"),
    ):
        target.execute(f'ALTER DATABASE "{target.name}" SET {setting} = {value}')
    session = await connect(target.dsn, application_name="cdc test")
    try:
        for setting, value in SETTINGS.items():
            shown = await session.connection.fetchval("SELECT current_setting($1)", setting)
            assert shown.split(",")[0] == value, setting
        assert await session.connection.fetchval("SHOW lock_timeout") == "10s"
        assert await session.connection.fetchval("SHOW application_name") == "cdc test"
        assert session.server_version == int(target.fetchval("SHOW server_version_num"))
    finally:
        await session.close()


async def test_hazard_20_a_target_that_vanishes_in_mid_batch_is_noticed_within_a_minute(
    make_target: MakeDatabase,
) -> None:
    session = await connect(make_target().dsn, application_name="cdc test")
    try:
        transport = getattr(session.connection, "_transport", None)
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        # Sent data that nobody acknowledges: keepalives would not be sent meanwhile. Milliseconds.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    finally:
        await session.close()


async def test_a_session_says_whether_triggers_are_disabled(make_target: MakeDatabase, make_role: MakeRole) -> None:
    target = make_target()
    for dsn, expected in ((target.dsn, True), (target.dsn_as(make_role("LOGIN")), False)):
        session = await connect(dsn, application_name="cdc test")
        assert session.triggers_disabled is expected
        await session.close()


async def test_hazard_16_a_lock_is_not_waited_for_for_ever(make_target: MakeDatabase) -> None:
    target = make_target()
    target.execute("CREATE TABLE public.t (id int)")
    session = await connect(target.dsn, application_name="cdc test", lock_timeout_ms=50)
    try:
        with target.transaction() as report:
            report.execute("SELECT * FROM public.t")
            with (
                pytest.raises(TargetUnavailable, match="lock was not granted"),
                target_errors("truncating", session.where),
            ):
                await session.connection.execute("TRUNCATE public.t")
    finally:
        await session.close()


async def test_a_wrong_dsn_gets_one_sentence_without_the_password(
    make_target: MakeDatabase, make_role: MakeRole
) -> None:
    target = make_target()
    role = make_role("LOGIN", password="right-secret")
    cases: list[tuple[str, type[CdcError], str]] = [
        (target.dsn_as(role, "wrong-secret"), SetupError, "the password is wrong"),
        (target.dsn_as("nobody-of-that-name", "a-secret"), SetupError, "role may not connect"),
        (target.server.dsn("no-such-database"), SetupError, "database does not exist"),
        ("postgresql://u:a-secret@127.0.0.1:1/db", TargetUnavailable, "nothing listens"),
        ("postgresql://u:a-secret@no-such-host.invalid/db", TargetUnavailable, "cannot be resolved"),
    ]
    for dsn, expected, says in cases:
        with pytest.raises(expected, match=says) as caught:
            await connect(dsn, application_name="cdc test", target="internal")
        assert "secret" not in str(caught.value)
        assert "target internal (" in str(caught.value)


async def test_a_lost_connection_is_transient(make_target: MakeDatabase) -> None:
    target = make_target()
    session = await connect(target.dsn, application_name="doomed")
    target.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'doomed'")
    for _ in range(2):
        with pytest.raises(TargetUnavailable), target_errors("reading", session.where):
            await session.connection.execute("SELECT 1")
    await session.close()
