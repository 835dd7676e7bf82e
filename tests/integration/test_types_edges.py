"""Every built-in type, with values at its edges, by every way: stream, live copy, backup."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from cdc.changes.unreadable import AS_TEXT
from tests.arrivals import Arrivals, arrivals
from tests.conftest import MakeDatabase
from tests.database import Database


class Sql(str):
    """An expression, where a value is not written as a text."""


HAS_INFINITE_INTERVALS = 170_000
HAS_LONG_INTERVALS = 150_000
PRINTS_EVERY_CHAR = 160_000
"""Since when text of the type "char" is ASCII whatever byte it is."""

_ALL_BYTES = "\\x" + bytes(range(256)).hex()
_SNAPSHOTS = ("1:1:", "10:20:10,14,15", "1:9223372036854775807:1")
_TSRANGES = ("empty", "(,)", "[-infinity,infinity]", '["4714-11-24 00:00:00 BC",)', '("2024-02-29 12:00:00.000001",]')

GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "numbers": {
        "bool": ("t", "f"),
        "int2": ("-32768", "32767", "0"),
        "int4": ("-2147483648", "2147483647", "0"),
        "int8": ("-9223372036854775808", "9223372036854775807", "0"),
        "numeric": (
            *("NaN", "Infinity", "-Infinity", "0", "0.000", "-1.10", "99999999999999999999999999.9999999999"),
            *(f"1{'0' * 1000}", f"0.{'0' * 999}1", "1e131071", "1e-16383"),
        ),
        "numeric(10,4)": ("999999.9999", "-0.0001", "NaN"),
        "float4": ("NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e+38", "0.1", "1.1754944e-38"),
        "float8": (
            "NaN",
            "Infinity",
            "-Infinity",
            "-0",
            "5e-324",
            "1.7976931348623157e+308",
            "0.1",
            "0.30000000000000004",
        ),
        "oid": ("0", "1", "4294967295"),
        "xid": ("0", "4294967295"),
        "xid8": ("0", "18446744073709551615"),
        "cid": ("0", "4294967295"),
        "tid": ("(0,0)", "(4294967295,65535)"),
        "pg_lsn": ("0/0", "FFFFFFFF/FFFFFFFF"),
        "pg_snapshot": _SNAPSHOTS,
        "txid_snapshot": _SNAPSHOTS,
        "oidvector": ("", "0 4294967295"),
        "int2vector": ("", "-32768 32767 1"),
    },
    "strings": {
        "text": ("", "é€𝄞", "\\", "\\N", "\\.", "tab\tnew\nline\r", "NULL", "'\"{},()", "x" * 100_000, " "),
        "varchar": ("", "abc ", "NULL"),
        "varchar(3)": ("", "é€𝄞", "a  "),
        "bpchar": ("a", "", "é ", "ab   "),
        "char(5)": ("a", "", "é€𝄞ab"),
        "name": ("", "n" * 63, "É" * 31, 'a"b'),
        "bytea": ("", "\\x00", _ALL_BYTES, "\\x5c5c"),
        "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        "bit(3)": ("101", "000"),
        "bit": ("1", "0"),
        "varbit": ("", "1", "10101010101", "0" * 1000),
        "varbit(9)": ("", "111111111"),
        "refcursor": ("", "my cursor"),
        "xml": (
            "<a/>",
            '<?xml version="1.0" encoding="UTF-8"?><a>é</a>',
            "plain <b>x</b>",
            "",
            "<!-- c --><a b='&lt;'/>",
        ),
        "json": (
            '{"a":1,  "a" : 2}',
            "[]",
            ' "x" ',
            "1e400",
            '"\\u00e9\\n"',
            "null",
            "0.10000000000000000000000000001",
        ),
        "jsonb": ('{"a":1,  "a" : 2}', "[]", "1e400", '"\\u00e9\\n"', "null", "0.10000000000000000000000000001", "{}"),
        "jsonpath": ("$", 'strict $."a b"[*] ? (@.b > 1.50)', "$.a.datetime()", "-$.a[last to 3]"),
        "tsvector": ("", "a:1A,2B,16383 b:3 'c d':1 '''':7C", "word"),
        "tsquery": ("", "a & !b | c:*AB <-> d", "a <3> 'b c'", "!!a"),
        "inet": ("0.0.0.0/0", "192.168.1.5/24", "::1", "ffff::1/16", "255.255.255.255"),
        "cidr": ("0.0.0.0/0", "192.168.1.0/24", "::/0", "2001:db8::/32"),
        "macaddr": ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"),
        "macaddr8": ("00:00:00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff:ff:ff"),
    },
    "times": {
        "date": ("infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "2024-02-29", "0001-01-01 BC"),
        "time": ("00:00", "24:00:00", "23:59:59.999999"),
        "time(3)": ("12:00:00.123", "24:00:00"),
        "timetz": ("00:00:00+15:59", "24:00:00-15:59", "12:34:56.789+05:30:15"),
        "timestamp": (
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
            "1999-12-31 24:00",
        ),
        "timestamp(0)": ("2024-02-29 23:59:59",),
        "timestamptz": (
            *("infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00"),
            *("2024-03-31 02:30:00.000001+01", "2024-10-27 02:30:00+02"),
        ),
        "interval": (
            *("0", "-1 mon +2 days -03:04:05.6", "1 year 2 mons -3 days 04:05:06.000007", "178000000 years"),
            *("-178000000 years", "2147483647 days", "-2147483647:59:59.999999"),
        ),
        "interval day to second(3)": ("-3 days 04:05:06.007",),
    },
    "shapes": {
        "point": ("(0,0)", "(Infinity,-Infinity)", "(NaN,1e-300)", "(-0,0.1)"),
        "line": ("{1,2,3}", "{0,-1,0}", "{NaN,1,NaN}"),
        "lseg": ("[(0,0),(1,1)]", "[(Infinity,0),(-Infinity,0)]"),
        "box": ("(1,1),(0,0)", "(Infinity,Infinity),(-Infinity,-Infinity)"),
        "path": ("[(0,0),(1,1)]", "((0,0),(1,1),(2,0))", "[(1e300,1)]"),
        "polygon": ("((0,0),(1,1),(2,0))", "((-0,1))"),
        "circle": ("<(0,0),0>", "<(1,2),Infinity>"),
    },
    "ranges": {
        "int4range": ("empty", "(,)", "[-2147483648,2147483647)", "(,5]", "[5,)"),
        "int8range": ("empty", "(,)", "[1,9223372036854775807)"),
        "numrange": ("empty", "(,)", "[1.0,2.00]", "(-Infinity,Infinity)", "[NaN,]"),
        "tsrange": _TSRANGES,
        "tstzrange": ("empty", "(,)", '[-infinity,"2024-03-31 02:30:00+01")'),
        "daterange": ("empty", "(,)", "[-infinity,infinity]", "[2024-02-29,2024-03-01)"),
        "int4multirange": ("{}", "{(,)}", "{(,1),[5,6),[9,)}"),
        "int8multirange": ("{}", "{[1,2),[5,)}"),
        "nummultirange": ("{}", "{[1.0,2.00],(3,Infinity]}"),
        "tsmultirange": ("{}", '{(,"2024-01-01 00:00:00"],[infinity,infinity]}'),
        "tstzmultirange": ("{}", '{["2024-01-01 00:00:00+00",)}'),
        "datemultirange": ("{}", "{[2024-02-29,2024-03-01),[infinity,]}"),
    },
    "arrays": {
        "int4[]": ("[2:3][-1:0]={{1,NULL},{3,4}}", "{}", "{NULL}", "{{{{{{1}}}}}}", "[-5:-4]={1,2}"),
        "text[]": ('{"",NULL,"NULL"," ","\\"","\\\\"}', "[0:0]={x}"),
        "timestamptz[]": ("{infinity,NULL}",),
        "int4range[]": ('{empty,"[1,5)",NULL}',),
        "int4multirange[]": ('{"{[1,2),[5,)}",NULL}',),
        "bytea[]": ('{"\\\\x00ff",""}',),
        "xml[]": ("{<a/>,NULL}",),
        "json[]": ('{"{\\"a\\":  1}",null}',),
    },
    "objects": {
        "regclass": ("pg_class", "-", '"Some Table"'),
        "regtype": ("integer", "character varying", "int4[]", "-", '"Some Table"', "mood[]"),
        "regprocedure": ("abs(integer)", "mine(mood)", "-"),
        "regoperator": ("+(integer,integer)", "!!(NONE,tsquery)", "0"),
        "regconfig": ("english", "simple", '"My Config"', "-"),
        "regdictionary": ("simple", "english_stem", "-"),
        "regnamespace": ("pg_catalog", "public", '"Some Schema"', "-"),
        "regrole": (Sql("current_user::regrole"), "-"),
        "regcollation": ('"C"', '"My Collation"', "-"),
    },
    # Which rows are meant by these nobody can tell: see test_types_refused.
    "gone": dict.fromkeys(("regclass", "regtype", "regprocedure", "regrole", "regconfig"), ("4000000000",)),
    "read_by_their_server": {
        '"char"': ("", "a", "~", '"'),
        "money": ("92233720368547758.07", "-92233720368547758.08", "0"),
        "regproc": ("now", "-"),
        "regoper": ("||/", "0"),
    },
    "rights": {"aclitem": (Sql("makeaclitem(0, current_user::regrole, 'SELECT', true)"),)},
}
"""Types with their values, one table for each group. The last but one cannot come from a backup."""

OVERLOADED = {
    "regproc": (
        *("now", Sql("'abs(integer)'::regprocedure::oid::regproc"), Sql("'mine(mood)'::regprocedure::oid::regproc")),
    ),
    "regoper": (Sql("'+(integer,integer)'::regoperator::oid::regoper"), "0"),
}
"""Functions and operators of which the name means several: only the stream brings them, which asks for arguments."""

NOT_COVERED = {
    "gtsvector": "lives in indexes only, it has no input",
    "pg_brin_bloom_summary": "lives in indexes only, it has no input",
    "pg_brin_minmax_multi_summary": "lives in indexes only, it has no input",
    "pg_dependencies": "lives in catalogs only, it has no input",
    "pg_mcv_list": "lives in catalogs only, it has no input",
    "pg_ndistinct": "lives in catalogs only, it has no input",
    "pg_node_tree": "lives in catalogs only, it has no input",
}

OBJECTS = """
CREATE TYPE mood AS ENUM ('a'); CREATE TABLE "Some Table" (); CREATE SCHEMA "Some Schema";
CREATE FUNCTION mine(mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION mine(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TEXT SEARCH CONFIGURATION "My Config" (COPY = simple);
CREATE COLLATION "My Collation" (provider = libc, locale = 'C');
"""

OTHER_OIDS = """
CREATE TYPE before_us AS (a int); CREATE TABLE before_all ();
CREATE FUNCTION before_too() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""


def values_of(data_type: str, values: Sequence[str], version: int) -> list[str]:
    """SQL expressions; those that this version cannot have are left out."""
    extra: list[str] = []
    if data_type == "interval" and version >= HAS_LONG_INTERVALS:
        extra.append("-2562047787:00:54.775807")
    if data_type == "interval" and version >= HAS_INFINITE_INTERVALS:
        extra += ["infinity", "-infinity"]
    if data_type == '"char"' and version >= PRINTS_EVERY_CHAR:
        extra = ["\\377", "\\200"]
    quoted = [v if isinstance(v, Sql) else "'" + v.replace("'", "''") + "'" for v in (*values, *extra)]
    return [f"({value})::{data_type}" for value in quoted]


def have_xml(*databases: Database) -> bool:
    """Whether the servers were built with it: the type is there in any case."""
    try:
        for database in databases:
            database.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def fill(source: Database, target: Database, table: str, types: Mapping[str, Sequence[str]]) -> None:
    """A table with a column for each type and one for an array of it; its rows hold every value once, and NULLs.

    Every value that both servers have: what becomes of the others is in test_types_refused.
    """
    version = min(int(database.fetchval("SHOW server_version_num")) for database in (source, target))
    if not have_xml(source, target):
        types = {data_type: values for data_type, values in types.items() if not data_type.startswith("xml")}
    columns, rows = ["id int PRIMARY KEY"], []
    for number, (data_type, values) in enumerate(types.items()):
        expressions = values_of(data_type, values, version)
        columns.append(f"c{number} {data_type}")
        rows.append([*expressions, "NULL"])
        # An array of an aclitem has no binary form, which ends a binary stream (hazard 25).
        if data_type != "aclitem" and not data_type.endswith("[]"):
            columns.append(f"a{number} {data_type}[]")
            # What PostgreSQL does not read back inside of an array is refused: see test_types_refused.
            inside = [one for one in expressions if data_type not in AS_TEXT or not one.startswith("('')")]
            rows.append([f"ARRAY[{', '.join(inside)}, NULL]::{data_type}[]", "'{}'", "NULL"])
    source.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
    for number, row in enumerate(itertools.zip_longest(*rows, fillvalue="NULL"), 1):
        source.execute(f"INSERT INTO {table} VALUES ({number}, {', '.join(row)})")


async def move(ways: Arrivals, table: str) -> None:
    """Give every row the values of the next one, then delete one; the same where rows are known by all their values."""
    source, whole = ways.source, "" if table == "gone" else f"whole_{table}"
    names = [
        name
        for (name,) in source.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 1", table
        )
    ]
    columns = ", ".join(names)
    if whole:
        source.execute(f"CREATE TABLE {whole} (LIKE {table}); ALTER TABLE {whole} REPLICA IDENTITY FULL")
        await ways.create(f"public.{whole}")
        source.execute(f"INSERT INTO {whole} SELECT * FROM {table}")
    count = source.fetchval(f"SELECT count(*) FROM {table}")
    for one in filter(None, (table, whole)):
        source.execute(
            f"UPDATE {one} SET ({columns}) = (SELECT {columns} FROM {one} o WHERE o.id = {one}.id % {count} + 1);"
            f"DELETE FROM {one} WHERE id = 1"
        )


async def test_every_builtin_type_arrives_as_it_left_by_every_way(
    source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path
) -> None:
    async with arrivals(source, make_target, postgres_binaries, tmp_path, target_ddl=OTHER_OIDS + OBJECTS) as ways:
        source.execute(OBJECTS)
        for group, types in GROUPS.items():
            fill(source, ways.live, group, types)
        tables = [f"public.{group}" for group in GROUPS]
        covered = source.fetch(
            "SELECT DISTINCT t.typname::text FROM pg_type t JOIN pg_attribute a ON a.atttypid = t.oid"
            " WHERE a.attrelid = ANY (%s::text[]::regclass[]) AND a.attname LIKE 'c%%'",
            tables,
        )
        builtin = source.fetch(
            "SELECT typname::text FROM pg_type t WHERE typnamespace = 'pg_catalog'::regnamespace"
            " AND typtype IN ('b', 'r', 'm') AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)"
        )
        lacking = {name for (name,) in builtin} - {name for (name,) in covered}
        assert lacking - ({"xml"} if not have_xml(source, ways.live) else set()) <= NOT_COVERED.keys()

        await ways.create(*tables)
        await ways.copy_live(*tables)
        await ways.restore(*tables)
        assert ways.refused.keys() == {"public.read_by_their_server"}
        await ways.deliver()
        ways.assert_equal(*tables)

        fill(source, ways.live, "overloaded", OVERLOADED)
        await ways.create("public.overloaded")
        streamed = [*GROUPS, "overloaded"]
        for group in streamed:
            await move(ways, group)
        await ways.deliver()
        ways.assert_equal(
            *(f"public.{before}{one}" for one in streamed for before in ("", "whole_") if before + one != "whole_gone"),
            ways=["stream"],
        )
