"""One connection string for two drivers, and never its password."""

from __future__ import annotations

from typing import Any

import asyncpg.connect_utils
import pytest

from cdc.config import for_asyncpg, redact
from cdc.config.dsn import parse, place

AWKWARD = "p @:/?#&=%'\"+ß"


def as_asyncpg_reads(dsn: str) -> tuple[list[object], Any]:
    addresses, parameters = vars(asyncpg.connect_utils)["_parse_connect_dsn_and_args"](
        dsn=for_asyncpg(dsn),
        host=None,
        port=None,
        user=None,
        password=None,
        passfile=None,
        database=None,
        ssl=None,
        service=None,
        servicefile=None,
        direct_tls=None,
        server_settings=None,
        target_session_attrs=None,
        krbsrvname=None,
        gsslib=None,
    )
    return list(addresses), parameters


@pytest.mark.parametrize(
    ("dsn", "addresses"),
    [
        ("postgresql://u:secret@h:5433/d", [("h", 5433)]),
        ("postgres://u:secret@[::1]:5433/d", [("::1", 5433)]),
        ("host=h port=5433 dbname=d user=u password=secret", [("h", 5433)]),
        ("host=a,b port=1,2 dbname=d user=u password=secret", [("a", 1), ("b", 2)]),
        ("postgresql://u:secret@/d?host=/var/run/postgresql&port=5433", ["/var/run/postgresql/.s.PGSQL.5433"]),
        ("hostaddr=127.0.0.1 port=5433 dbname=d user=u password=secret", [("127.0.0.1", 5433)]),
    ],
)
def test_asyncpg_reads_the_same_as_libpq(dsn: str, addresses: list[object]) -> None:
    read, parameters = as_asyncpg_reads(dsn)
    assert read == addresses
    assert (parameters.user, parameters.password, parameters.database) == ("u", "secret", "d")


def test_awkward_names_and_passwords_arrive_unchanged() -> None:
    quoted = AWKWARD.replace("\\", "\\\\").replace("'", "\\'")
    _, parameters = as_asyncpg_reads(f"host=h dbname='{quoted}' user='{quoted}' password='{quoted}'")
    assert (parameters.user, parameters.password, parameters.database) == (AWKWARD,) * 3


def test_what_only_libpq_knows_is_not_sent_to_the_server() -> None:
    dsn = "host=h user=u dbname=d connect_timeout=3 keepalives_idle=5 channel_binding=prefer application_name=x"
    _, parameters = as_asyncpg_reads(dsn)
    assert parameters.server_settings == {"application_name": "x"}


@pytest.mark.parametrize(
    ("dsn", "where", "redacted"),
    [
        ("postgresql://u:secret@h:5433/d", "h:5433/d", "postgresql://u@h:5433/d"),
        ("host=h dbname=d password=secret", "h/d", "postgresql://h/d"),
        ("postgresql://u:secret@h", "h/u", "postgresql://u@h/"),
        (
            "host=/run/pg dbname=d password=secret sslmode=require sslpassword=secret",
            "/run/pg/d",
            "postgresql://?dbname=d&host=/run/pg&sslmode=require",
        ),
    ],
)
def test_a_database_is_named_without_its_password(dsn: str, where: str, redacted: str) -> None:
    assert place(parse(dsn)) == where
    assert redact(dsn) == redacted
    assert {k: v for k, v in parse(dsn).items() if "password" not in k} == parse(redacted)
