"""Rows of cdc.target_table on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cdc.lsn import Lsn
from cdc.routing.route import Route
from cdc.target import migrations, position, table_state
from cdc.target.generation import generation_key
from cdc.target.session import Session, connect
from cdc.target.table_state import RowCounts, TableState
from tests.conftest import MakeDatabase

ROUTE = Route("public", "knowledge-elements", "maddo", 'it\'s "quoted" \\ here')
SOURCE = ("public", "knowledge-elements")


@pytest.fixture
async def session(make_target: MakeDatabase) -> AsyncIterator[Session]:
    opened = await connect(make_target().dsn, application_name="cdc test")
    await migrations.migrate(opened)
    await position.register(opened, "it's", "internal")
    yield opened
    await opened.close()


async def only(session: Session) -> TableState:
    (state,) = await table_state.read(session, "it's")
    return state


async def test_a_table_goes_from_copying_to_streaming_at_its_snapshot(session: Session) -> None:
    await table_state.mark_copying(session, "it's", ROUTE, created_by_cdc=True)
    state = await only(session)
    assert (state.state, state.position, state.created_by_cdc) == ("copying", None, True)
    assert state.target_name == 'maddo.it\'s "quoted" \\ here'
    await table_state.mark_streaming(session, "it's", ROUTE, consistent_from=Lsn(99))
    state = await only(session)
    assert (state.state, state.position, state.consistent_from) == ("streaming", Lsn(99), Lsn(99))
    assert state.created_by_cdc, "what cdc created stays known as such"


async def test_a_table_stops_with_its_reason_and_goes_on_from_its_position(session: Session) -> None:
    await table_state.mark_streaming(session, "it's", ROUTE, consistent_from=None)
    await table_state.stop(
        session, "it's", ROUTE, position=Lsn(7), reason="It lacks a column.", mend="ALTER TABLE …", sqlstate="42703"
    )
    state = await only(session)
    assert (state.state, state.position, state.reason, state.mend, state.sqlstate) == (
        "stopped",
        Lsn(7),
        "It lacks a column.",
        "ALTER TABLE …",
        "42703",
    )
    assert state.stopped_at is not None
    await table_state.resume(session, "it's", SOURCE)
    state = await only(session)
    assert (state.state, state.position, state.reason, state.stopped_at) == ("streaming", Lsn(7), None, None)


async def test_a_table_without_a_row_can_stop_too(session: Session) -> None:
    await table_state.stop(session, "it's", ROUTE, position=Lsn(7), reason="It is missing.")
    assert (await only(session)).state == "stopped"


async def test_positions_and_counters_travel_in_one_round_trip(session: Session) -> None:
    other = Route("public", "answers", "public", "answers")
    for route in (ROUTE, other):
        await table_state.mark_streaming(session, "it's", route, consistent_from=Lsn(50))
    behind = table_state.position_sql("it's", SOURCE, Lsn(60))
    settled = table_state.position_sql("it's", ("public", "answers"), None)
    counts = table_state.count_sql(
        "it's", {SOURCE: RowCounts(1, 2, 3, 4), ("public", "answers"): RowCounts(inserted=1 << 40)}
    )
    await session.connection.execute(f"BEGIN; {behind}; {settled}; {counts}; {counts}; COMMIT")
    answers, elements = await table_state.read(session, "it's")
    assert (answers.position, answers.inserted, answers.deleted) == (None, 2 << 40, 0)
    assert (elements.position, elements.inserted, elements.updated, elements.deleted, elements.truncated) == (
        Lsn(60),
        2,
        4,
        6,
        8,
    )


async def test_a_forgotten_table_is_gone_and_a_forgotten_pipeline_takes_its_tables_along(session: Session) -> None:
    await table_state.mark_copying(session, "it's", ROUTE)
    await table_state.forget(session, "it's", SOURCE)
    assert await table_state.read(session, "it's") == []
    await table_state.mark_copying(session, "it's", ROUTE)
    await position.forget(session, "it's")
    assert await table_state.read(session, "it's") == []


async def test_a_table_in_overlap_keeps_what_was_recorded_of_its_source_and_goes_on_in_overlap(
    session: Session,
) -> None:
    await table_state.mark_copying(session, "it's", ROUTE, source_oid=5, source_filenode=6)
    await table_state.mark_overlap(session, "it's", ROUTE)
    state = await only(session)
    assert (state.state, state.position, state.source_oid, state.source_filenode) == ("overlap", None, 5, 6)
    for _ in range(2):
        await table_state.stop(session, "it's", ROUTE, position=Lsn(7), reason="It lacks a column.")
        assert (await only(session)).is_overlap
    await table_state.resume(session, "it's", SOURCE)
    assert (await only(session)).state == "overlap"
    await table_state.mark_streaming(session, "it's", ROUTE, consistent_from=None)
    await table_state.stop(session, "it's", ROUTE, position=Lsn(7), reason="It lacks a column.")
    assert not (await only(session)).is_overlap


async def test_a_table_that_is_given_up_holds_nothing_that_counts(session: Session) -> None:
    await table_state.mark_overlap(session, "it's", ROUTE)
    await table_state.stop(session, "it's", ROUTE, position=Lsn(7), reason="It lacks a column.")
    await table_state.give_up(session, "it's", [SOURCE])
    state = await only(session)
    assert (state.state, state.position, state.reason, state.is_overlap) == ("copying", None, None, False)


async def test_forgetting_a_pipeline_forgets_the_generation_that_stands_beside(session: Session) -> None:
    await position.register(session, generation_key("it's"), "internal")
    await table_state.mark_copying(session, generation_key("it's"), ROUTE)
    assert await position.forget(session, "it's")
