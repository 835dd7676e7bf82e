"""What a batch is about, found in one pass over its runs: which plans it uses, for which kinds of change, how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdc.changes.blocks import PackedRows
from cdc.changes.relation import Relation
from cdc.changes.transaction import Kind, Run, Truncation
from cdc.target.fast_path import copies_inserts
from cdc.target.steps import RoutedPart, truncated_plans
from cdc.target.table_plan import TablePlan
from cdc.target.table_shape import TableShape
from cdc.target.table_version import TablesChanged

_KINDS = (Kind.INSERT, Kind.UPDATE, Kind.DELETE)


@dataclass(slots=True)
class Counts:
    """Changes of one source table that were applied, as the source made them (before folding)."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0


@dataclass(slots=True)
class Applied:
    """What `Applier.apply` did: changes by source table (``schema.table``), and whether the strict path was needed."""

    tables: dict[str, Counts] = field(default_factory=dict)
    was_strict: bool = False

    def __iadd__(self, other: Applied) -> Applied:
        """Add what another call did."""
        for table, counts in other.tables.items():
            sum_of = self.tables.setdefault(table, Counts())
            sum_of.inserted += counts.inserted
            sum_of.updated += counts.updated
            sum_of.deleted += counts.deleted
            sum_of.truncated += counts.truncated
        self.was_strict |= other.was_strict
        return self


class Survey:
    """Counts the changes of routed parts by plan and kind."""

    def __init__(self, routed: Sequence[RoutedPart]) -> None:
        self.routed = routed
        self._rows: dict[tuple[TablePlan, Kind], int] = {}
        self._truncations: dict[TablePlan, int] = {}
        rows = self._rows
        for part in routed:
            plans = part.plans
            if part.part.packed is not None:
                self._count_packed(part.part.packed, plans)
                continue
            for change in part.part.changes:
                if isinstance(change, Run):
                    plan = plans.get(change.relation)
                    if plan is not None:
                        key = plan, change.kind
                        rows[key] = rows.get(key, 0) + len(change.rows)
                elif isinstance(change, Truncation):
                    for plan in truncated_plans(part, change):
                        self._truncations[plan] = self._truncations.get(plan, 0) + 1

    def _count_packed(self, changes: PackedRows, plans: Mapping[Relation, TablePlan]) -> None:
        for number, relation in enumerate(changes.block.relations):
            plan = plans.get(relation)
            if plan is not None:
                for kind, count in zip(_KINDS, changes.block.counts(number), strict=True):
                    if count:
                        self._rows[plan, kind] = self._rows.get((plan, kind), 0) + count

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to apply at all."""
        return bool(self._rows or self._truncations)

    @property
    def shapes(self) -> set[TableShape]:
        """The shapes that rows go into."""
        return {plan.shape for plan, _ in self._rows}

    @property
    def staged(self) -> set[TableShape]:
        """Those whose rows the fast path stages: all but the ones that see nothing but inserts."""
        return {plan.shape for plan, kind in self._rows if not (kind is Kind.INSERT and copies_inserts(plan.shape))}

    @property
    def needs_answers(self) -> bool:
        """Whether something of it cannot be sent before it is known what came of the statements before."""
        return bool(self._truncations) or any(
            plan.shape.overlap
            or plan.names_objects
            or (plan.shape.keeps_deleted and kind is not Kind.UPDATE)
            or not (plan.shape.key_is_unique or (kind is Kind.INSERT and copies_inserts(plan.shape)))
            or (kind is Kind.INSERT and copies_inserts(plan.shape) and plan.shape.counts_copies)
            for plan, kind in self._rows
        )

    @property
    def defers(self) -> bool:
        """Whether any of the tables has constraints that can be deferred."""
        return any(plan.shape.defers for plan in self._plans())

    def versions(self) -> dict[tuple[str, str], str]:
        """The versions of the tables that the plans were made for. Raises `TablesChanged` where two plans disagree."""
        versions: dict[tuple[str, str], str] = {}
        for plan in self._plans():
            name = (plan.shape.schema, plan.shape.name)
            if versions.setdefault(name, plan.version) != plan.version:
                raise TablesChanged({name})
        return versions

    def _plans(self) -> set[TablePlan]:
        return {plan for plan, _ in self._rows} | self._truncations.keys()

    def applied(self) -> Applied:
        """The counts by source table."""
        applied = Applied()
        for (plan, kind), count in self._rows.items():
            counts = applied.tables.setdefault(plan.source_table, Counts())
            if kind is Kind.INSERT:
                counts.inserted += count
            elif kind is Kind.UPDATE:
                counts.updated += count
            else:
                counts.deleted += count
        for plan, count in self._truncations.items():
            applied.tables.setdefault(plan.source_table, Counts()).truncated += count
        return applied
