"""What one table of one target gets of what the source's table has, as works. Pure: no database is asked here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from cdc.bootstrap import building
from cdc.bootstrap.building import BuildTarget, Question, Work, is_beside
from cdc.config import Config
from cdc.identifiers import quote, quote_qualified
from cdc.routing.route import Route
from cdc.routing.router import route_of
from cdc.source.catalog import SourceTable
from cdc.source.definitions import (
    SourceCheck,
    SourceComment,
    SourceForeignKey,
    SourceIndex,
    TableDefinitions,
)
from cdc.source.sequences import Sequence
from cdc.target import definitions
from cdc.target.definitions import NewConstraint, NewIndex, NewSequence
from cdc.target.session import Session, target_errors

SMALL_BYTES = 16 * 1024**2
"""A table of so many bytes is indexed in a fraction of a second: writers may as well wait for that. CONCURRENTLY waits
for every report that is running."""


@dataclass(frozen=True, slots=True)
class TableWorks:
    """One table of one target, and what the source's table has.

    ``concurrently``: changes are streamed into it meanwhile.
    """

    target: BuildTarget
    route: Route
    source: SourceTable
    found: TableDefinitions
    concurrently: bool
    config: Config

    def works(self, warn: Callable[[str], None]) -> Iterator[Work]:
        """Everything that this table gets; ``warn`` is told what it does not get although it could be expected."""
        for index in self.found.indexes:
            if index.is_valid and self._has(index.reads):
                yield from self._index(index, warn)
        for check in self.found.checks:
            if self._has(check.reads):
                yield from self._check(check, warn)
        if self.config.bootstrap.foreign_keys:
            for key in self.found.foreign_keys:
                if self._has(key.columns):
                    yield from self._foreign_key(key, warn)
        comments = [c for c in self.found.comments if c.kind != "column" or self._has([c.name])]
        if comments:
            yield comment_work(self.target, self._place(), self.route.source_name, comments, is_view=False)
        if not is_beside(self.route):
            for use in self.found.sequences:
                if self._has([use.column]):
                    yield self._sequence(use.sequence)

    def _has(self, columns: Collection[str]) -> bool:
        return all(self.route.target_column(column) is not None for column in columns)

    def _place(self) -> tuple[str, str]:
        return self.route.target_schema, self.route.target_table

    def _fence(self) -> str | None:
        access = self.target.access
        return None if self.concurrently else definitions.fence_sql(access.pipeline, access.fence)

    def _left_out(self, what: str, why: str) -> str:
        return f"target {self.target.access.name}: {what} of {self.route.source_name} is left out: {why}"

    def _index(self, index: SourceIndex, warn: Callable[[str], None]) -> Iterator[Work]:
        kind = "unique index" if index.is_unique else "index"
        if index.method is None:
            warn(self._left_out(f"{kind} {index.name}", "its definition at the source cannot be read"))
            return
        limited = self._limited_to_present_rows(index)
        if limited and (self.route.deleted_at is None or index.is_deferrable or index.constraint_kind == "exclusion"):
            why = 'rows that the source has deleted stay there (deletes = "keep"), and it does not hold over them'
            warn(self._left_out(f"{kind} {index.name}", why))
            return
        method = index.method
        if limited:
            assert self.route.deleted_at is not None  # it is left out otherwise
            # A predicate stands last in an index's text, and PostgreSQL writes it as one operand.
            method += f" {'AND' if index.is_partial else 'WHERE'} ({quote(self.route.deleted_at)} IS NULL)"
        new = NewIndex(*self._place(), index.name, index.is_unique, method)
        if index.constraint_kind == "exclusion":
            assert index.constraint_definition is not None  # the query gives both or none
            constraint = NewConstraint(*self._place(), index.name, index.constraint_definition, is_immediate=True)
            yield self._constraint(kind, constraint, building.ATTACHMENTS, index.size_bytes)
            return
        concurrently = self.concurrently and self.source.bytes > SMALL_BYTES

        async def is_there(session: Session) -> bool:
            return await definitions.index_state(session, new) == "valid"

        async def create(session: Session) -> bool:
            return await definitions.create_index(session, new, concurrently=concurrently, fence=self._fence())

        yield Work(
            self.target,
            kind,
            f"{index.name} of {self.route.source_name}",
            new.sql(),
            building.INDEXES,
            index.size_bytes,
            self._places(),
            is_there,
            create,
            is_shared=not concurrently,
        )
        if index.constraint_kind == "unique" and not limited:
            yield self._attachment(new, index)

    def _limited_to_present_rows(self, index: SourceIndex) -> bool:
        """Whether an index refuses rows beside others, and the target has more of them than the source.

        The key is unique over all of them: an insert of a key overwrites the row that stayed.
        """
        key = {self.source.relation.columns[place].name for place in self.source.relation.key}
        is_key = index.is_unique and not index.is_partial and index.reads == key
        refuses = index.is_unique or index.constraint_kind == "exclusion"
        return self.route.keeps_deleted and refuses and not is_key

    def _attachment(self, new: NewIndex, index: SourceIndex) -> Work:
        """What makes a constraint of a unique index: a moment's work, not worth a record."""
        constraint = definitions.unique_constraint(
            new, is_deferrable=index.is_deferrable, is_deferred=index.is_deferred
        )

        async def has_nothing_to_do(session: Session) -> bool:
            # Without the index there is nothing to attach; why it is missing has been said.
            return (
                await definitions.constraint_state(session, constraint) == "valid"
                or await definitions.index_state(session, new) != "valid"
            )

        return self._constraint(
            "", constraint, building.ATTACHMENTS, 0, is_there=has_nothing_to_do, name="unique constraint"
        )

    def _check(self, check: SourceCheck, warn: Callable[[str], None]) -> Iterator[Work]:
        constraint = NewConstraint(*self._place(), check.name, check.definition)
        if not check.is_valid:
            warn(self._left_out(f"check {check.name}", "rows of the source need not satisfy it, it is not valid there"))
            return
        yield self._constraint("check", constraint, building.CHECKS, self.source.bytes)

    def _foreign_key(self, key: SourceForeignKey, warn: Callable[[str], None]) -> Iterator[Work]:
        what = f"foreign key {key.name}"
        own = {route.source_name: route for route in self.target.routes}
        parent = own.get(".".join(key.parent))
        if parent is None and is_beside(self.route) and route_of(self.target.config, *key.parent) is not None:
            return  # its parent stands in the other generation, at another position: after the swap
        if parent is None:
            warn(self._left_out(what, f"{'.'.join(key.parent)}, which it points to, is not routed to this target"))
            return
        if self.route.keeps_deleted and not parent.keeps_deleted:
            why = 'rows stay in this table that the source has deleted (deletes = "keep"), and not in the other one'
            warn(self._left_out(what, why))
            return
        columns = [parent.target_column(column) for column in key.parent_columns]
        if any(column is None for column in columns):
            warn(self._left_out(what, f"not all columns of {parent.source_name} that it points to are routed"))
            return
        if not key.is_valid:
            warn(self._left_out(what, "rows of the source need not satisfy it, it is not valid there"))
            return
        place = (parent.target_schema, parent.target_table)
        definition = definitions.foreign_key_definition(
            [self.route.target_column(column) or column for column in key.columns],
            place,
            [column for column in columns if column is not None],
            is_match_full=key.is_match_full,
            has_period=key.has_period,
        )
        constraint = NewConstraint(*self._place(), key.name, definition)
        yield self._constraint("foreign key", constraint, building.FOREIGN_KEYS, self.source.bytes, parent=place)

    def _constraint(
        self,
        kind: str,
        constraint: NewConstraint,
        rank: int,
        size: int,
        *,
        parent: tuple[str, str] | None = None,
        is_there: Question | None = None,
        name: str | None = None,
    ) -> Work:
        async def exists(session: Session) -> bool:
            return await definitions.constraint_state(session, constraint) == "valid"

        async def add(session: Session) -> bool:
            return await definitions.add_constraint(session, constraint, fence=self._fence())

        return Work(
            self.target,
            name or kind,
            f"{constraint.name} of {self.route.source_name}",
            constraint.sql,
            rank,
            size,
            self._places() if parent is None else self._places() | {(self.target.access.name, *parent)},
            is_there or exists,
            add,
            is_recorded=bool(kind),
        )

    def _places(self) -> frozenset[building.Place]:
        return frozenset([(self.target.access.name, *self._place())])

    def _sequence(self, sequence: Sequence) -> Work:
        new = new_sequence(sequence)

        async def is_there(session: Session) -> bool:
            return await definitions.sequence_sql(session, new) is None

        async def make(session: Session) -> bool:
            return await definitions.set_sequence(session, new)

        return Work(
            self.target,
            "sequence",
            f"{sequence.schema}.{sequence.name}",
            new.sql.rstrip(";"),
            building.SEQUENCES,
            0,
            frozenset([(self.target.access.name, sequence.schema, sequence.name)]),
            is_there,
            make,
            is_said=False,
        )


def new_sequence(sequence: Sequence) -> NewSequence:
    """What a target is to have of a sequence of the source: one that has handed out nothing begins at its start."""
    return NewSequence(
        sequence.schema,
        sequence.name,
        sequence.type,
        sequence.start,
        sequence.increment,
        sequence.minimum,
        sequence.maximum,
        sequence.cache,
        sequence.cycles,
        sequence.last_value if sequence.is_called else None,
    )


def comment_work(
    target: BuildTarget, place: tuple[str, str], name: str, comments: Collection[SourceComment], *, is_view: bool
) -> Work:
    """The comments on one relation, and on what belongs to it, where there are none yet."""
    wanted = [(comment.kind, comment.name, comment.text) for comment in comments]

    async def is_there(session: Session) -> bool:
        return not await definitions.missing_comments(session, *place, wanted, is_view=is_view)

    async def make(session: Session) -> bool:
        missing = await definitions.missing_comments(session, *place, wanted, is_view=is_view)
        if missing:
            with target_errors(f"commenting on {'.'.join(place)}", session.where):
                await session.connection.execute("; ".join(missing))
        return bool(missing)

    return Work(
        target,
        "comment",
        name,
        f"COMMENT ON {'VIEW' if is_view else 'TABLE'} {quote_qualified(*place)} IS …",
        building.COMMENTS if not is_view else building.VIEW_COMMENTS,
        0,
        frozenset([(target.access.name, *place)]),
        is_there,
        make,
        is_said=False,
    )
