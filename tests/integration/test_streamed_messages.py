"""What PostgreSQL streams before a commit, put together again: the same as protocol 1 sends of the same history.

The source's own walsender code says what that is: one slot is read with ``streaming``, its copy without. (Both ways
stand for the same WAL; only the first has parts of transactions.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from cdc.changes.spool import SpoolSpace
from cdc.changes.streamed import StreamedTransactions
from tests.database import Database
from tests.streams import Told, protocol_1, transactions

ROOM = 1 << 30
EVERYTHING = ["everything"]


class Histories:
    """A slot that has seen what a test does at the source, to be read both ways."""

    def __init__(self, source: Database, ddl: str) -> None:
        self.source = source
        source.execute(ddl)
        source.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        source.create_slot("streamed")
        source.create_slot("whole")
        # The least there is: a few hundred rows are a large transaction.
        source.execute("SET logical_decoding_work_mem = '64kB'")

    def streamed(self, *, peek: bool = False) -> list[bytes]:
        return self.source.changes("streamed", EVERYTHING, peek=peek, proto_version="2", streaming="on")

    def whole(self) -> list[bytes]:
        return self.source.changes("whole", EVERYTHING)

    def assert_the_same(self, *, kinds: str, tmp_path: Path) -> Sequence[Told]:
        """Both ways tell the same transactions; ``kinds`` are messages that must have come, or nothing was tested."""
        streamed = self.streamed()
        assert set(kinds) <= {chr(message[0]) for message in streamed}
        space = SpoolSpace(ROOM, tmp_path)
        found, expected = transactions(protocol_1(streamed, space)), transactions(self.whole())
        assert found == expected
        assert space.used_bytes == 0
        return found


@contextmanager
def transaction(source: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A transaction in a session of its own, which the test ends."""
    with closing(psycopg.connect(source.dsn)) as connection:
        yield connection


MANY = "generate_series(1, 3000) g"


def test_hazard_12_streamed_transactions_interleave_and_small_ones_come_between(
    source: Database, tmp_path: Path
) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY, body text); CREATE TABLE log (line text)")
    with transaction(source) as first, transaction(source) as second:
        for round_ in range(3):
            for number, session in enumerate((first, second)):
                start = 100_000 * number + 10_000 * round_
                session.execute(f"INSERT INTO t SELECT {start} + g, repeat('x', 50) FROM {MANY}")
                session.execute("SAVEPOINT a")
                session.execute(f"UPDATE t SET body = 'aborted' WHERE id > {start}")
                session.execute("SAVEPOINT b")
                session.execute(f"DELETE FROM t WHERE id > {start}")
                session.execute("ROLLBACK TO a")
                session.execute("SAVEPOINT c")
                session.execute(f"UPDATE t SET body = 'kept' WHERE id > {start} AND id % 2 = 0")
                session.execute("RELEASE c")
                source.execute(f"INSERT INTO log VALUES ('{round_}')")
        second.commit()
        source.execute("INSERT INTO log VALUES ('between')")
        first.commit()
        source.execute(f"BEGIN; INSERT INTO t SELECT 900000 + g, 'none' FROM {MANY}; ROLLBACK")
    assert len(histories.assert_the_same(kinds="SEcA", tmp_path=tmp_path)) == 9


def test_ddl_inside_a_streamed_transaction_describes_its_own_changes_and_what_comes_after(
    source: Database, tmp_path: Path
) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY, body text)")
    source.execute("INSERT INTO t VALUES (0, 'described outside')")
    with transaction(source) as session:
        session.execute(f"INSERT INTO t SELECT g, 'old' FROM {MANY}")
        session.execute("ALTER TABLE t ADD COLUMN more int")
        session.execute(f"INSERT INTO t SELECT 10000 + g, 'new', g FROM {MANY}")
        session.execute("ALTER TABLE t DROP COLUMN body")
        session.execute(f"INSERT INTO t SELECT 20000 + g, g FROM {MANY}")
        session.commit()
    source.execute("INSERT INTO t VALUES (-1, 1)")
    histories.assert_the_same(kinds="SEc", tmp_path=tmp_path)


def test_ddl_of_a_subtransaction_that_aborts_leaves_the_old_shape(source: Database, tmp_path: Path) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY, body text)")
    source.execute("INSERT INTO t VALUES (0, 'described outside')")
    for after in (True, False):
        with transaction(source) as session:
            start = 100_000 * after
            session.execute(f"INSERT INTO t SELECT {start} + g, 'old' FROM {MANY}")
            session.execute("SAVEPOINT a")
            session.execute("ALTER TABLE t ADD COLUMN more int")
            session.execute(f"INSERT INTO t SELECT {start} + 10000 + g, 'gone', g FROM {MANY}")
            session.execute("ROLLBACK TO a")
            if after:
                session.execute(f"INSERT INTO t SELECT {start} + 20000 + g, 'old' FROM {MANY}")
            session.commit()
        source.execute(f"INSERT INTO t VALUES ({start} - 1, 'old')")
    histories.assert_the_same(kinds="SEcA", tmp_path=tmp_path)


def test_a_table_and_its_type_made_in_a_streamed_transaction(source: Database, tmp_path: Path) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY)")
    with transaction(source) as session:
        session.execute("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE u (id bigint PRIMARY KEY, m mood)")
        session.execute(f"INSERT INTO u SELECT g, 'ok' FROM {MANY}")
        session.execute(f"INSERT INTO t SELECT g FROM {MANY}; TRUNCATE t, u; INSERT INTO t VALUES (5)")
        session.commit()
    source.execute("INSERT INTO t VALUES (-1); INSERT INTO u VALUES (-1, 'ok')")
    histories.assert_the_same(kinds="SEcY", tmp_path=tmp_path)


def test_a_shape_that_changes_outside_while_a_transaction_is_streamed(source: Database, tmp_path: Path) -> None:
    """Renaming a schema locks no table: the description outside becomes newer than the one inside.

    Rows that were streamed before have the old name. Protocol 1 gives them the new one: it describes them at the end.
    """
    histories = Histories(source, "CREATE SCHEMA s; CREATE TABLE s.t (id bigint PRIMARY KEY, body text)")
    source.execute("INSERT INTO s.t VALUES (0, 'described outside')")
    with transaction(source) as session:
        session.execute(f"INSERT INTO s.t SELECT g, 'streamed' FROM {MANY}")
        source.execute("ALTER SCHEMA s RENAME TO renamed")
        source.execute("INSERT INTO renamed.t VALUES (-1, 'described again')")
        session.commit()
    source.execute("INSERT INTO renamed.t VALUES (-2, 'not described again')")
    found = transactions(protocol_1(histories.streamed(), SpoolSpace(ROOM, tmp_path)))
    expected = transactions(histories.whole())
    assert [(told.commit_lsn, len(told.changes)) for told in found] == [
        (told.commit_lsn, len(told.changes)) for told in expected
    ]
    assert (found[:2], found[3:]) == (expected[:2], expected[3:])


def test_marks_of_a_streamed_transaction_stand_where_they_were_written(source: Database, tmp_path: Path) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY)")
    with transaction(source) as session:
        session.execute(f"INSERT INTO t SELECT g FROM {MANY}")
        session.execute("SELECT pg_logical_emit_message(true, 'cdc.heartbeat', 'inside')")
        session.execute("SELECT pg_logical_emit_message(false, 'cdc.heartbeat', 'outside')")
        session.execute(f"INSERT INTO t SELECT 10000 + g FROM {MANY}")
        session.commit()
    histories.assert_the_same(kinds="SEcM", tmp_path=tmp_path)


def test_a_large_prepared_transaction_comes_when_it_is_committed(source: Database, tmp_path: Path) -> None:
    histories = Histories(source, "CREATE TABLE t (id bigint PRIMARY KEY, body text)")
    for name, start in (("kept", 0), ("gone", 100_000)):
        with transaction(source) as session:
            session.execute(f"INSERT INTO t SELECT {start} + g, repeat('x', 50) FROM {MANY}")
            session.execute(f"PREPARE TRANSACTION '{name}'")
    with closing(StreamedTransactions(SpoolSpace(ROOM, tmp_path))) as streamed:
        assert protocol_1(histories.streamed(peek=True), streamed) == []
        assert streamed.transactions == 2
    source.execute("INSERT INTO t VALUES (-1, 'before')")
    source.execute("COMMIT PREPARED 'kept'")
    source.execute("ROLLBACK PREPARED 'gone'")
    # (18 sees that the other one has aborted, and streams nothing of it.)
    found = histories.assert_the_same(kinds="SEc", tmp_path=tmp_path)
    assert [len(told.changes) for told in found] == [1, 3000]
