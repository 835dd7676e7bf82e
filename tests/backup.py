"""What the tests of a bootstrap from a backup share.

- `Steps`: a ``Progress`` that remembers what it was told, and does something when a step begins;
- `Writer`: a thread that writes to a source without a pause;
- `keep_cut_over`: the tables of a target as they were in the very transaction that made it consistent;
- `PointInTime`: the source as it was at any LSN, by PostgreSQL's own point-in-time recovery;
- `dump`, `snapshot_dump`: archives, also of a snapshot that is older than what happened since.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import psycopg

from cdc.bootstrap.progress import Silence
from cdc.config import Config
from cdc.demo.postgres import Account, Cluster
from cdc.identifiers import quote, quote_qualified
from cdc.lsn import Lsn
from cdc.routing.route import Route
from cdc.routing.router import build_routes
from tests.conftest import MakeServer
from tests.database import Database, unique_name
from tests.scalingo import StandIn, serve
from tests.servers import program

PIX_2020 = Path(__file__).resolve().parents[2] / "shared" / "data" / "pix-2020.pgsql"
"""A real ``pg_dump -Fc`` archive: Pix' schema of October 2020, 40 tables, a few hundred rows."""

PATIENCE_S = 60.0

Connection = psycopg.Connection[tuple[Any, ...]]


class Steps(Silence):
    """Remembers steps and sentences.

    ``at`` are acts, each done once: when a step of this kind begins, or a sentence ends with these words.
    """

    def __init__(self, at: Mapping[str, Callable[[], object]] | None = None) -> None:
        self.at = dict(at or {})
        self.said: list[str] = []
        self.begun: list[tuple[str, str | None]] = []

    def step(self, kind: str, name: str | None, targets: Sequence[str]) -> None:
        self.begun.append((kind, name))
        act = self.at.pop(kind, None)
        if act is not None:
            act()

    def say(self, message: str) -> None:
        self.said.append(message)
        for words in [words for words in self.at if message.endswith(words)]:
            self.at.pop(words)()

    def copied_live(self, target: str) -> dict[str, str]:
        """The tables of a target that the backup could not serve, each with the reason that was given."""
        found = re.compile(rf"target {target}: (\S+) is copied from the live source: (.*)", re.DOTALL)
        return {match[1]: match[2] for said in self.said if (match := found.fullmatch(said))}


class Writer:
    """Runs transactions against a database, one after the other, over and over, until it is stopped. A context manager.

    At most ``per_second`` of them, so that a busy machine can follow. Each is a function of the connection and of how
    many have been before; ``count`` counts them.
    """

    def __init__(
        self,
        database: Database,
        transactions: Sequence[Callable[[Connection, int], object]],
        *,
        per_second: int = 50,
    ) -> None:
        self.count = 0
        self._pause_s = 1 / per_second
        self._dsn = database.dsn
        self._transactions = transactions
        self._asked: SimpleQueue[tuple[str, threading.Event]] = SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish the transaction that is under way. Raises what a transaction raised."""
        self._stop.set()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def do(self, sql: str) -> None:
        """Have the writer do this between two transactions, and wait until it is committed."""
        done = threading.Event()
        self._asked.put((sql, done))
        deadline = time.monotonic() + PATIENCE_S
        while not done.wait(0.1):
            assert self._thread.is_alive(), f"the writer has ended before: {sql}"
            assert time.monotonic() < deadline, f"the writer does not do this: {sql}"

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name="writer") as connection:
                while not self._stop.is_set():
                    for transaction in self._transactions:
                        self._do_what_was_asked(connection)
                        with connection.transaction():
                            transaction(connection, self.count)
                        self.count += 1
                        time.sleep(self._pause_s)
        except BaseException as error:
            self._error = error

    def _do_what_was_asked(self, connection: Connection) -> None:
        while True:
            try:
                sql, done = self._asked.get_nowait()
            except Empty:
                return
            connection.execute(sql.encode())
            done.set()


# --- what a target held at its cut-over

_KEEP_FUNCTION = """
CREATE FUNCTION public.keep(kept text) RETURNS void LANGUAGE plpgsql AS $keep$
DECLARE t record;
BEGIN
    EXECUTE format('CREATE SCHEMA %I', kept);
    FOR t IN SELECT target_schema AS s, target_table AS name FROM cdc.target_table WHERE state = 'streaming'
    LOOP
        EXECUTE format('CREATE TABLE %I.%I AS TABLE %I.%I', kept, t.name, t.s, t.name);
    END LOOP;
END $keep$;
CREATE FUNCTION public.keep_cut_over() RETURNS trigger LANGUAGE plpgsql AS $keep$
BEGIN
    PERFORM public.keep('at_cut_over');
    CREATE TABLE public.kept_lsn AS SELECT NEW.consistent_at AS lsn;
    RETURN NULL;
END $keep$;
CREATE TRIGGER keep AFTER UPDATE ON cdc.target FOR EACH ROW
    WHEN (OLD.cut_over_heartbeat IS NOT NULL AND NEW.cut_over_heartbeat IS NULL AND NEW.consistent_at IS NOT NULL)
    EXECUTE FUNCTION public.keep_cut_over();
ALTER TABLE cdc.target ENABLE ALWAYS TRIGGER keep;
"""


def keep_cut_over(target: Database) -> None:
    """Have a target that is set up keep a copy of its tables, as `keep` does, in the transaction of its cut-over."""
    target.execute(_KEEP_FUNCTION)


def cut_over_lsn(target: Database) -> Lsn:
    """The LSN of the cut-over whose tables were kept."""
    return Lsn.parse(target.fetchval("SELECT lsn::text FROM public.kept_lsn"))


def keep(target: Database, schema: str) -> None:
    """Keep a copy of the tables that are streamed to, in a schema of its own."""
    target.execute("SELECT public.keep(%s)", schema)


# --- the source as it was


class PointInTime:
    """A base backup of a whole server, which replays that server's WAL up to an LSN and stops there.

    Made before what is to be looked at; the server has to keep its WAL from then on (``wal_keep_size``).
    """

    def __init__(self, primary: Cluster, own_server: MakeServer) -> None:
        self._server = standby_of(primary, own_server, start=False)

    def at(self, lsn: Lsn) -> None:
        """Replay everything before ``lsn``, and nothing else. Only forwards; somebody has to write behind it."""
        self._server.configure({"recovery_target_lsn": str(lsn), "recovery_target_inclusive": "off"})
        if self._server.running:
            self._server.stop()
        self._server.start()
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            wait_for(connection, "pg_get_wal_replay_pause_state() = 'paused'")

    def connect(self, database: Database) -> Connection:
        """A session in a database of that time."""
        return psycopg.connect(self._server.dsn(database.name), autocommit=True)


def standby_of(primary: Cluster, own_server: MakeServer, *, start: bool = True, **settings: str | int) -> Cluster:
    """A hot standby of a server, from a base backup made now."""
    standby = own_server(start=False, **settings)
    shutil.rmtree(standby.data)
    status, output = Account.for_servers().run(
        [
            *(standby.binaries / "pg_basebackup", "--pgdata", standby.data, "--dbname", primary.dsn()),
            *("--checkpoint=fast", "--wal-method=stream", "--no-sync"),
        ],
        cwd=standby.directory,
    )
    assert status == 0, output
    # Written here, because --write-recovery-conf names every option of its libpq, and the server's may be an older one.
    signal = standby.data / "standby.signal"
    signal.touch()
    Account.for_servers().own(signal)
    standby.configure({**settings, "primary_conninfo": primary.dsn()})
    if start:
        standby.start()
    return standby


def wait_for(connection: Connection, condition: str) -> None:
    """Wait until an SQL expression is true, which nobody announces."""
    assert connection.autocommit
    deadline = time.monotonic() + PATIENCE_S
    while not (connection.execute(f"SELECT {condition}".encode()).fetchone() or [False])[0]:
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {condition}"
        time.sleep(0.02)


def differences(
    source: Connection, target: Database, routes: Sequence[Route], *, schema: str | None = None
) -> list[str]:
    """How a target's tables differ from the source's; rows are a bag, values text.

    ``schema`` is where the target's tables are looked for, if not where the routes say; those that are not there are
    left out. Columns that only one side has are left out, too.
    """
    found = []
    for route in routes:
        place = (schema or route.target_schema, route.target_table)
        here = dict.fromkeys(_columns(source, (route.source_schema, route.source_table)))
        there = dict.fromkeys(_columns(target.connection(), place))
        pairs = [(name, route.target_column(name)) for name in here]
        both = [(name, other) for name, other in pairs if other is not None and other in there]
        if not there and schema is not None:
            continue
        assert both, f"nothing of {route.source_name} is in {place}"
        expected = _rows(source, (route.source_schema, route.source_table), [name for name, _ in both])
        held = _rows(target.connection(), place, [name for _, name in both])
        if expected != held:
            missing, extra = expected - held, held - expected
            found.append(
                f"{route.source_name}: {missing.total()} missing, {extra.total()} too many of {expected.total()}: "
                f"{_sample(missing)} / {_sample(extra)}"
            )
    return found


def routes_of(config: Config, target: str, source: Connection) -> list[Route]:
    """The routes of a target, by what is in the source now."""
    tables = source.execute(
        "SELECT nspname, relname, array_agg(attname ORDER BY attnum)::text[] FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid"
        " WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema', 'cdc')"
        " AND attnum > 0 AND NOT attisdropped GROUP BY 1, 2"
    ).fetchall()
    return list(build_routes(target, config.targets[target], {f"{s}.{name}": columns for s, name, columns in tables}))


def _columns(connection: Connection, table: tuple[str, str]) -> list[str]:
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum"
    )
    return [name for (name,) in connection.execute(query, (quote_qualified(*table),))]


def _rows(connection: Connection, table: tuple[str, str], columns: Sequence[str]) -> Counter[tuple[Any, ...]]:
    listed = ", ".join(f"{quote(name)}::text" for name in columns)
    return Counter(connection.execute(f"SELECT {listed} FROM {quote_qualified(*table)}".encode()).fetchall())


def _sample(rows: Counter[tuple[Any, ...]]) -> str:
    return repr([tuple(None if value is None else value[:30] for value in row) for row in list(rows)[:3]])


# --- archives


def dump(dsn: str, path: Path, *options: str) -> Path:
    """A ``pg_dump -Fc`` of a database."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    subprocess.run(
        [program("pg_dump"), "--format=custom", f"--file={path}", f"--dbname={dsn}", *options],
        check=True,
        capture_output=True,
        env=environment,
    )
    return path


def restore(archive: Path, database: Database) -> None:
    """Restore a whole archive into an empty database."""
    subprocess.run(
        [program("pg_restore"), "--no-owner", f"--dbname={database.dsn}", archive], check=True, capture_output=True
    )


@contextmanager
def serve_snapshots(directory: Path) -> Iterator[tuple[StandIn, Callable[[str], object]]]:
    """A stand-in for Scalingo whose backups are of the exported snapshot that the function is told, if it is told one.

    So a backup can begin before something happens and be made after it, as one that takes an hour does.
    """
    directory.mkdir()
    snapshot, script = directory / "snapshot", directory / "pg_dump"
    script.write_text(
        "#!/bin/sh\n"
        f'[ -s "{snapshot}" ] && set -- "$@" "--snapshot=$(cat {snapshot})"\n'
        f'exec {program("pg_dump")} "$@"\n'
    )
    script.chmod(0o755)
    with serve(script, directory / "backups") as stand_in:
        yield stand_in, snapshot.write_text


def backup_config(source: Database, targets: Mapping[str, Mapping[str, Any]], **bootstrap: Any) -> Config:
    """A configuration with a section ``bootstrap``; heartbeats are written ten times a second."""
    slot = unique_name("slot").replace("-", "_")
    return Config.model_validate(
        {
            "source": {"dsn": source.dsn, "slot": slot, "publication": slot},
            "targets": targets,
            "worker": {"heartbeat_interval_s": 0.1},
            "bootstrap": bootstrap,
        }
    )


def bootstrap_settings(stand_in: StandIn, **more: object) -> dict[str, Any]:
    """The section ``bootstrap`` of a configuration that leads to the stand-in for Scalingo."""
    found = stand_in.bootstrap(**more).model_dump(mode="json", exclude_unset=True)
    return {**found, "scalingo_api_token": stand_in.api_token}
