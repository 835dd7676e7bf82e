"""The changes of some parts, laid out for applying: by target table, between truncations.

A *step* is what lies between two truncations. Inside it the changes of different tables may be applied in any order
that the target's constraints accept; those of one table keep their order. A table's changes are grouped by shape: a
second group begins where the source changed the table's columns, or where another relation is routed to it
differently.

Packed rows of a part stay packed (`PackedPiece`), as long as all of a table's relations in it share a shape, and can be
read by the compiled loops. `Group.runs` unpacks them for everybody who takes changes one after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from cdc.changes.blocks import PackedRows
from cdc.changes.relation import Relation
from cdc.changes.row_reader import RowReader, ValueRefused
from cdc.changes.transaction import Kind, Part, Run, Truncation
from cdc.changes.translation import UnknownObjects
from cdc.pgoutput.compiled import is_compiled
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape

if TYPE_CHECKING:
    from cdc.changes._rows import BlockRows

if is_compiled():
    from cdc.changes import _rows

TargetName = tuple[str, str]
"""Schema and name of a target's table."""

STRETCH_BYTES = 64 * 1024
"""How much is read at once. Some hundred rows of usual size are enough to make a call's fixed cost vanish; a row of
many megabytes comes alone, so that memory holds it once as a message and once as COPY's bytes."""

Reading = TypeVar("Reading", bound=Hashable)
"""What says how messages are to be read."""


@dataclass(frozen=True, slots=True)
class RoutedPart:
    """A part and the plans by which this target takes its relations; relations without a plan are not taken."""

    part: Part
    plans: Mapping[Relation, TablePlan]


@dataclass(frozen=True, slots=True)
class PackedPiece:
    """The rows of one packed part that go into one table, by the plans of their relations. ``changed``: not inserts."""

    plans: Mapping[Relation, TablePlan]
    changes: PackedRows
    rows: BlockRows
    inserted: int
    changed: int

    def runs(self) -> Iterator[tuple[TablePlan, Run]]:
        """The rows as runs, in the source's order."""
        for run in self.changes:
            plan = self.plans.get(run.relation)
            if plan is not None:
                yield plan, run


@dataclass(frozen=True, slots=True)
class RunPiece:
    """One run, and the plan by which it is taken."""

    plan: TablePlan
    run: Run

    def runs(self) -> Iterator[tuple[TablePlan, Run]]:
        """The run itself."""
        yield self.plan, self.run


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive changes of one table that share a shape."""

    shape: TableShape
    pieces: list[PackedPiece | RunPiece] = field(default_factory=list)

    def runs(self) -> Iterator[tuple[TablePlan, Run]]:
        """All changes as runs, in the source's order; those that are packed are unpacked as they are asked for."""
        for piece in self.pieces:
            yield from piece.runs()

    @property
    def has_only_inserts(self) -> bool:
        """Whether no row is updated or deleted."""
        return all(
            piece.run.kind is Kind.INSERT if isinstance(piece, RunPiece) else not piece.changed for piece in self.pieces
        )

    @property
    def packed(self) -> list[PackedPiece] | None:
        """The pieces, if all are packed."""
        pieces = [piece for piece in self.pieces if isinstance(piece, PackedPiece)]
        return pieces if len(pieces) == len(self.pieces) else None


@dataclass(slots=True)
class Step:
    """Runs by table, and the truncation that ends the step, with the plans that it concerns."""

    tables: dict[TargetName, list[Group]] = field(default_factory=dict)
    truncation: Truncation | None = None
    truncated: list[TablePlan] = field(default_factory=list)
    _last: dict[TableShape, Group] = field(default_factory=dict)  # the last group of each table, by its shape

    def add(self, plan: TablePlan, run: Run) -> None:
        """Append a run."""
        self._group(plan.shape).pieces.append(RunPiece(plan, run))

    def add_packed(self, changes: PackedRows, plans: Mapping[Relation, TablePlan]) -> None:
        """Append the rows of a packed part, as far as its relations have plans."""
        tables: dict[TargetName, dict[Relation, TablePlan]] = {}
        for relation in changes.block.relations:
            plan = plans.get(relation)
            if plan is not None:
                tables.setdefault((plan.shape.schema, plan.shape.name), {})[relation] = plan
        unpacked: set[Relation] = set()
        for taken in tables.values():
            shapes = {plan.shape for plan in taken.values()}
            if len(shapes) == 1 and all(plan.reader.projection is not None for plan in taken.values()):
                self._group(shapes.pop()).pieces.append(_packed_piece(changes, taken))
            else:
                unpacked.update(taken)
        if unpacked:
            for run in changes:
                if run.relation in unpacked:
                    self.add(plans[run.relation], run)

    def _group(self, shape: TableShape) -> Group:
        return self._last.get(shape) or self._begin(shape)

    def _begin(self, shape: TableShape) -> Group:
        groups = self.tables.setdefault((shape.schema, shape.name), [])
        if groups:
            del self._last[groups[-1].shape]
        group = self._last[shape] = Group(shape)
        groups.append(group)
        return group


def _packed_piece(changes: PackedRows, plans: Mapping[Relation, TablePlan]) -> PackedPiece:
    block = changes.block
    inserted = changed = 0
    projections = []
    for number, relation in enumerate(block.relations):
        plan = plans.get(relation)
        projections.append(None if plan is None else plan.reader.projection)
        if plan is not None:
            inserts, updates, deletes = block.counts(number)
            inserted += inserts
            changed += updates + deletes
    return PackedPiece(plans, changes, _rows.BlockRows(block, projections), inserted, changed)


def split(parts: Sequence[RoutedPart]) -> Iterator[Step]:
    """Lay out the changes of consecutive parts."""
    step = Step()
    for routed in parts:
        plans = routed.plans
        if routed.part.packed is not None:
            step.add_packed(routed.part.packed, plans)
            continue
        for change in routed.part.changes:
            if isinstance(change, Run):
                plan = plans.get(change.relation)
                if plan is not None:
                    step.add(plan, change)
            elif isinstance(change, Truncation):
                truncated = truncated_plans(routed, change)
                if truncated:
                    step.truncation, step.truncated = change, truncated
                    yield step
                    step = Step()
    if step.tables:
        yield step


def stretched(runs: Iterable[tuple[Reading, Sequence[bytes]]]) -> Iterator[tuple[Reading, list[bytes]]]:
    """The messages of runs, at most `STRETCH_BYTES` at once (but one at least), joined as long as they are read alike.

    Under a load of small transactions a run has one row, and a call for each would cost more than the row.
    """
    current: Reading | None = None
    stretch: list[bytes] = []
    size = 0
    for reading, messages in runs:
        if stretch and current is not None and reading != current:
            yield current, stretch
            stretch, size = [], 0
        current = reading
        for message in messages:
            stretch.append(message)
            size += len(message)
            if size >= STRETCH_BYTES:
                yield current, stretch
                stretch, size = [], 0
    if stretch and current is not None:
        yield current, stretch


def read_rows(reader: RowReader, run: Run) -> None:
    """Read every row of a run as the applier does, for what reading them says."""
    for message in run.rows:
        if run.kind is Kind.UPDATE:
            reader.old_and_new(message)
        else:
            reader.new_row(message)


def first_refused(refused: ValueRefused, routed: Sequence[RoutedPart]) -> tuple[Part, TablePlan]:
    """The first part with such a value, and the plan by which its relation is taken.

    Tables are read one after the other, so what was refused first need not be what comes first in the stream.
    """
    fallback: tuple[Part, TablePlan] | None = None
    for part in routed:
        plan = part.plans.get(refused.relation)
        if plan is None:
            continue
        fallback = fallback or (part.part, plan)
        for change in part.part.changes:
            if isinstance(change, Run) and change.relation is refused.relation:
                try:
                    read_rows(plan.reader, change)
                except ValueRefused:
                    return part.part, plan
                except UnknownObjects:
                    continue
    assert fallback is not None  # it was read by one of them
    return fallback


def truncated_plans(routed: RoutedPart, truncation: Truncation) -> list[TablePlan]:
    """The plans of the relations that a truncation names, those of this target."""
    return [routed.plans[relation] for relation in truncation.relations if relation in routed.plans]


def parents_first(tables: Mapping[TargetName, frozenset[TargetName]]) -> list[TargetName]:
    """Order tables, given with those they reference, so that each comes after its references as far as cycles allow."""
    ordered: list[TargetName] = []
    seen: set[TargetName] = set()

    def visit(table: TargetName) -> None:
        if table in seen or table not in tables:
            return
        seen.add(table)
        for reference in sorted(tables[table]):
            visit(reference)
        ordered.append(table)

    for table in tables:
        visit(table)
    return ordered
