"""Which generation of a target a run loads, and over which slot."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cdc.bootstrap.aims import Aim, Found, choose
from cdc.bootstrap.pace import Pace
from cdc.config import TargetConfig
from cdc.errors import ResyncNeeded, SetupError
from cdc.lsn import Lsn
from cdc.source.slot import Slot
from cdc.target.position import TargetState

FOLLOWS = TargetConfig.model_validate({"dsn": "postgresql://h/d", "include": ["public.*"]})
OWNED = TargetConfig.model_validate({"dsn": "postgresql://h/d", "schema": "owned", "tables": {"public.a": ["id"]}})
LOST = ResyncNeeded("the slot is gone")


def state(at: int | None = None, state: str = "streaming", only: frozenset[str] | None = None) -> TargetState:
    return TargetState(
        pipeline="cdc",
        target="x",
        state="new" if at is None and state == "streaming" else state,
        fence=1,
        position=None if at is None else Lsn(at),
        history=None,
        consistent_at=None,
        transactions=0,
        heartbeat_count=None,
        heartbeat_at=None,
        last_error=None,
        last_error_at=None,
        cut_over_heartbeat=None,
        consistent_time=None,
        only_tables=only,
    )


def slot(name: str, confirmed: int = 100, *, lost: bool = False) -> Slot:
    return Slot(
        name=name,
        plugin="pgoutput",
        slot_type="logical",
        database="d",
        active=False,
        active_pid=None,
        restart_lsn=Lsn(confirmed),
        confirmed_flush_lsn=Lsn(confirmed),
        wal_status="lost" if lost else "reserved",
        safe_wal_size=None,
        retained_bytes=0,
        temporary=False,
        failover=None,
        invalidation_reason=None,
    )


def found(present: TargetState, beside: TargetState | None = None, **more: Any) -> Found:
    return Found(more.get("config", FOLLOWS), present, beside, more.get("problem"))


def aim(one: Found, *slots: Slot, partial: bool = False, **more: Any) -> Aim:
    known = {one.name: one for one in slots}
    return choose({"x": one}, pipeline="cdc", shared_slot="s", slots=known, is_partial=partial, **more)["x"]


@pytest.mark.parametrize(
    ("one", "slots", "partial", "key", "where"),
    [
        (found(state()), (), False, "cdc", "s"),
        (found(state()), (), True, "cdc", "s"),
        (found(state()), (slot("s"),), True, "cdc", "s__x"),
        (found(state()), (slot("s", lost=True),), True, "cdc", "s"),
        (found(state()), (slot("s"), slot("s__x")), True, "cdc", "s__x"),
        (found(state(None, "loading")), (slot("s"),), False, "cdc", "s"),
        (found(state(100, "loading")), (slot("s"),), False, "cdc", "s"),
        (found(state(100, "loading")), (slot("s"),), True, "cdc", "s"),
        (found(state(50, "loading")), (slot("s"),), True, "cdc", "s__x"),
        (found(state(100)), (slot("s"),), False, "cdc", "s"),
        (found(state(100)), (slot("s"), slot("s__x")), False, "cdc", "s__x"),
    ],
    ids=[
        "a first load makes the shared slot",
        "so does the first load of one target",
        "a new target beside others has a slot of its own",
        "nobody relies on a lost slot",
        "its own slot is gone on with",
        "killed before the slot's start was recorded",
        "killed on the shared slot",
        "killed on the shared slot, asked for alone",
        "what it began on is gone",
        "tables that are lacking join where the target is",
        "a target in a lane of its own stays there",
    ],
)
def test_a_target_that_holds_nothing_or_is_complete_is_loaded_in_place(
    one: Found, slots: tuple[Slot, ...], partial: bool, key: str, where: str
) -> None:
    chosen = aim(one, *slots, partial=partial)
    assert (chosen.key, chosen.slot, chosen.is_beside) == (key, where, False)


@pytest.mark.parametrize(
    ("one", "slots", "anew", "where"),
    [
        (found(state(100)), (slot("s"),), True, "s__x__new"),
        (found(state(100), problem=LOST), (slot("s"),), True, "s__x"),
        (found(state(100), problem=LOST), (), True, "s"),
        (found(state(100), problem=LOST), (slot("s", lost=True),), True, "s"),
        (found(state(100), state(120, "loading")), (slot("s"), slot("s__x__new", 120)), False, "s__x__new"),
        (found(state(50), state(120, "loading"), problem=LOST), (slot("s"), slot("s__x", 120)), False, "s__x"),
        (found(state(50), state(120, "loading"), problem=LOST), (slot("s", 120),), False, "s"),
        (found(state(100), state(None, "loading")), (slot("s"),), False, "s__x__new"),
        (found(state(100), state(120, "loading")), (slot("s"),), False, "s__x__new"),
    ],
    ids=[
        "the old tables keep their lane",
        "nobody serves the old ones",
        "there is no slot at all",
        "the slot is lost for all",
        "an interrupted one goes on, unasked",
        "an interrupted one of a target that nobody served",
        "an interrupted one on the shared slot",
        "killed before its slot was there",
        "its slot is gone, and the shared one is the old tables'",
    ],
)
def test_a_target_that_holds_data_is_loaded_beside(one: Found, slots: tuple[Slot, ...], anew: bool, where: str) -> None:
    chosen = aim(one, *slots, anew=anew, partial=True)
    assert (chosen.key, chosen.slot, chosen.is_beside) == ("cdc+", where, True)


def test_a_target_that_cannot_go_on_is_not_loaded_again_unless_somebody_asks() -> None:
    with pytest.raises(ResyncNeeded):
        aim(found(state(100), problem=LOST), slot("s"))


def test_tables_that_are_somebody_elses_are_never_loaded_beside() -> None:
    with pytest.raises(SetupError, match="cdc resync TABLE --target x"):
        aim(found(state(100), config=OWNED), slot("s"), anew=True)


def test_some_tables_are_loaded_beside_the_others() -> None:
    only = {"x": frozenset({"public.a"})}
    chosen = aim(found(state(100)), slot("s"), partial=True, only=only)
    assert (chosen.key, chosen.slot, chosen.routes.only) == ("cdc+", "s__x__new", only["x"])
    begun = found(state(100), state(120, "loading", only=only["x"]))
    assert aim(begun, slot("s"), slot("s__x__new"), partial=True, only=only) == chosen
    # Neither its own lane's slot, which the worker streams, nor the shared one when that of the load is gone.
    assert aim(begun, slot("s"), slot("s__x"), partial=True, only=only) == chosen
    assert aim(begun, slot("s"), partial=True, only=only) == chosen


def test_some_tables_are_not_loaded_beside_others_that_hold_nothing_or_cannot_go_on() -> None:
    only = {"x": frozenset({"public.a"})}
    with pytest.raises(SetupError, match="never loaded"):
        aim(found(state()), slot("s"), partial=True, only=only)
    with pytest.raises(ResyncNeeded):
        aim(found(state(100), problem=LOST), slot("s"), partial=True, only=only)


@pytest.mark.parametrize(
    ("beside", "more", "says"),
    [
        (frozenset({"public.a"}), {"anew": True}, "cdc resync public.a --target x"),
        (frozenset({"public.a"}), {"only": {"x": frozenset({"public.b"})}}, "cdc resync public.a --target x"),
        (None, {"only": {"x": frozenset({"public.b"})}}, "cdc bootstrap --from live --target x"),
    ],
)
def test_only_one_load_goes_on_beside_a_target(beside: frozenset[str] | None, more: dict[str, Any], says: str) -> None:
    one = found(state(100), state(120, "loading", only=beside))
    with pytest.raises(SetupError, match=says):
        aim(one, slot("s"), slot("s__x__new"), partial=True, **more)


def test_a_table_that_is_being_rebuilt_does_not_make_the_target_be_loaded_again() -> None:
    one = found(state(100), state(120, "loading", only=frozenset({"public.a"})))
    chosen = aim(one, slot("s"), slot("s__x__new"), partial=True)
    assert (chosen.key, chosen.slot) == ("cdc", "s")


async def test_all_who_share_a_pace_stay_under_it_together() -> None:
    pace = Pace(1_000)
    began = time.monotonic()
    await asyncio.gather(pace.spend(50), pace.spend(50), pace.spend(100))
    assert time.monotonic() - began >= 0.2
