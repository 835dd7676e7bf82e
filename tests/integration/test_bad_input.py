"""What is wrong outside of `cdc`: one clear sentence each time, where somebody looks for it, and nothing is lost.

Every test mends what it broke, and ends with a comparison: what was waited for has been applied exactly once. None of
the sentences holds a password or a row value. (What `cdc check` says to the same is in test_check, test_source_check
and test_target_check; the sentences of single connections are in test_source_connection and test_target_session. A
slot that is in use: hazard 5.)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cdc.lsn import Lsn
from tests.conftest import MakeDatabase, MakeRole, MakeServer
from tests.database import Database
from tests.faults.proxy import Direction, Proxy
from tests.pipeline import Pipeline, Worker, follow

ITEMS = "CREATE TABLE items (id int PRIMARY KEY, value text); INSERT INTO items VALUES (1, 'first')"
SECRET = "a-password-of-nobody"


async def missing(worker: Worker) -> dict[str, str]:
    """What `/readyz` says is missing: ``source`` or a target's name, and a sentence."""
    _, body = await worker.get("/readyz")
    found = json.loads(body)
    told = found["missing"]
    assert isinstance(told, dict)
    return told


async def says(pipeline: Pipeline, where: str, *words: str, deadline_s: float = 30) -> str:
    """Wait until `/readyz` has a sentence for the source or a target that holds all of these words."""

    async def is_said() -> bool:
        sentence = (await missing(pipeline.worker)).get(where, "")
        return all(word in sentence for word in words)

    await pipeline.until(is_said, f"/readyz says of {where}: {words}", deadline_s=deadline_s, worker=pipeline.worker)
    return (await missing(pipeline.worker))[where]


def no_secret_in(*texts: str) -> None:
    assert not [text for text in texts if SECRET in text or "Traceback" in text]


# --- connections


async def test_a_source_that_cannot_be_used_is_named_and_waited_for(
    source: Database, make_target: MakeDatabase, make_role: MakeRole, unused_tcp_port: int
) -> None:
    source.execute(ITEMS)
    guarded = make_role("LOGIN REPLICATION", password="right")
    plain = make_role("LOGIN")
    port = urlsplit(source.dsn).port
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        source.execute(f'GRANT USAGE ON SCHEMA cdc TO "{plain}"; GRANT SELECT ON items, cdc.heartbeat TO "{plain}"')
        source.execute("INSERT INTO items VALUES (2, 'while it was wrong')")
        good = source.dsn
        for dsn, words in (
            (source.dsn_as(guarded, SECRET), ("the user or the password is wrong",)),
            (good.replace(source.name, "nowhere"), ("/nowhere", "the database does not exist")),
            (good.replace(f":{port}/", f":{unused_tcp_port}/"), (f":{unused_tcp_port}/", "nothing listens there")),
            (source.dsn_as(plain), (f"the role {plain} may not replicate", "give it the REPLICATION attribute")),
        ):
            pipeline.settings["source"]["dsn"] = dsn
            pipeline.configure()
            worker = await pipeline.start(ready=False)
            await says(pipeline, "source", *words)
            assert worker.runs, "a platform gives up on what exits"
            status, printed = await pipeline.cdc("bootstrap", "--from", "live", "--again", "public.items")
            assert status == 1
            assert printed.startswith("cdc: ")
            assert all(word in printed for word in words), printed
            await worker.terminate()
            no_secret_in(worker.log_text(), printed)

        pipeline.settings["source"]["dsn"] = good
        pipeline.configure()
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_targets_that_cannot_be_used_are_named_and_waited_for_while_the_others_go_on(
    source: Database, make_target: MakeDatabase, make_role: MakeRole, unused_tcp_port: int
) -> None:
    source.execute(ITEMS)
    names = ("good", "guarded", "gone", "away", "refusing")
    databases = {name: make_target(name) for name in names}
    role = make_role("LOGIN SUPERUSER", password="right")
    async with Pipeline(source, {name: follow(database) for name, database in databases.items()}) as pipeline:
        await pipeline.load()
        right = {name: database.dsn for name, database in databases.items()}
        port = urlsplit(right["away"]).port
        wrong = {
            "guarded": databases["guarded"].dsn_as(role, SECRET),
            "gone": right["gone"].replace(databases["gone"].name, "nowhere"),
            "away": right["away"].replace(f":{port}/", f":{unused_tcp_port}/"),
            "refusing": databases["refusing"].dsn_as("nobody-there"),
        }
        for name, dsn in wrong.items():
            pipeline.settings["targets"][name]["dsn"] = dsn
        pipeline.configure()
        worker = await pipeline.start(ready=False)
        await says(pipeline, "guarded", "the password is wrong: correct the target's DSN")
        await says(pipeline, "gone", "the database does not exist: create it or correct the target's DSN")
        await says(pipeline, "away", "nothing listens there; it is tried again")
        await says(pipeline, "refusing", "the role may not connect")
        source.execute("INSERT INTO items VALUES (2, 'while it was wrong'); DELETE FROM items WHERE id = 1")
        written = source.current_lsn()
        await pipeline.caught_up(written, "good")
        assert pipeline.confirmed() < written, "who cannot be asked may need anything"
        assert {name: await worker.metric("cdc_target_up", target=name) for name in names} == {
            "good": 1,
            "guarded": 0,
            "gone": 0,
            "away": 0,
            "refusing": 0,
        }
        no_secret_in(worker.log_text(), str(await missing(worker)), (await pipeline.status()).to_json())

        # One is mended where it is wrong, while the worker runs; the others in the configuration.
        databases["guarded"].execute(f"ALTER ROLE \"{role}\" PASSWORD '{SECRET}'")
        await pipeline.caught_up(written, "guarded")
        await worker.terminate()
        for name, dsn in right.items():
            pipeline.settings["targets"][name]["dsn"] = dsn
        pipeline.configure()
        await pipeline.start()
        await pipeline.assert_caught_up_and_equal()


async def test_a_source_that_does_not_write_logical_wal_is_told_what_to_set(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    server = own_server(wal_level="replica")
    source = make_database("source", server=server)
    source.execute(ITEMS)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.setup()
        status, printed = await pipeline.cdc("bootstrap", "--from", "live")
        assert status == 1
        assert "has wal_level = replica: set it to logical and restart the server" in printed
        assert "ALTER SYSTEM SET wal_level = 'logical'" in printed

        source.execute("ALTER SYSTEM SET wal_level = 'logical'")
        source.close()
        server.configure({"wal_level": "logical"})
        server.restart()
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO items VALUES (2, 'second')")
        await pipeline.assert_caught_up_and_equal()


async def test_a_missing_right_on_a_target_stops_that_table_until_it_is_granted(
    source: Database, make_target: MakeDatabase, make_role: MakeRole
) -> None:
    source.execute(ITEMS + "; CREATE TABLE others (id int PRIMARY KEY)")
    target, role = make_target(), make_role("LOGIN")
    target.execute(
        "CREATE TABLE items (id int PRIMARY KEY, value text); CREATE TABLE others (id int PRIMARY KEY);"
        f'GRANT ALL ON items, others TO "{role}"; GRANT CREATE ON DATABASE "{target.name}" TO "{role}"'
    )
    async with Pipeline(source, {"internal": follow(target, dsn=target.dsn_as(role))}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        target.execute(f'REVOKE INSERT, UPDATE ON items FROM "{role}"')
        source.execute("INSERT INTO items VALUES (2, 'second'); INSERT INTO others VALUES (1)")
        state = await pipeline.table_in_state("internal", "public.items", "stopped")
        assert f'the role "{role}" may not write to it (SQLSTATE 42501' in (state.reason or "")
        assert state.mend is not None
        await pipeline.caught_up()
        await pipeline.assert_equal(leave_out=["public.items"])

        target.execute(state.mend)

        await pipeline.table_in_state("internal", "public.items", "streaming")
        await pipeline.assert_caught_up_and_equal()


# --- the slot


async def test_a_slot_that_is_gone_needs_a_resync_and_is_never_replaced(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        source.execute("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
        worker = await pipeline.start(ready=False)
        await says(pipeline, "source", f"the source has no slot {pipeline.slot}", "bootstrap the targets again")
        source.execute("INSERT INTO items VALUES (2, 'lost')")
        status = await pipeline.target_status("internal")
        assert status.state == "needs resync"
        assert f"slot '{pipeline.slot}' does not exist at the source any more" in (status.last_error or "")
        assert worker.runs
        assert source.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", pipeline.slot) == 0


async def test_a_slot_that_lost_its_wal_needs_a_resync(
    own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    server = own_server(max_slot_wal_keep_size="2MB", min_wal_size="32MB", max_wal_size="32MB", wal_keep_size=0)
    source = make_database("source", server=server)
    source.execute(ITEMS)
    async with Pipeline(source, {"internal": follow(make_target())}) as pipeline:
        await pipeline.load()
        for _ in range(4):
            source.execute(
                "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000)); SELECT pg_switch_wal()"
            )
        source.execute("CHECKPOINT")
        await pipeline.start(ready=False)
        sentence = await says(pipeline, "source", f"the slot {pipeline.slot} is lost", "bootstrap the targets again")
        assert "drop it" in sentence
        status = await pipeline.target_status("internal")
        assert status.state == "needs resync"
        assert "WAL that it needs was removed (max_slot_wal_keep_size)" in (status.last_error or "")


async def test_a_slot_ahead_of_a_target_stops_that_target_alone(source: Database, make_target: MakeDatabase) -> None:
    source.execute(ITEMS)
    restored = make_target("restored")
    async with Pipeline(source, {"good": follow(make_target("good")), "restored": follow(restored)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO items VALUES (2, 'second')")
        await pipeline.assert_caught_up_and_equal()
        backup = restored.fetchval("SELECT position::text FROM cdc.target")
        source.execute("INSERT INTO items VALUES (3, 'third')")
        await pipeline.assert_caught_up_and_equal()
        await pipeline.until(lambda: pipeline.confirmed() > Lsn.parse(backup), "the slot has moved on")
        await pipeline.worker.terminate()
        restored.execute("UPDATE cdc.target SET position = %s", backup)
        restored.execute("DELETE FROM items WHERE id = 3")

        worker = await pipeline.start(ready=False)
        await says(pipeline, "restored", "needs a resync", f"ahead of the target's position {backup}", "cdc bootstrap")
        source.execute("INSERT INTO items VALUES (4, 'fourth')")
        written = source.current_lsn()
        await pipeline.caught_up(written, "good")
        await pipeline.until(lambda: pipeline.confirmed() >= written, "who needs a resync holds no WAL")
        assert (await pipeline.target_status("restored")).state == "needs resync"
        assert restored.fetchval("SELECT count(*) FROM items") == 2, "nothing is applied across a gap"
        assert await worker.metric("cdc_target_state", target="restored", state="needs resync") == 1


# --- the stream


@pytest.mark.parametrize("damage", ["kind of message", "kind of value", "length of value", "length of frame"])
async def test_a_damaged_stream_is_read_again(source: Database, make_target: MakeDatabase, damage: str) -> None:
    source.execute(ITEMS)
    oid = source.fetchval("SELECT 'items'::regclass::oid")
    insert = b"I" + oid.to_bytes(4, "big") + b"N\x00\x02b\x00\x00\x00\x04\x00\x00\x00\x02b\x00\x00\x00\x06second"
    broken = {
        "kind of message": b"Z" + insert[1:],
        "kind of value": insert[:8] + b"x" + insert[9:],
        "length of value": insert[:9] + b"\x7f" + insert[10:],
        "length of frame": insert,
    }[damage]
    done: list[bytes] = []

    def break_once(data: bytes) -> bytes:
        place = data.find(insert)
        if place < 0 or done:
            return data
        done.append(data)
        if damage == "length of frame":
            # CopyData: 'd', its length, 'w', three numbers of eight bytes, and then the message.
            return data[: place - 29] + b"\x00\x00\x00\x00" + data[place - 25 :]
        return data.replace(insert, broken, 1)

    port = urlsplit(source.dsn).port
    assert port is not None
    async with Proxy("127.0.0.1", port) as proxy:
        targets = {"internal": follow(make_target("internal")), "other": follow(make_target("other"))}
        async with Pipeline(source, targets, source_dsn=proxy.dsn(source.dsn)) as pipeline:
            await pipeline.load()
            worker = await pipeline.start()
            proxy.damage(Direction.TO_CLIENT, break_once)
            source.execute("INSERT INTO items VALUES (2, 'second')")
            stopped = await pipeline.logged("no stream")
            assert done
            if damage != "length of frame":
                assert "damaged" in stopped["reason"], stopped["reason"]
            source.execute("INSERT INTO items VALUES (3, 'third'); UPDATE items SET value = 'changed' WHERE id = 2")
            await pipeline.assert_caught_up_and_equal()
            assert worker.runs
            assert "second" not in worker.log_text()


# --- targets


async def test_a_table_that_a_target_lacks_stops_alone_until_it_is_back(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS + "; CREATE TABLE others (id int PRIMARY KEY)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO items VALUES (2, 'second')")
        await pipeline.caught_up()
        target.execute("ALTER TABLE items RENAME TO hidden")
        source.execute("INSERT INTO items VALUES (3, 'third'); INSERT INTO others VALUES (1)")
        state = await pipeline.table_in_state("internal", "public.items", "stopped")
        assert "table public.items (from public.items): the table does not exist there" in (state.reason or "")
        source.execute("UPDATE items SET value = 'changed' WHERE id = 1; INSERT INTO others VALUES (2)")
        await pipeline.caught_up()
        assert target.fetchval("SELECT count(*) FROM others") == 2

        target.execute("ALTER TABLE hidden RENAME TO items")

        await pipeline.table_in_state("internal", "public.items", "streaming")
        await pipeline.assert_caught_up_and_equal()


async def test_a_constraint_that_rejects_a_row_holds_its_target_or_its_table_as_configured(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS + "; CREATE TABLE others (id int PRIMARY KEY)")
    databases = {name: make_target(name) for name in ("good", "holds", "sets_aside")}
    targets = {
        "good": follow(databases["good"]),
        "holds": follow(databases["holds"]),
        "sets_aside": follow(databases["sets_aside"], on_error="quarantine_table"),
    }
    async with Pipeline(source, targets) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        for name in ("holds", "sets_aside"):
            databases[name].execute("ALTER TABLE items ADD CONSTRAINT short CHECK (length(value) < 10)")
        with source.transaction():
            source.execute("INSERT INTO items VALUES (2, 'second'); INSERT INTO others VALUES (1)")
        with source.transaction():
            source.execute("INSERT INTO others VALUES (2); INSERT INTO items VALUES (3, 'much too long for it')")
        source.execute("INSERT INTO items VALUES (4, 'fourth'); INSERT INTO others VALUES (3)")

        await says(
            pipeline, "holds", "an insert of the transaction at", "breaks a rule", "constraint short", "SQLSTATE 23514"
        )
        state = await pipeline.table_in_state("sets_aside", "public.items", "stopped")
        assert "constraint short" in (state.reason or "")
        await pipeline.caught_up(None, "good", "sets_aside")
        rows = {name: databases[name].fetch("SELECT id FROM items ORDER BY 1") for name in databases}
        others = {name: databases[name].fetchval("SELECT count(*) FROM others") for name in databases}
        assert rows == {"good": [(1,), (2,), (3,), (4,)], "holds": [(1,), (2,)], "sets_aside": [(1,), (2,)]}
        assert others == {"good": 3, "holds": 1, "sets_aside": 3}
        held = await pipeline.target_status("holds")
        assert held.state == "stopped"
        assert "constraint short" in (held.last_error or "")
        assert "much too long" not in worker.log_text() + (await pipeline.status()).to_json()

        for name in ("holds", "sets_aside"):
            databases[name].execute("ALTER TABLE items DROP CONSTRAINT short")
        await pipeline.table_in_state("sets_aside", "public.items", "streaming")
        await pipeline.assert_caught_up_and_equal()


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """A file system of 8 MB at ``directory``; false where this machine does not let us mount one."""
    directory.mkdir()
    parent = directory.parent.stat()
    owner = f"uid={parent.st_uid},gid={parent.st_gid}"
    command = ["mount", "-t", "tmpfs", "-o", f"size=8m,mode=700,{owner}", "tmpfs", str(directory)]
    is_mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


NO_SPACE = """
CREATE FUNCTION public.no_space() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_space BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION public.no_space();
ALTER TABLE items ENABLE ALWAYS TRIGGER no_space;
"""
"""Where no file system can be mounted: the server's own answer to a full disk, on demand."""


async def test_a_full_disk_on_a_target_is_waited_for_while_the_others_go_on(
    source: Database, own_server: MakeServer, make_database: MakeDatabase, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS)
    server = own_server(side="target")
    full = make_database("full", server=server)
    disk = server.directory / "small"
    with small_disk(disk) as is_mounted:
        async with Pipeline(source, {"good": follow(make_target("good")), "full": follow(full)}) as pipeline:
            await pipeline.load()
            worker = await pipeline.start()
            if is_mounted:
                full.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                full.execute("ALTER TABLE items SET TABLESPACE small")
            else:
                full.execute(NO_SPACE)
            source.execute("INSERT INTO items SELECT n, repeat('x', 1000) FROM generate_series(2, 15000) AS n")
            await says(pipeline, "full", "its disk is full: free space or enlarge it", "SQLSTATE 53100")
            source.execute("UPDATE items SET value = 'changed' WHERE id <= 10")
            await pipeline.caught_up(None, "good")
            assert full.fetchval("SELECT count(*) FROM items") == 1, "all of it or nothing"
            assert await worker.metric("cdc_retries_total", target="full") > 0

            if is_mounted:
                subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            else:
                full.execute("DROP TRIGGER no_space ON items")
            await pipeline.assert_caught_up_and_equal()
        server.close()


async def test_a_table_that_differs_stops_and_can_be_loaded_again_alone(
    source: Database, make_target: MakeDatabase
) -> None:
    source.execute(ITEMS + "; CREATE TABLE others (id int PRIMARY KEY)")
    target = make_target()
    async with Pipeline(source, {"internal": follow(target)}) as pipeline:
        await pipeline.load()
        worker = await pipeline.start()
        target.execute("DELETE FROM items WHERE id = 1")
        source.execute("INSERT INTO items VALUES (2, 'second'); UPDATE items SET value = 'changed' WHERE id = 1")
        source.execute("INSERT INTO others VALUES (1)")
        state = await pipeline.table_in_state("internal", "public.items", "stopped")
        assert "finds no row, so source and target differ: load this table again" in (state.reason or "")
        await pipeline.caught_up()
        await pipeline.assert_equal(leave_out=["public.items"])

        await worker.terminate()
        target.execute("DELETE FROM cdc.target_table WHERE source_table = 'items'; TRUNCATE items")
        await pipeline.load()
        await pipeline.start()
        source.execute("INSERT INTO items VALUES (3, 'third'); UPDATE items SET value = 'again' WHERE id = 1")
        await pipeline.assert_caught_up_and_equal()
        assert (await pipeline.table_status("internal", "public.items")).state == "streaming"
