"""One table, or one target, is loaded again as the messages say; the slot and everything else stays as it is."""

from __future__ import annotations

import re

import pytest

from cdc.bootstrap.again import Again
from cdc.bootstrap.progress import Silence
from cdc.bootstrap.run import Scope
from cdc.errors import ConfigurationError, SetupError
from cdc.lsn import Lsn
from cdc.service import checkup, loading
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.pipeline import Pipeline, follow, owned

TABLES = """
CREATE TABLE answers (id int PRIMARY KEY, value text);
CREATE TABLE "others-too" (id int PRIMARY KEY, value text);
INSERT INTO answers SELECT n, 'value ' || n FROM generate_series(1, 10) AS n;
INSERT INTO "others-too" VALUES (1, 'one');
"""


def loaded_from(target: Database) -> dict[str, str]:
    """From which snapshot each table was loaded; another one says that it was loaded again."""
    return dict(target.fetch("SELECT source_table, consistent_from::text FROM cdc.target_table"))


def commands(sentence: str) -> list[list[str]]:
    """What a sentence says to run, in its order."""
    return [command.split()[1:] for command in re.findall(r"`(cdc [^`]*)`", sentence)]


async def run_all(pipeline: Pipeline, sentence: str) -> str:
    """Run every command of a sentence, the answer to a question being yes; what they printed."""
    printed = ""
    for words in commands(sentence):
        status, output = await pipeline.cdc(*words, *(["--yes"] if words[0] == "teardown" else []))
        assert status == 0, output
        printed += output
    return printed


async def test_a_table_that_differs_is_loaded_again_by_the_command_that_is_shown(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    mart = make_target("datamart")
    mart.execute("CREATE TABLE facts (id int PRIMARY KEY, value text); CREATE VIEW report AS TABLE facts")
    columns = {"to": "public.facts", "columns": ["id", "value"]}
    targets = {"internal": follow(make_target("internal")), "datamart": owned(mart, {"public.answers": columns})}
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        before = {name: loaded_from(target) for name, target in pipeline.targets.items()}
        await pipeline.start()
        mart.execute("DELETE FROM facts WHERE id = 3; INSERT INTO facts VALUES (77, 'of somebody else')")
        source.execute("UPDATE answers SET value = 'new' WHERE id = 3; INSERT INTO answers VALUES (11, 'more')")
        state = await pipeline.table_in_state("datamart", "public.answers", "stopped")
        assert "source and target differ: load this table again (run `cdc resync" in (state.reason or "")
        resync, again = commands(state.reason or "")
        assert resync == ["resync", "public.answers", "--target", "datamart"]
        assert again == ["bootstrap", "--from", "live", "--again", "public.answers", "--target", "datamart"]
        await pipeline.caught_up(None, "internal")
        await pipeline.worker.terminate()

        status, printed = await pipeline.cdc(*again)
        assert status == 0, printed

        after = {name: loaded_from(target) for name, target in pipeline.targets.items()}
        assert after["internal"] == before["internal"], "who was not named is left alone"
        assert after["datamart"] != before["datamart"]
        await pipeline.start()
        source.execute("UPDATE answers SET value = 'newer' WHERE id < 5; DELETE FROM answers WHERE id = 9")
        await pipeline.assert_caught_up_and_equal()
        assert mart.fetchval("SELECT count(*) FROM report") == 10, "what depends on the table is still there"
        assert not pipeline.worker.events("table stopped")


async def test_a_table_is_loaded_again_on_every_target_that_has_it_unless_one_is_named(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(TABLES)
    targets = {"internal": follow(make_target("internal")), "external": follow(make_target("external"))}
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        before = {name: loaded_from(target) for name, target in pipeline.targets.items()}
        slot = source.fetch("SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots")
        for target in pipeline.targets.values():
            target.execute("TRUNCATE answers")
        source.execute("INSERT INTO answers VALUES (11, 'more')")

        await loading.bootstrap(pipeline.config, progress=Silence(), scope=Scope(again=Again(("public.answers",))))

        for name, target in pipeline.targets.items():
            after = loaded_from(target)
            assert after["answers"] > before[name]["answers"]
            assert after["others-too"] == before[name]["others-too"]
        assert source.fetch("SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots") == slot
        await pipeline.start()
        source.execute("DELETE FROM answers WHERE id = 11")
        await pipeline.assert_caught_up_and_equal()


async def test_a_run_that_was_interrupted_is_resumed_without_being_asked_again(
    source: Database, make_target: MakeDatabase
) -> None:
    class Interrupted(Silence):
        def begin(self, target: str, table: str, ranges: int) -> None:
            raise SetupError("somebody pulled the plug")

    source.execute(TABLES)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        with pytest.raises(SetupError, match="pulled the plug"):
            await loading.bootstrap(
                pipeline.config, progress=Interrupted(), scope=Scope(again=Again(("public.answers",)))
            )
        assert (await pipeline.table_status("internal", "public.answers")).state == "copying"

        summary = await loading.bootstrap(pipeline.config, progress=Silence())

        assert summary.targets["internal"].tables == 1
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


@pytest.mark.parametrize(
    ("again", "says"),
    [
        (Again(("public.answer",)), "no target has loaded a table public.answer; did you mean public.answers?"),
        (Again(("public.facts",), "internal"), "target internal has not loaded a table public.facts"),
        (Again(("public.answers",), "internl"), "there is no target internl; did you mean internal?"),
    ],
)
async def test_what_was_never_loaded_is_refused_and_nothing_is_touched(
    source: Database, make_target: MakeDatabase, again: Again, says: str
) -> None:
    source.execute(TABLES)
    target = make_target()
    target.execute("CREATE TABLE facts (id int PRIMARY KEY); INSERT INTO facts VALUES (1)")
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        wish = Again((*again.tables, "public.answers"), again.target)
        with pytest.raises(ConfigurationError) as refused:
            await loading.bootstrap(pipeline.config, progress=Silence(), scope=Scope(again=wish))
        assert says in str(refused.value)
        assert target.fetch("SELECT DISTINCT state FROM cdc.target_table") == [("streaming",)]
        assert target.fetchval("SELECT count(*) FROM facts") == 1
        words = [word for table in again.tables for word in ("--again", table)]
        words += ["--target", again.target] if again.target else []
        status, printed = await pipeline.cdc("bootstrap", "--from", "live", *words)
        assert (status, says in printed) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ["--from", "none", "--again", "public.answers"],
        ["--from", "live", "--anew", "--again", "public.answers"],
        ["--from", "live", "--again", "public.answers", "--target", "internal", "--target", "internal"],
        ["--from", "live", "--latest"],
        ["--from", "live", "--file", "pix.pgsql"],
        ["--from", "backup", "--latest", "--file", "pix.pgsql"],
        ["--from", "none", "--anew"],
        ["--from", "none", "--target", "internal"],
    ],
)
async def test_words_that_do_not_go_together_are_a_usage_error(
    source: Database, make_target: MakeDatabase, words: list[str]
) -> None:
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        status, printed = await pipeline.cdc("bootstrap", *words)
        assert status == 2
        assert "Invalid value for --" in printed


@pytest.mark.parametrize("way", ["beside", "in place"])
async def test_a_target_that_needs_a_resync_is_loaded_again_alone_by_what_its_message_says(
    source: Database, make_target: MakeDatabase, way: str
) -> None:
    source.execute(TABLES)
    good, restored = make_target("good"), make_target("restored")
    async with Pipeline(source, {"good": follow(good), "restored": follow(restored)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        backup = restored.fetchval("SELECT position::text FROM cdc.target")
        source.execute("INSERT INTO answers VALUES (11, 'after the backup')")
        await pipeline.assert_caught_up_and_equal()
        await pipeline.until(lambda: pipeline.confirmed() > Lsn.parse(backup), "the slot has moved on")
        await pipeline.worker.terminate()
        restored.execute("UPDATE cdc.target SET position = %s", backup)
        restored.execute("DELETE FROM answers WHERE id = 11")
        await pipeline.start(ready=False)
        await pipeline.until(
            lambda: restored.fetchval("SELECT state FROM cdc.target") == "needs resync", "it needs a resync"
        )
        await pipeline.worker.terminate()
        before, confirmed = loaded_from(good), pipeline.confirmed()

        findings = [one for one in await checkup.check(pipeline.config) if one.stops]
        assert [(one.where, one.subject) for one in findings] == [("restored", "position")], "it is said once"
        sentence = findings[0].message
        anew, *in_place = commands(sentence)
        assert anew == ["bootstrap", "--from", "live", "--anew", "--target", "restored"]
        assert in_place == [["teardown", "--target", "restored"], ["setup"], ["bootstrap", "--from", "live"]]
        if way == "beside":
            assert "restored: 2 tables" in await run_all(pipeline, f"`cdc {' '.join(anew)}`")
        else:
            printed = await run_all(pipeline, f"`cdc {' '.join(in_place[0])}`")
            (empty,) = re.findall(r"(TRUNCATE .*;)", printed)
            restored.execute(empty)
            assert "restored: 2 tables" in await run_all(pipeline, sentence.split("empty the tables")[1])

        assert loaded_from(good) == before, "the other target is not copied again"
        assert pipeline.confirmed() == confirmed, "the slot stays"
        await pipeline.start()
        source.execute("UPDATE answers SET value = 'at the end'; DELETE FROM answers WHERE id = 1")
        await pipeline.assert_caught_up_and_equal()
