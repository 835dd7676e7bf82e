"""Turns: who reads, when, and from what to what.

A round has a fresh source database and, for every contestant, fresh slots and target databases that exist before
anything is written: all drain the same WAL. Who begins alternates from round to round, so that nobody always finds the
caches that somebody else has warmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.bench.ceiling import null_target, recvlogical
from tests.bench.figures import Contestant, Kind, Link
from tests.bench.link import round_trip_ms, slow_link
from tests.bench.readers import Reader, Task
from tests.bench.servers import Servers, clone_database, drop_database
from tests.bench.subscription import SubscriptionReader
from tests.bench.worker import CdcReader
from tests.bench.workloads import Workload

Say = Callable[[str], None]

_MAKE: dict[Kind, Callable[[Task], Reader]] = {
    Kind.RECVLOGICAL: recvlogical,
    Kind.NULL: null_target,
    Kind.SUBSCRIPTION: SubscriptionReader,
    Kind.TEXT: SubscriptionReader,
    Kind.CDC: CdcReader,
}


@dataclass(frozen=True, slots=True)
class Distance:
    """Where readers connect to, and what that adds to a round trip: nothing, or a slow link's delay."""

    added_ms: float
    source_port: int
    target_port: int


@contextmanager
def distance(servers: Servers, added_ms: float) -> Iterator[tuple[Distance, Link | None]]:
    """Put slow links before both servers, and measure what they add; nothing for 0 ms.

    The target is far away: `cdc` runs beside the source and reaches its targets through a link, a subscription runs
    in the target and reaches the source through one.
    """
    if not added_ms:
        yield Distance(0.0, servers.source.port, servers.target.port), None
        return
    with slow_link(servers.source.port, added_ms) as source, slow_link(servers.target.port, added_ms) as target:
        direct = servers.target.dsn()
        through = direct.replace(f":{servers.target.port}/", f":{target}/")
        yield Distance(added_ms, source, target), Link(added_ms, round_trip_ms(direct), round_trip_ms(through))


@dataclass(frozen=True, slots=True)
class Turn:
    """A reader with its slots and its target databases, waiting."""

    round: int
    contestant: Contestant
    reader: Reader
    targets: Sequence[str]
    target_dsns: Sequence[str]


@contextmanager
def templates(servers: Servers, workload: Workload) -> Iterator[None]:
    """The databases, one on each server, that those of the workload's rounds are copies of."""
    both = (servers.source, servers.target)
    names = [workload.create_template(servers, cluster) for cluster in both]
    yield
    for cluster, name in zip(both, names, strict=True):
        drop_database(cluster, name)


@contextmanager
def one_round(
    servers: Servers, workload: Workload, contestants: Sequence[Contestant], number: int, away: Distance
) -> Iterator[tuple[str, Iterator[Turn]]]:
    """A source database, and the turns, one after the other; of each turn nothing is left when the next begins."""
    source = f"{workload.name}_{number}"
    source_dsn = clone_database(servers.source, f"{workload.name}_template", source)
    turns: list[Turn] = []
    with ExitStack() as on_failure:
        # The servers go then, with all that is in them. What cannot be removed must not hide what went wrong.
        on_failure.callback(_abandon, turns)
        for index, contestant in enumerate(contestants if number % 2 else list(reversed(contestants))):
            name = f"{source}_{index}"
            targets = [f"{name}_{target + 1}" for target in range(contestant.targets)]
            dsns = [clone_database(servers.target, f"{workload.name}_template", target) for target in targets]
            task = Task(
                servers=servers,
                contestant=contestant,
                name=name,
                source=source,
                targets=targets,
                tables=workload.tables,
                changes=workload.changes,
                source_port=away.source_port,
                target_port=away.target_port,
            )
            turns.append(Turn(number, contestant, _MAKE[contestant.kind](task), targets, dsns))
            turns[-1].reader.prepare()
        yield source_dsn, _each(servers, turns)
        on_failure.pop_all()
    drop_database(servers.source, source)


def _abandon(turns: Sequence[Turn]) -> None:
    for turn in turns:
        turn.reader.abandon()


def _each(servers: Servers, turns: list[Turn]) -> Iterator[Turn]:
    while turns:
        yield turns[0]
        turns[0].reader.remove()
        for target in turns[0].targets:
            drop_database(servers.target, target)
        del turns[0]
