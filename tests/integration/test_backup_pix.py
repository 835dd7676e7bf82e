"""The whole way from a provider's backup, on a real dump, while somebody writes to the source without a pause.

What a target holds is compared with the source as it was at the same LSN, which PostgreSQL's own point-in-time recovery
restores: at the cut-over, where the bootstrap ends, and when everything is over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from cdc.bootstrap.backup import BackupChoice
from cdc.lsn import Lsn
from cdc.service import loading
from tests.backup import (
    PIX_2020,
    Connection,
    PointInTime,
    Steps,
    Writer,
    bootstrap_settings,
    cut_over_lsn,
    differences,
    keep,
    keep_cut_over,
    restore,
    routes_of,
)
from tests.conftest import MakeDatabase, MakeServer
from tests.database import Database
from tests.pipeline import Pipeline, follow, listed, owned
from tests.scalingo import StandIn

USERS, ORGANIZATIONS, SNAPSHOTS = 40, 20, 12

MAIL = "UPDATE users SET email = %s WHERE id = %s"


def fill(source: Database) -> None:
    """The dump, and rows in the tables that are empty in it."""
    restore(PIX_2020, source)
    source.execute(
        'INSERT INTO users (id, "firstName", "lastName", email, password, "samlId")'
        " SELECT 100 + n, 'first ' || n, 'last ' || n, 'mail-' || n || '@example.net', 'x', 'saml-' || n"
        f" FROM generate_series(1, {USERS}) n"
    )
    source.execute(
        "INSERT INTO organizations (id, type, name)"
        f" SELECT n, 'SCO', 'school ' || n FROM generate_series(1, {ORGANIZATIONS}) n"
    )
    # Incompressible and long: these values lie outside of their rows (TOAST).
    source.execute(
        'INSERT INTO "knowledge-element-snapshots" (id, "userId", "snappedAt", snapshot)'
        " SELECT n, 100 + n, now(), (SELECT jsonb_agg(md5(n || '-' || m)) FROM generate_series(1, 400) m)"
        f" FROM generate_series(1, {SNAPSHOTS}) n"
    )
    source.execute("INSERT INTO tags (id, name) SELECT n, 'tag ' || n FROM generate_series(1, 10) n")
    source.execute(
        "INSERT INTO feedbacks (id, content, \"challengeId\") SELECT n, 'text', 'rec' FROM generate_series(1, 50) n"
    )
    source.execute(
        "INSERT INTO campaigns (id, name, \"organizationId\") SELECT n, 'campaign', n FROM generate_series(1, 20) n"
    )
    source.execute("CREATE TABLE audit (what text, at timestamptz DEFAULT now())")
    source.execute("INSERT INTO audit (what) SELECT 'before' FROM generate_series(1, 20)")


# --- what the application does, over and over


def swap_mails(source: Connection, n: int) -> None:
    """Two users exchange a unique value."""
    one, other = 101 + n % USERS, 101 + (n * 7 + 3) % USERS
    if one != other:
        mails = [source.execute("SELECT email FROM users WHERE id = %s", (user,)).fetchone() for user in (one, other)]
        for mail, user in ((None, one), (mails[0], other), (mails[1], one)):
            source.execute(MAIL, (mail and mail[0], user))


def pass_name_on(source: Connection, n: int) -> None:
    """A row goes, and another one gets its unique value; then that one's key is taken again."""
    name = f"tag {n % 10 + 1}"
    source.execute("DELETE FROM tags WHERE name = %s", (name,))
    source.execute("INSERT INTO tags (id, name) VALUES (%s, %s)", (1000 + n, name))
    if n % 3 == 0:
        source.execute("UPDATE tags SET id = id + 1000000 WHERE id = %s", (1000 + n,))
        source.execute("INSERT INTO tags (id, name) VALUES (%s, %s)", (1000 + n, f"again {n}"))


def move_snapshot(source: Connection, n: int) -> None:
    """A key changes while its long value stays unsent, and the old key is taken by a new row; long values stay, too."""
    key = n % SNAPSHOTS + 1
    source.execute('UPDATE "knowledge-element-snapshots" SET id = id + 100000 + %s WHERE id = %s', (n, key))
    source.execute(
        'INSERT INTO "knowledge-element-snapshots" (id, "userId", "snappedAt", snapshot) VALUES (%s, %s, now(),'
        " (SELECT jsonb_agg(md5(%s || '-' || m)) FROM generate_series(1, 80) m))",
        (key, 1000 + n, str(n)),
    )
    source.execute(
        'UPDATE "knowledge-element-snapshots" SET "userId" = -"userId" WHERE id > 100000 AND id %% 20 = %s', (n % 20,)
    )
    source.execute('DELETE FROM "knowledge-element-snapshots" WHERE id > 100000 AND id < %s', (100000 + n - 100,))


def answer(source: Connection, n: int) -> None:
    """The busiest table: rows come, change and go."""
    source.execute(
        "INSERT INTO answers (id, value, \"challengeId\") VALUES (%s, %s, 'rec')", (100000 + n, f"value {n}")
    )
    source.execute("UPDATE answers SET result = 'ok', timeout = %s WHERE id %% 20 = %s", (n, n % 20))
    source.execute("DELETE FROM answers WHERE id > 100000 AND id < %s", (100000 + n - 200,))
    if n % 4 == 0:
        source.execute("DELETE FROM answers WHERE id = %s", (100000 + n,))
        source.execute("INSERT INTO answers (id, value, \"challengeId\") VALUES (%s, 'back', 'rec')", (100000 + n,))


def note(source: Connection, n: int) -> None:
    """A table without a key, and one that is only updated."""
    source.execute("INSERT INTO audit (what) VALUES (%s)", (f"note {n}",))
    source.execute("UPDATE organizations SET credit = %s WHERE id = %s", (n, n % ORGANIZATIONS + 1))
    if n % 50 == 0:
        source.execute("TRUNCATE audit")


TRANSACTIONS: list[Callable[[Connection, int], object]] = [swap_mails, answer, pass_name_on, note, move_snapshot]

WHILE = {
    # No transaction is streamed yet.
    "wait": 'ALTER TABLE "knowledge-elements" ADD COLUMN "early" int DEFAULT 3',
    # In the stream, and in the backup.
    "backup": "ALTER TABLE campaigns ADD COLUMN remark text; UPDATE campaigns SET remark = 'r' WHERE id < 10;"
    " TRUNCATE feedbacks; INSERT INTO feedbacks (id, content, \"challengeId\") VALUES (7, 'after', 'rec')",
    # In the stream, and not in the backup: with rows that follow, without, and with a default that no row says.
    "restore": "ALTER TABLE organizations ADD COLUMN seats int DEFAULT 7;"
    " ALTER TABLE assessments ADD COLUMN silent text",
    "catch-up": "ALTER TABLE answers ADD COLUMN late text; UPDATE answers SET late = 'l'; TRUNCATE knex_migrations;"
    " ALTER TABLE tags ADD COLUMN colour text DEFAULT 'red'; ALTER TABLE badges ADD COLUMN shade int DEFAULT 5;"
    " INSERT INTO knex_migrations (id, name) VALUES (1, 'new')",
    # After the cut-over.
    "users_email_unique of public.users is built": "ALTER TABLE users ADD COLUMN nickname text;"
    " UPDATE users SET nickname = 'n' WHERE id < 110;"
    " INSERT INTO feedbacks (id, content, \"challengeId\") VALUES (8, 'after', 'rec')",
}
"""What the application's migrations do when a step of the bootstrap begins, or when it says this."""


@pytest.mark.timeout(300)
async def test_the_real_dump_is_loaded_while_it_is_written_to_and_is_equal_at_the_cut_over_and_at_the_end(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase, scalingo: StandIn
) -> None:
    primary = own_server(wal_keep_size="1GB")
    source = make_database("source", server=primary)
    fill(source)
    internal, external, datamart = make_target("internal"), make_target("external"), make_target("datamart")
    datamart.execute("CREATE TABLE person (mail text, person_id bigint PRIMARY KEY, surname text, saml text)")
    datamart.execute("CREATE TABLE keyword (word text UNIQUE, no bigint PRIMARY KEY)")
    targets = {
        "internal": follow(internal),
        "external": listed(
            external,
            {
                "public.users": ["id", "email"],
                "public.answers": ["id", "result", "timeout"],
                "public.tags": ["id", "name"],
                "public.knex_migrations": ["id", "name"],
                "public.audit": ["what"],
                "public.knowledge-element-snapshots": ["id", "snapshot"],
            },
        ),
        "datamart": owned(
            datamart,
            {
                "public.users": {
                    "to": "public.person",
                    "columns": {"id": "person_id", "email": "mail", "lastName": "surname", "samlId": "saml"},
                },
                "public.tags": {"to": "public.keyword", "columns": {"id": "no", "name": "word"}},
            },
        ),
    }
    scalingo.add_database(source.dsn)
    past = PointInTime(primary, own_server)
    async with Pipeline(source, targets) as pipeline:
        pipeline.settings["bootstrap"] = bootstrap_settings(scalingo)
        pipeline.configure()
        await pipeline.setup()
        for target in pipeline.targets.values():
            keep_cut_over(target)
        with Writer(source, TRANSACTIONS) as writer:
            steps = Steps({moment: partial(writer.do, sql) for moment, sql in WHILE.items()})
            summary = await loading.bootstrap(pipeline.config, from_backup=BackupChoice(), progress=steps)
            ends = {name: pipeline.position(name) or Lsn(0) for name in targets}
            for target in pipeline.targets.values():
                keep(target, "at_end")
            during = writer.count
            worker = await pipeline.start()
            # What a migration added after the cut-over: the operator does what `cdc status` says.
            stopped = await pipeline.table_in_state("internal", "public.users", "stopped")
            internal.execute(stopped.mend or "")
            await pipeline.table_in_state("internal", "public.users", "streaming")
            await pipeline.caught_up()
            writer.stop()
            assert during < writer.count, "nothing was written while the worker streamed"
        await pipeline.assert_caught_up_and_equal()
        assert not steps.at, "a step did not happen"
        await worker.terminate()

        # The tables as they were in the very transaction of the cut-over, which is one for all, and when the run ended.
        (cut_over,) = {cut_over_lsn(target) for target in pipeline.targets.values()}
        moments = [(cut_over, name, "at_cut_over") for name in targets]
        moments += [(lsn, name, "at_end") for name, lsn in ends.items()]
        for lsn, name, schema in sorted(moments):
            past.at(lsn)
            with past.connect(source) as then:
                routes = routes_of(pipeline.config, name, then)
                assert differences(then, pipeline.targets[name], routes, schema=schema) == [], (name, schema)
        # The backup was good for all but these.
        kept = {name: set(steps.copied_live(name)) for name in targets}
        assert kept == {
            "internal": {
                *("public.audit", "public.partner-certifications"),
                *("public.feedbacks", "public.knex_migrations"),
                *("public.campaigns", "public.organizations", "public.assessments"),
                *("public.answers", "public.tags", "public.badges"),
                "public.knowledge-element-snapshots",
            },
            "external": {
                *("public.audit", "public.knex_migrations", "public.answers", "public.tags"),
                "public.knowledge-element-snapshots",
            },
            "datamart": {"public.keyword"},
        }
        assert summary.targets["internal"].tables == len(await pipeline.routes("internal"))
        # What was copied later is exact from there on; the last line says so.
        assert summary.targets["datamart"].consistent_lsn == cut_over < summary.targets["internal"].consistent_lsn
        assert all(target.consistent_time is not None for target in summary.targets.values())
