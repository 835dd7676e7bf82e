"""Streams of messages in tests: what `cdc.changes.streamed` makes of them, and what they tell.

`transactions` says what a stream of protocol 1 tells whoever reads it: for each change the shape that was in force, so
that two streams are equal when they tell the same, wherever their descriptions stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cdc.changes.spool import SpoolSpace
from cdc.changes.streamed import Steps, StreamedTransactions, Work
from cdc.pgoutput import messages as m
from cdc.pgoutput.decoder import decode


@dataclass
class Told:
    """One transaction: its id, commit and end, and each change with the shapes of its relations."""

    xid: int
    commit_lsn: int
    commit_time_us: int
    end_lsn: int = 0
    changes: list[tuple[object, ...]] = field(default_factory=list)


def protocol_1(
    messages: Sequence[bytes],
    into: SpoolSpace | StreamedTransactions,
    *,
    at_once: int = 100,
    pack: Callable[[Sequence[bytes]], Sequence[bytes]] = list,
) -> list[bytes]:
    """What comes out; ``messages`` go in as they are received, ``at_once`` in one go, as ``pack`` makes of a list."""
    streamed = into if isinstance(into, StreamedTransactions) else StreamedTransactions(into)
    rest = iter(messages)
    found: list[bytes] = []
    while some := list(islice(rest, at_once)):
        steps = streamed.feed(pack(some))
        answer: bytes | None = None
        while (step := _next(steps, answer)) is not None:
            answer = None
            if callable(step):
                answer = step()
            else:
                found += step
    return found


def _next(steps: Steps, answer: bytes | None) -> Sequence[bytes] | Work | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None


def transactions(messages: Iterable[bytes]) -> list[Told]:
    """What protocol 1 tells; a transaction without any change is left out, as PostgreSQL 15 and later do."""
    shapes: dict[int, m.RelationMessage] = {}
    types: dict[int, m.Type] = {}
    told: list[Told] = []
    open_: Told | None = None
    for message in messages:
        match decode(message):
            case m.Begin(final_lsn, commit_time_us, xid):
                assert open_ is None
                open_ = Told(xid, final_lsn, commit_time_us)
            case m.Commit(_, commit_lsn, end_lsn, commit_time_us):
                assert open_ is not None
                assert (open_.commit_lsn, open_.commit_time_us) == (commit_lsn, commit_time_us)
                open_.end_lsn = end_lsn
                if open_.changes:
                    told.append(open_)
                open_ = None
            case m.RelationMessage() as relation:
                shapes[relation.oid] = relation
            case m.Type() as type_:
                types[type_.oid] = type_
            case m.LogicalMessage(transactional=False):
                assert open_ is None
            case m.Truncate() as truncate:
                assert open_ is not None
                open_.changes.append((message, *(shapes[oid] for oid in truncate.oids)))
            case m.Insert(oid=oid) | m.Update(oid=oid) | m.Delete(oid=oid):
                assert open_ is not None
                named = [types.get(column.type_oid) for column in shapes[oid].columns]
                open_.changes.append((message, shapes[oid], *named))
            case m.LogicalMessage():
                assert open_ is not None
                open_.changes.append((message,))
    assert open_ is None
    return told
