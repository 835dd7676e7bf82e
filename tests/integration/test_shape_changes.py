"""A relation that changes its shape in mid-stream: what still fits goes on, what does not stops that table alone.

Every test has a second table, ``others``, that must never notice, and ends with a comparison of everything: nothing is
lost, and nothing is applied twice, however a table was mended.
"""

from __future__ import annotations

from cdc.observe.status import TableStatus
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, listed, owned

TABLES = """
CREATE TABLE answers (id int PRIMARY KEY, value text, points int);
CREATE TABLE others (id int PRIMARY KEY, value text);
INSERT INTO answers SELECT n, 'value ' || n, n FROM generate_series(1, 10) AS n;
INSERT INTO others VALUES (1, 'one');
"""


async def others_go_on(pipeline: Pipeline) -> None:
    """A change of the other table arrives everywhere."""
    pipeline.source.execute("INSERT INTO others SELECT max(id) + 1, 'more' FROM others")
    await pipeline.caught_up()
    await pipeline.assert_equal(leave_out=["public.answers"])


async def stopped(pipeline: Pipeline, target: str = "internal") -> TableStatus:
    return await pipeline.table_in_state(target, "public.answers", "stopped")


async def goes_on(pipeline: Pipeline, target: str = "internal") -> None:
    """The table has been mended, by itself it streams again and everything is there."""
    await pipeline.table_in_state(target, "public.answers", "streaming", deadline_s=20)

    async def is_equal() -> bool:
        return not await pipeline.differences()

    await pipeline.until(is_equal, "everything is equal", deadline_s=20)
    pipeline.source.execute("UPDATE answers SET value = 'at the end' WHERE id = 2")
    await pipeline.assert_caught_up_and_equal()


async def test_a_new_column_that_a_following_target_lacks_stops_that_table_alone(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    targets = {
        "internal": follow(make_target("internal")),
        "external": listed(
            make_target("external"), {"public.answers": ["id", "value"], "public.others": ["id", "value"]}
        ),
    }
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with source.transaction():
            source.execute("INSERT INTO answers VALUES (11, 'before', 1)")
            source.execute("ALTER TABLE answers ADD COLUMN comment text")
            source.execute("INSERT INTO answers VALUES (12, 'after', 2, 'said')")
            source.execute("INSERT INTO others VALUES (2, 'of the same transaction')")

        state = await stopped(pipeline)
        assert "the target's table lacks columns: comment" in (state.reason or "")
        assert state.mend == 'ALTER TABLE "public"."answers" ADD COLUMN "comment" text'
        await others_go_on(pipeline)
        source.execute("UPDATE answers SET points = points + 1 WHERE id <= 5; DELETE FROM answers WHERE id = 9")
        await others_go_on(pipeline)
        external, internal = pipeline.targets["external"], pipeline.targets["internal"]
        assert external.fetchval("SELECT count(*) FROM answers") == 11, "who lists its columns takes no notice"
        assert internal.fetchval("SELECT count(*) FROM answers") == 10, "no half of a transaction in one table"
        assert pipeline.confirmed() <= (state.position or 0), "what the table lacks stays in the slot"
        assert await pipeline.worker.metric("cdc_stopped_tables", target="internal") == 1

        internal.execute(state.mend)

        await goes_on(pipeline)
        assert await pipeline.worker.metric("cdc_stopped_tables", target="internal") == 0
        assert external.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'answers'::regclass AND attnum > 0"
        ) == [
            ("id",),
            ("value",),
        ]
        assert pipeline.confirmed() > (state.position or 0)


async def test_a_stopped_table_survives_workers_that_are_killed(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        source.execute("ALTER TABLE answers ADD COLUMN comment text; INSERT INTO answers VALUES (11, 'a', 1, 'b')")
        state = await stopped(pipeline)
        await others_go_on(pipeline)
        await worker.kill()

        await pipeline.start()
        await others_go_on(pipeline)
        assert (await stopped(pipeline)).mend == state.mend
        await pipeline.worker.kill()
        assert state.mend is not None
        pipeline.targets["internal"].execute(state.mend)
        await pipeline.start()

        await goes_on(pipeline)


async def test_a_shape_that_changes_within_a_large_transaction_is_never_half_applied(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    targets = {"internal": follow(make_target())}
    async with Pipeline(source, targets, worker={"max_batch_bytes": 65536}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with source.transaction():
            source.execute("INSERT INTO answers SELECT n, repeat('x', 100), n FROM generate_series(100, 5000) AS n")
            source.execute("INSERT INTO others SELECT n, repeat('y', 100) FROM generate_series(100, 1000) AS n")
            source.execute("ALTER TABLE answers ADD COLUMN comment text")
            source.execute(
                "INSERT INTO answers SELECT n, repeat('z', 100), n, 'new' FROM generate_series(6000, 9000) n"
            )

        state = await stopped(pipeline)
        await others_go_on(pipeline)
        assert pipeline.targets["internal"].fetchval("SELECT count(*) FROM answers") == 10
        assert state.mend is not None
        pipeline.targets["internal"].execute(state.mend)

        await goes_on(pipeline)


async def test_a_dropped_column_stays_on_a_following_target_and_stops_who_listed_it(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    targets = {
        "internal": follow(make_target("internal")),
        "external": listed(
            make_target("external"), {"public.answers": ["id", "points"], "public.others": ["id", "value"]}
        ),
        "free": listed(make_target("free"), {"public.answers": ["id", "value"], "public.others": ["id", "value"]}),
    }
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER TABLE answers DROP COLUMN points; INSERT INTO answers VALUES (11, 'without')")
        source.execute("UPDATE answers SET value = 'changed' WHERE id = 1")

        state = await stopped(pipeline, "external")
        assert "the route lists columns that the source's table does not have any more: points" in (state.reason or "")
        assert state.mend is None, "only the configuration, or the source, can mend it"
        source.execute("INSERT INTO others VALUES (2, 'two')")
        await pipeline.caught_up()
        kept = pipeline.targets["internal"].fetch("SELECT * FROM answers WHERE id IN (1, 11) ORDER BY id")
        assert kept == [(1, "changed", 1), (11, "without", None)], "nobody asked for the column's values to go"

        await pipeline.worker.terminate()
        pipeline.settings["targets"]["external"]["tables"]["public.answers"] = ["id"]
        pipeline.configure()
        await pipeline.start()

        await goes_on(pipeline, "external")


async def test_a_renamed_column_is_mended_by_renaming_it(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER TABLE answers RENAME COLUMN points TO score; INSERT INTO answers VALUES (11, 'a', 99)")
        source.execute("UPDATE answers SET score = 98 WHERE id = 1")

        state = await stopped(pipeline)
        assert "score" in (state.reason or "")
        assert "points" in (state.reason or ""), "the column that the source's table has no more is named"
        await others_go_on(pipeline)
        pipeline.targets["internal"].execute("ALTER TABLE answers RENAME COLUMN points TO score")

        await goes_on(pipeline)


async def test_a_retyped_column_is_mended_by_retyping_it(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        with source.transaction():
            source.execute("UPDATE answers SET points = 7 WHERE id = 3")
            source.execute("ALTER TABLE answers ALTER COLUMN points TYPE bigint")
            source.execute("INSERT INTO answers VALUES (11, 'large', 5000000000)")

        state = await stopped(pipeline)
        assert "column points is of type integer, and of type bigint at the source" in (state.reason or "")
        assert "USING" in (state.reason or ""), "values that were computed anew are not streamed"
        assert "--again public.answers" in (state.reason or "")
        assert state.mend == 'ALTER TABLE "public"."answers" ALTER COLUMN "points" TYPE bigint'
        await others_go_on(pipeline)
        pipeline.targets["internal"].execute(state.mend)

        await goes_on(pipeline)


async def test_a_column_that_was_widened_at_the_target_first_needs_nobody(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        target.execute("ALTER TABLE answers ALTER COLUMN points TYPE bigint, ALTER COLUMN id TYPE bigint")
        source.execute("INSERT INTO answers VALUES (11, 'as before', 5); UPDATE answers SET points = 7 WHERE id = 3")
        source.execute("DELETE FROM answers WHERE id = 4; UPDATE answers SET id = 40 WHERE id = 5")
        await pipeline.assert_caught_up_and_equal()
        source.execute("ALTER TABLE answers ALTER COLUMN points TYPE bigint")
        source.execute("INSERT INTO answers VALUES (12, 'large', 5000000000)")
        await pipeline.assert_caught_up_and_equal()
        assert not pipeline.worker.events("table stopped")


async def test_an_owned_target_takes_what_its_columns_can_hold(source: Database, make_target: MakeDatabase) -> None:
    source.execute(TABLES)
    mart = make_target("datamart")
    mart.execute(
        "CREATE SCHEMA maddo; CREATE TABLE maddo.answers (answer_id int, points int, loaded_by text DEFAULT 'cdc')"
    )
    mart.execute("CREATE TABLE others (id int, value text)")
    tables = {
        "public.answers": {"to": "maddo.answers", "columns": {"id": "answer_id", "points": "points"}},
        "public.others": ["id", "value"],
    }
    async with Pipeline(source, {"datamart": owned(mart, tables)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("ALTER TABLE answers ADD COLUMN comment text; INSERT INTO answers VALUES (11, 'a', 1, 'b')")
        source.execute("ALTER TABLE answers DROP COLUMN value; INSERT INTO answers VALUES (12, 2, 'b')")
        source.execute(
            "ALTER TABLE answers ALTER COLUMN points TYPE bigint; UPDATE answers SET points = 3 WHERE id = 1"
        )
        await pipeline.assert_caught_up_and_equal()

        source.execute("INSERT INTO answers VALUES (13, 5000000000, 'too large for there')")

        state = await stopped(pipeline, "datamart")
        assert "has a value that the target's table cannot take (SQLSTATE 22003" in (state.reason or "")
        assert "5000000000" not in pipeline.worker.log_text()
        await others_go_on(pipeline)
        mart.execute("ALTER TABLE maddo.answers ALTER COLUMN points TYPE bigint")

        await goes_on_without_comment(pipeline)


async def goes_on_without_comment(pipeline: Pipeline) -> None:
    """A row that was refused is tried again after ten seconds at first."""
    await pipeline.table_in_state("datamart", "public.answers", "streaming", deadline_s=30)
    await pipeline.assert_caught_up_and_equal()


async def test_tables_that_come_and_go_at_the_source_disturb_nobody(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)")
        source.execute(
            "INSERT INTO answers VALUES (11, 'a', 1); DROP TABLE answers; INSERT INTO others VALUES (2, 'b')"
        )
        await pipeline.caught_up()

        assert pipeline.targets["internal"].fetchval("SELECT count(*) FROM answers") == 11, "what was there is kept"
        assert pipeline.targets["internal"].fetchval("SELECT count(*) FROM others") == 2
        assert pipeline.targets["internal"].fetchval("SELECT to_regclass('fresh')") is None, "until it is bootstrapped"
