"""A target that differs from the source is found out, whatever the difference is."""

from __future__ import annotations

import pytest

from tests.bench.contents import Unequal, digests, require_equal
from tests.conftest import MakeDatabase
from tests.database import Database

TABLE = """
    CREATE TABLE t (id integer, name varchar(20), note text, at timestamptz, kind char(4));
    INSERT INTO t
    SELECT n, 'name ' || n, NULL, timestamptz '2026-05-01 08:00+00', 'k' FROM generate_series(1, 100) AS n;
    INSERT INTO t VALUES (1, 'name 1', NULL, timestamptz '2026-05-01 08:00+00', 'k')
"""


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE t SET note = '' WHERE id = 7",
        "UPDATE t SET at = at + interval '1 microsecond' WHERE id = 100",
        "UPDATE t SET id = 3 - id WHERE id IN (1, 2)",
        "DELETE FROM t WHERE id = 50",
        "INSERT INTO t SELECT * FROM t WHERE id = 50",
        "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t WHERE id = 1); INSERT INTO t SELECT * FROM t WHERE id = 2",
    ],
)
def test_a_difference_is_found(source: Database, make_target: MakeDatabase, change: str) -> None:
    target = make_target("bench")
    for database in (source, target):
        database.execute(TABLE)
    expected = digests(source.dsn, ["t"])
    require_equal(expected, target.dsn)
    target.execute(change)
    with pytest.raises(Unequal, match=r"^t: 101 rows at the source, 10[012] at the target, digests differ$"):
        require_equal(expected, target.dsn)
