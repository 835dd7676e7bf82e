"""Heartbeats of one process: one lane writes them, whichever streams."""

from __future__ import annotations

import json
from uuid import UUID

from cdc.changes.transaction import Mark, Part
from cdc.lsn import Lsn
from cdc.service.heartbeats import heartbeat_in
from cdc.source.heartbeat import PREFIX


def beat(count: int, pipeline: str = "cdc", prefix: str = PREFIX) -> Mark:
    content = {"pipeline": pipeline, "count": count, "at": "2026-05-01T12:00:00+00:00", "incarnation": str(UUID(int=0))}
    return Mark(prefix, json.dumps(content).encode(), Lsn(count))


def part(*marks: Mark) -> Part:
    return Part(7, Lsn(1), 0, end_lsn=Lsn(9), marks=list(marks))


def test_the_last_heartbeat_of_the_pipeline_counts() -> None:
    found = heartbeat_in(part(beat(1), beat(2), beat(3, pipeline="another"), beat(4, prefix="other")), "cdc")
    assert found is not None
    assert found.count == 2


def test_what_only_looks_like_a_heartbeat_is_passed_over() -> None:
    found = heartbeat_in(part(beat(1), Mark(PREFIX, b"{}", Lsn(2))), "cdc")
    assert found is not None
    assert found.count == 1
    assert heartbeat_in(part(), "cdc") is None
