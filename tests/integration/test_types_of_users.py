"""Types that users create have other oids on a target: their values arrive all the same (hazard 8).

Every target of these tests has types of its own before it gets any of the source's, so that no oid agrees by chance.
"""

from __future__ import annotations

import pytest

from cdc.errors import TableStopped
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.replica import MakeReplica, make_replica

__all__ = ["make_replica"]

OTHER_OIDS = """
CREATE TYPE before_us AS ENUM ('a'); CREATE TYPE before_too AS (a int); CREATE DOMAIN before_all AS int;
CREATE TYPE before_ranges AS RANGE (subtype = int);
"""

TYPES = """
CREATE SCHEMA "Sch-ema";
CREATE TYPE "Sch-ema"."Mood" AS ENUM ('sad', 'glad', 'it''s');
CREATE DOMAIN age AS int NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN adult AS age CHECK (VALUE > 17);
CREATE DOMAIN moods AS "Sch-ema"."Mood"[] CHECK (cardinality(VALUE) < 5);
CREATE TYPE pair AS ("First" int, second text, gone int, mood "Sch-ema"."Mood");
ALTER TYPE pair DROP ATTRIBUTE gone;
CREATE DOMAIN small_pair AS pair CHECK ((VALUE)."First" < 100);
CREATE TYPE nested AS (a small_pair, b pair[], c moods, d "Sch-ema"."Mood");
CREATE TYPE mood_range AS RANGE (subtype = "Sch-ema"."Mood");
CREATE TYPE pair_range AS RANGE (subtype = pair);
CREATE TYPE row_range AS RANGE (subtype = mood_range, multirange_type_name = several_rows);
"""

TABLE = """
CREATE TABLE t (
    id int PRIMARY KEY, mood "Sch-ema"."Mood", moods "Sch-ema"."Mood"[], age adult, ages adult[], feelings moods,
    several moods[], pair pair, pairs pair[], small small_pair, nested nested, nests nested[],
    span mood_range, spans mood_range[], many mood_multirange, pairspan pair_range, pairspans pair_multirange,
    rowspan row_range, rowspans several_rows
);
CREATE TABLE u (LIKE t); ALTER TABLE u REPLICA IDENTITY FULL;
"""
ROWS = """
INSERT INTO t VALUES
(1, 'sad', '{sad,NULL,"it''s"}', 18, '{18,20}', '{glad}', '{"{sad}",NULL}', '(1,"a b",sad)',
 ARRAY['(1,,)'::pair, NULL, '(2,"",glad)'], '(99,"(",)', ROW(ROW(1,'x','sad'), ARRAY[ROW(2,'y','glad')::pair], '{sad}',
 'glad')::nested, ARRAY[ROW(NULL,NULL,NULL,NULL)::nested, NULL], '[sad,glad]', '{"[sad,glad)",empty,"(,)"}',
 '{[sad,sad],(glad,)}', pair_range(ROW(1,'a','sad')::pair, ROW(2,NULL,NULL)::pair), '{}',
 row_range(mood_range('sad','glad'), NULL),
 several_rows(row_range(mood_range('sad', 'glad'), mood_range('glad', NULL)))),
(2, NULL, '{}', 19, '[2:3][-1:0]={{18,19},{20,21}}', NULL, NULL, '(,,)', '{}', NULL, NULL, NULL, 'empty', '{}', '{}',
 'empty', pair_multirange(pair_range(ROW(1,'a','sad')::pair, ROW(2,NULL,NULL)::pair, '[]')), 'empty', NULL),
(3, NULL, NULL, 20, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
"""


async def test_values_of_users_types_arrive_on_a_target_with_other_oids(
    make_replica: MakeReplica, source: Database
) -> None:
    replica = await make_replica(TYPES + TABLE, OTHER_OIDS + TYPES + TABLE)
    source.execute(ROWS)
    await replica.deliver()
    source.execute("UPDATE t SET mood = 'glad' WHERE id < 3; CREATE TEMPORARY TABLE more AS SELECT * FROM t")
    source.execute("UPDATE more SET id = id + 10; INSERT INTO t SELECT * FROM more")
    source.execute("UPDATE t SET id = id + 20; DELETE FROM t WHERE id = 23")
    await replica.deliver()
    source.execute("INSERT INTO u SELECT * FROM t")
    await replica.deliver()
    source.execute("UPDATE u SET id = 0; DELETE FROM u WHERE moods = '{}'; UPDATE u SET mood = 'sad'")
    await replica.deliver()
    assert len(replica.target.fetch("SELECT FROM u WHERE mood = 'sad'")) == 3
