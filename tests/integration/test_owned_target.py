"""A target that was taken: what one session stores with its commits, and what it must not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from cdc.changes.transaction import Mark, Part
from cdc.config import TargetConfig
from cdc.errors import ResyncNeeded, TableStopped, TargetLoading
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.routing.route import Route
from cdc.routing.target_routes import TargetRoutes
from cdc.service.heartbeats import Heartbeats
from cdc.service.owned_target import OwnedTarget
from cdc.service.stops import Stops
from cdc.service.taking import take
from cdc.source.heartbeat import PREFIX
from cdc.target import migrations, position, table_state
from cdc.target.history import History, SourceHistory
from cdc.target.session import Session, connect
from cdc.target.table_state import RowCounts
from tests.conftest import MakeDatabase
from tests.database import Database

HELD, POSITION, END = Lsn(0x1000), Lsn(0x9000), Lsn(0x9999)
INCARNATION = uuid4()
ROUTE = Route("public", "slow", "public", "slow")


@pytest.fixture
def target(make_target: MakeDatabase) -> Database:
    return make_target("internal")


@pytest.fixture
async def session(target: Database) -> AsyncIterator[Session]:
    opened = await connect(target.dsn, application_name="cdc test", target="internal")
    await migrations.migrate(opened)
    await position.register(opened, "cdc", "internal")
    yield opened
    await opened.close()


async def owned(
    session: Session,
    *,
    state: str = "streaming",
    loads: bool = False,
    stops: Stops | None = None,
    held: Lsn = HELD,
    now: SourceHistory | None = None,
) -> OwnedTarget:
    """A target at POSITION with one table, ``slow``, that is catching up from HELD; ``loads``: taken to be loaded.

    ``now`` is what the source is when it is taken.
    """
    fence = (await position.take(session, "cdc")).fence
    history = History("7", 1, "cdc", INCARNATION)
    await position.record_history(session, "cdc", fence, history, POSITION, state=state)
    await table_state.mark_streaming(session, "cdc", ROUTE, consistent_from=held)
    return await take(
        session,
        "cdc",
        TargetRoutes(TargetConfig.model_validate({"dsn": "postgresql://x/y", "include": ["public.*"]})),
        now if now is not None else SourceHistory("7", 1, (), END, "cdc", HELD, None, INCARNATION),
        loads=loads,
        stops=stops if stops is not None else Stops(),
        metrics=Metrics("cdc").target("internal"),
        heartbeats=Heartbeats(),
    )


def heartbeat(commit_lsn: int, count: int, *, content: bytes | None = None) -> Part:
    """A transaction that holds nothing but a heartbeat."""
    beat = {"pipeline": "cdc", "count": count, "at": "2026-05-01T12:00:00+00:00", "incarnation": str(UUID(int=0))}
    mark = Mark(PREFIX, json.dumps(beat).encode() if content is None else content, Lsn(commit_lsn))
    return Part(7, Lsn(commit_lsn), 0, end_lsn=Lsn(commit_lsn + 8), changes=[mark], marks=[mark])


async def own_position(session: Session) -> Lsn | None:
    (table,) = await table_state.read(session, "cdc")
    return table.position


async def test_counters_are_saved_without_moving_a_table_that_is_catching_up(session: Session) -> None:
    target = await owned(session)
    assert target.positions.acknowledgeable == HELD
    target._counters.waiting = {("public", "slow"): RowCounts(inserted=1)}
    await target.save()
    assert await own_position(session) == HELD
    assert target.positions.acknowledgeable == HELD
    assert target._counters.waiting == {}


async def test_a_table_that_is_caught_up_has_no_position_of_its_own_any_more(session: Session) -> None:
    target = await owned(session)
    await target.apply([heartbeat(0x8000, 1), heartbeat(POSITION + 0x10, 2)])
    assert await own_position(session) is None
    assert target.positions.acknowledgeable == target.position == POSITION + 0x18


async def test_what_one_table_catches_up_with_says_nothing_of_how_late_the_target_is(
    session: Session, target: Database
) -> None:
    owning = await owned(session)
    target.execute("UPDATE cdc.target SET heartbeat_count = 50, heartbeat_at = now(), source_commit_at = now()")
    before = target.fetch("SELECT heartbeat_count, heartbeat_at, source_commit_at, transactions FROM cdc.target")
    await owning.apply([heartbeat(0x2000, 3)])
    assert await own_position(session) == 0x2008
    after = target.fetch("SELECT heartbeat_count, heartbeat_at, source_commit_at, transactions FROM cdc.target")
    assert after == before
    await owning.apply([heartbeat(POSITION, 51)])
    ((count, at),) = target.fetch("SELECT heartbeat_count, heartbeat_at FROM cdc.target")
    assert (count, at) == (51, datetime(2026, 5, 1, 12, tzinfo=UTC))


@pytest.mark.parametrize("content", [b"x", b"{}", b"\xff\xfe", b"[]"])
async def test_a_message_that_only_looks_like_a_heartbeat_stops_nothing(session: Session, content: bytes) -> None:
    target = await owned(session)
    await target.apply([heartbeat(POSITION, 1, content=content)])
    assert target.position == POSITION + 8


@pytest.mark.parametrize(("fork", "states"), [(POSITION + 0x10, ["copying"]), (END, ["streaming"])])
async def test_a_table_that_was_loaded_ahead_is_given_up_where_its_timeline_ended_before_that(
    session: Session, target: Database, fork: int, states: list[str]
) -> None:
    now = SourceHistory("7", 2, ((1, Lsn(fork)),), END, "cdc", HELD, None, INCARNATION)
    await owned(session, held=Lsn(POSITION + 0x100), now=now)
    assert [state for (state,) in target.fetch("SELECT state FROM cdc.target_table")] == states
    assert target.fetch("SELECT timeline, state FROM cdc.target") == [(2, "streaming")]


async def test_a_target_that_is_being_loaded_is_left_to_its_bootstrap(session: Session, target: Database) -> None:
    rival = await connect(target.dsn, application_name="cdc test", target="internal")
    fence = (await position.take(rival, "cdc")).fence
    with pytest.raises(TargetLoading, match="is being loaded by `cdc bootstrap`"):
        await owned(session, state="loading")
    fence += 1  # that of the test's own preparation
    assert target.fetch("SELECT state, fence FROM cdc.target") == [("loading", fence)]
    await rival.close()


async def test_whoever_loads_a_target_keeps_it_marked_as_being_loaded(session: Session, target: Database) -> None:
    await owned(session, state="loading", loads=True)
    assert target.fetchval("SELECT state FROM cdc.target") == "loading"


async def test_the_session_that_loads_a_target_is_not_ended_by_a_worker(session: Session, target: Database) -> None:
    fence = (await position.take(session, "cdc")).fence
    await position.record_state(session, "cdc", fence, "loading")
    worker = await connect(target.dsn, application_name="cdc test", target="internal")
    with pytest.raises(TargetLoading):
        await position.take(worker, "cdc", loads=False)
    await position.record_state(session, "cdc", fence, "streaming")
    assert (await position.take(worker, "cdc", loads=False)).fence == fence + 1
    await worker.close()


async def test_a_target_that_was_never_loaded_is_not_taken_from_whoever_may_be_about_to_load_it(
    session: Session, target: Database
) -> None:
    fence = (await position.take(session, "cdc")).fence
    history = SourceHistory("7", 1, (), END, "cdc", HELD, None, INCARNATION)
    routes = TargetRoutes(TargetConfig.model_validate({"dsn": "postgresql://x/y", "include": ["public.*"]}))
    worker = await connect(target.dsn, application_name="cdc test", target="internal")
    with pytest.raises(ResyncNeeded, match="has never been loaded"):
        await take(
            worker,
            "cdc",
            routes,
            history,
            loads=False,
            stops=Stops(),
            metrics=Metrics("cdc").target("internal"),
            heartbeats=Heartbeats(),
        )
    await worker.close()
    assert target.fetch("SELECT state, fence FROM cdc.target") == [("new", fence)]
    await position.record_history(session, "cdc", fence, History("7", 1, "cdc", INCARNATION), POSITION)


async def test_a_table_that_somebody_else_had_loaded_again_is_no_longer_stopped(session: Session) -> None:
    stops = Stops()
    stops.add("public.gone", Lsn(0x500), TableStopped("x"), None)
    target = await owned(session, stops=stops)
    assert stops.current == {}
    assert target.positions.acknowledgeable == HELD
