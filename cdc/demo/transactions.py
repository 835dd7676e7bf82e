"""What the application of the demo does: one function per kind of transaction.

Each takes an open connection of the source, in a transaction that the caller commits, and a source of randomness that
belongs to one writer. Rows are chosen among those that the demo began with; a statement that finds none does nothing.
Between them they make every kind of change that is hard to replicate.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import psycopg

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Transaction = Callable[[Connection, Random], Awaitable[None]]

USERS, CAMPAIGNS, PARTICIPATIONS, ORGANIZATIONS, CENTERS = 2000, 150, 2000, 40, 10
"""How many rows sql/demo/rows.sql begins with; their keys count from 1."""

BULK = 5000
"""Rows of one large transaction, several times what a batch has otherwise."""


async def answer(db: Connection, random: Random) -> None:
    """Some answers of one assessment."""
    rows = [
        (random.choice(["1", "", None, "é\n\t\\"]), random.choice(["ok", "ko"]), f"rec{random.randrange(300)}", n)
        for n in range(random.randrange(1, 10))
    ]
    async with db.cursor() as cursor:
        await cursor.executemany(
            'INSERT INTO answers (value, result, "challengeId", "assessmentId") VALUES (%s, %s, %s, %s)', rows
        )


async def sign_up(db: Connection, random: Random) -> None:
    """One transaction over four tables: a user, a participation, a snapshot of many kilobytes, the first answers."""
    cursor = await db.execute(
        'INSERT INTO users ("firstName", "lastName", email) VALUES (%s, %s, %s) RETURNING id',
        ("Ève", "O'Neill", f"{random.getrandbits(64):x}@example.org"),
    )
    (user,) = await _row(cursor)
    cursor = await db.execute(
        'INSERT INTO "campaign-participations" ("campaignId", "userId") VALUES (%s, %s) RETURNING id',
        (random.randint(1, CAMPAIGNS), user),
    )
    (participation,) = await _row(cursor)
    await db.execute(
        'INSERT INTO "knowledge-element-snapshots" ("campaignParticipationId", snapshot) VALUES (%s, %s)',
        (participation, _snapshot(random)),
    )
    await answer(db, random)


async def share(db: Connection, random: Random) -> None:
    """An update of an enum, a numeric and a time."""
    await db.execute(
        'UPDATE "campaign-participations" SET status = %s, "masteryRate" = %s, "sharedAt" = now() WHERE id = %s',
        (random.choice(["TO_SHARE", "SHARED"]), random.randrange(100) / 100, random.randint(1, PARTICIPATIONS)),
    )


async def improve(db: Connection, random: Random) -> None:
    """The old row leaves a partial unique index, then the new one enters it: in another order, the target refuses."""
    cursor = await db.execute(
        'UPDATE "campaign-participations" SET "isImproved" = true WHERE "userId" = %s AND NOT "isImproved"'
        ' RETURNING "campaignId", "userId"',
        (random.randint(1, USERS),),
    )
    for campaign, user in await cursor.fetchall():
        await db.execute(
            'INSERT INTO "campaign-participations" ("campaignId", "userId") VALUES (%s, %s)', (campaign, user)
        )


async def touch_snapshot(db: Connection, random: Random) -> None:
    """An update that leaves the large jsonb alone: its value is not in the stream."""
    await db.execute(
        'UPDATE "knowledge-element-snapshots" SET "snappedAt" = clock_timestamp() WHERE "campaignParticipationId" = %s',
        (random.randint(1, 200),),
    )


async def rewrite_snapshot(db: Connection, random: Random) -> None:
    """An update of the large jsonb itself."""
    await db.execute(
        'UPDATE "knowledge-element-snapshots" SET snapshot = %s WHERE "campaignParticipationId" = %s',
        (_snapshot(random), random.randint(1, 200)),
    )


async def move_snapshot(db: Connection, random: Random) -> None:
    """A key changes, and the large jsonb beside it does not."""
    await db.execute(
        'UPDATE "knowledge-element-snapshots" SET id = gen_random_uuid() WHERE "campaignParticipationId" = %s',
        (random.randint(1, 200),),
    )


async def swap_codes(db: Connection, random: Random) -> None:
    """A unique value moves from one row to another and back: the end alone tells nothing of the way."""
    one, other = sorted(random.sample(range(1, CAMPAIGNS + 1), 2))
    cursor = await db.execute("SELECT code FROM campaigns WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", (one, other))
    (first,), (second,) = await cursor.fetchall()
    for campaign, code in ((one, f"~{random.getrandbits(28):x}"), (other, first), (one, second)):
        await db.execute("UPDATE campaigns SET code = %s WHERE id = %s", (code, campaign))


async def move_skill(db: Connection, random: Random) -> None:
    """Keys of two columns change; several are exchanged in one statement."""
    await db.execute(
        'UPDATE campaign_skills SET "skillId" = "skillId" || %s WHERE "campaignId" = %s AND length("skillId") < 40',
        ("'", random.randint(1, CAMPAIGNS)),
    )


async def delete_some(db: Connection, random: Random) -> None:
    """Deletes of several tables, and an insert of a key that was just deleted."""
    campaign = random.randint(1, CAMPAIGNS)
    first = random.randint(1, 15000)
    await db.execute("DELETE FROM answers WHERE id BETWEEN %s AND %s", (first, first + 5))
    await db.execute('DELETE FROM "pole-emploi-sendings" WHERE id = %s', (random.randint(1, 400),))
    await db.execute('DELETE FROM campaign_skills WHERE "campaignId" = %s', (campaign,))
    for skill in range(3):
        await db.execute("INSERT INTO campaign_skills VALUES (%s, %s)", (campaign, f"skill{skill}"))


async def anonymise(db: Connection, random: Random) -> None:
    """Under the GDPR: an UPDATE that must reach every target that holds the person."""
    user = random.randint(1, USERS)
    await db.execute(
        'UPDATE users SET "firstName" = %s, "lastName" = %s, email = NULL, "hasBeenAnonymised" = true WHERE id = %s',
        ("(anonymised)", "(anonymised)", user),
    )
    await db.execute('UPDATE "pole-emploi-sendings" SET payload = NULL WHERE "campaignParticipationId" = %s', (user,))


async def move_places(db: Connection, random: Random) -> None:
    """Places move within a table and between two tables; nobody may ever see them twice, or not at all."""
    one, other = random.sample(range(1, ORGANIZATIONS + 1), 2)
    places = random.randint(1, 5)
    for organization, change in sorted([(one, -2 * places), (other, places)]):
        cursor = await db.execute(
            'UPDATE "organization-places" SET count = count + %s WHERE "organizationId" = %s AND count + %s >= 0',
            (change, organization, change),
        )
        if not cursor.rowcount:
            raise psycopg.Rollback
    await db.execute(
        'UPDATE "center-places" SET count = count + %s WHERE "centerId" = %s', (places, random.randint(1, CENTERS))
    )


async def return_places(db: Connection, random: Random) -> None:
    """The other way round, so that none runs dry."""
    await db.execute(
        'UPDATE "organization-places" SET count = count + 2 WHERE "organizationId" = %s',
        (random.randint(1, ORGANIZATIONS),),
    )
    cursor = await db.execute(
        'UPDATE "center-places" SET count = count - 2 WHERE "centerId" = %s AND count >= 2',
        (random.randint(1, CENTERS),),
    )
    if not cursor.rowcount:
        raise psycopg.Rollback


async def release_content(db: Connection, random: Random) -> None:
    """Every row of the learning content is written again, and hardly any is different."""
    await db.execute(
        "INSERT INTO learningcontent.skills SELECT * FROM learningcontent.skills ON CONFLICT (id) DO UPDATE"
        " SET version = skills.version + (skills.id = %s)::int",
        (f"skill{random.randint(1, 400)}",),
    )


async def replace_imports(db: Connection, random: Random) -> None:
    """TRUNCATE and new rows with the old keys, in one transaction."""
    await db.execute('TRUNCATE "organization-imports"')
    await db.execute(
        'INSERT INTO "organization-imports" SELECT n, %s, ARRAY[%s] FROM generate_series(1, %s) n',
        (random.choice(["VALIDATED", "FAILED"]), random.choice([None, "", "{}"]), random.randint(5, 30)),
    )


async def change_structures(db: Connection, random: Random) -> None:
    """Rows without a key: equal ones are added, one of several equal ones is changed, one is deleted."""
    row = (f"UAI{random.randrange(100)}", random.choice([None, "structure 1"]), random.choice(["1.10", "1.1", "NaN"]))
    await db.execute("INSERT INTO fct_structures VALUES (%s, %s, %s), (%s, %s, %s)", (*row, *row))
    chosen = "(SELECT min(ctid) FROM fct_structures WHERE uai = %s)"
    await db.execute(f"UPDATE fct_structures SET capacity = capacity + 1.0 WHERE ctid = {chosen}".encode(), row[:1])
    await db.execute(f"DELETE FROM fct_structures WHERE ctid = {chosen}".encode(), (f"UAI{random.randrange(100)}",))


async def certify(db: Connection, random: Random) -> None:
    """A table that can only be added to, and one that an index identifies, with its key changing now and then."""
    await db.execute(
        'INSERT INTO "certification-subscriptions" VALUES (%s, %s)', (random.randrange(10**6), "COMPLEMENTARY")
    )
    await db.execute(
        'UPDATE "certification-courses-last-assessment-results" SET "certificationCourseId" = "certificationCourseId"'
        ' + %s, "lastAssessmentResultId" = %s WHERE "certificationCourseId" = %s',
        (random.choice([0, 0, 1000]), random.randrange(10**6), random.randint(1, 200)),
    )


async def hold_session(db: Connection, random: Random) -> None:
    """Times, intervals, floating point numbers, bytes; a key that the database alone generates."""
    await db.execute(
        'INSERT INTO sessions (address, date, time, duration, signature, "accessCode", "invigilatorPassword")'
        " VALUES (%s, %s, %s, make_interval(mins => %s), %s, %s, %s)",
        ("Room", "2026-02-28", "09:30:00.5", random.randrange(300), random.randbytes(40), "CODE", "SECRET"),
    )
    await db.execute(
        "UPDATE sessions SET coordinates = ARRAY[%s, %s] WHERE id = %s",
        (random.random(), -random.random() * 1e300, random.randint(1, 60)),
    )
    await db.execute(
        'INSERT INTO "pole-emploi-sendings" ("isSuccessful", payload) VALUES (true, %s)',
        (random.choice([None, "null", '{ "a":1,"a" : [ ] }']),),
    )


async def change_mind(db: Connection, random: Random) -> None:
    """Part of a transaction is rolled back to a savepoint."""
    await db.execute("SAVEPOINT attempt")
    await db.execute("UPDATE organizations SET name = %s", ("nobody ever sees this",))
    await db.execute("ROLLBACK TO SAVEPOINT attempt")
    await db.execute(
        'UPDATE organizations SET name = %s, "externalId" = NULL WHERE id = %s',
        (f"Organization {random.randrange(1000)}", random.randint(1, ORGANIZATIONS)),
    )


async def give_up(db: Connection, random: Random) -> None:
    """A transaction that is rolled back as a whole."""
    await db.execute("DELETE FROM answers WHERE id = %s", (random.randint(1, 15000),))
    raise psycopg.Rollback


async def queue_job(db: Connection, _random: Random) -> None:
    """Tables that no target has asked for."""
    await db.execute("UPDATE pgboss.job SET state = state WHERE id = (SELECT min(id::text)::uuid FROM pgboss.job)")
    await db.execute("INSERT INTO knex_migrations (name) VALUES ('another')")


async def load_answers(db: Connection, random: Random) -> None:
    """One transaction of thousands of rows."""
    await db.execute(
        'INSERT INTO answers (value, result, "challengeId", "assessmentId")'
        " SELECT repeat('x', n %% 50), 'ok', 'rec' || n %% 300, %s FROM generate_series(1, %s) n",
        (random.randrange(10**6), BULK),
    )


async def record_event(db: Connection, random: Random) -> None:
    """One row, in a transaction of its own: what the latency is measured on."""
    await db.execute(
        'INSERT INTO "passage-events" (type, "passageId", data) VALUES (%s, %s, %s)',
        ("CARD_FLIPPED", random.randrange(1000), json.dumps({"sequence": random.randrange(100)})),
    )


MIX: dict[Transaction, int] = {
    answer: 25,
    sign_up: 8,
    share: 12,
    improve: 6,
    touch_snapshot: 8,
    rewrite_snapshot: 3,
    move_snapshot: 3,
    swap_codes: 1,
    move_skill: 3,
    delete_some: 4,
    anonymise: 5,
    move_places: 8,
    return_places: 8,
    release_content: 1,
    replace_imports: 1,
    change_structures: 4,
    certify: 4,
    hold_session: 4,
    change_mind: 1,
    give_up: 2,
    queue_job: 4,
}
"""The kinds of transactions and how often each comes, in relation to the others."""


def _snapshot(random: Random) -> str:
    """Some ten kilobytes of JSON that hardly compress."""
    return json.dumps([{"skillId": f"rec{random.getrandbits(128):x}", "pix": n / 8} for n in range(100)])


async def _row(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = await cursor.fetchone()
    assert row is not None  # INSERT … RETURNING
    return row
