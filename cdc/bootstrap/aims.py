"""What a run of the bootstrap is to do with each target: which generation of its tables it loads, and over which slot.

Pure: `choose` is asked once, at the beginning, with what the databases say. So it gives the same answer to a run that
resumes as to the one that was killed.

A target that holds nothing is loaded into its tables' own names. One that holds data is loaded beside them, as a second
generation, if somebody asks for that or if nothing can join it to the stream again; the first generation stays, and
streams where it can, until the two are swapped.

The slot must keep, from before the rows are read, what the target has to get afterwards. The shared slot serves where
nobody relies on it yet. Otherwise a target that is in the shared lane keeps its place there, and its second generation
gets ``<slot>__<target>__new``, which is gone after the swap; and a target that is not in the shared lane gets
``<slot>__<target>``: the slot of a lane of its own, from which the worker takes it back. Some tables alone are always
loaded over ``<slot>__<target>__new``: whatever lane the target has, it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc.config import TargetConfig
from cdc.errors import ResyncNeeded, SetupError
from cdc.lsn import Lsn
from cdc.routing.target_routes import TargetRoutes
from cdc.source.slot import Slot, lane_slot, load_slot
from cdc.target.generation import generation_key
from cdc.target.position import TargetState
from cdc.target.remedies import resync_command


@dataclass(frozen=True, slots=True)
class Aim:
    """One generation of one target: ``key`` names its rows in the schema ``cdc`` there, ``slot`` is what it streams."""

    target: str
    key: str
    routes: TargetRoutes
    slot: str

    @property
    def is_beside(self) -> bool:
        """Whether it is loaded beside tables that hold data."""
        return self.routes.is_beside


@dataclass(frozen=True, slots=True)
class Found:
    """What a target says of itself.

    ``present`` is the generation that people read, ``beside`` a second one where there is any, ``problem`` why the
    first cannot go on (`None` when it can, or was never loaded).
    """

    config: TargetConfig
    present: TargetState
    beside: TargetState | None
    problem: ResyncNeeded | None

    @property
    def was_loaded(self) -> bool:
        """Whether its own tables hold data of a load that came to its end."""
        return self.present.position is not None and self.present.state != "loading"

    @property
    def is_attached(self) -> bool:
        """Whether the shared lane serves it."""
        return self.was_loaded and self.problem is None


def choose(
    found: Mapping[str, Found],
    *,
    pipeline: str,
    shared_slot: str,
    slots: Mapping[str, Slot],
    is_partial: bool,
    anew: bool = False,
    only: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, Aim]:
    """The aim of every target in ``found``.

    Args:
        found: What the targets of this run say.
        pipeline: The pipeline's name.
        shared_slot: The name of the slot that targets share.
        slots: The slots of this pipeline that the source has, by name.
        is_partial: Whether the pipeline has targets that are not in ``found``, which may rely on the shared slot.
        anew: Load targets again that need it not.
        only: For a load of some tables beside the others: by target, their names at the source.

    Raises:
        ResyncNeeded: nothing can join what a target holds to the stream, and nobody asked for it to be loaded anew.
        SetupError: a target that holds data cannot be loaded beside it, because its tables are not `cdc`'s to replace;
            or something else is being loaded beside it.
    """
    shared = slots.get(shared_slot)
    if shared is not None and (shared.is_lost or not (is_partial or any(_has_position(one) for one in found.values()))):
        shared = None
    aims: dict[str, Aim] = {}
    for name, one in found.items():
        wanted = None if only is None else only[name]
        is_begun = one.beside is not None and one.beside.only_tables is None
        is_beside = wanted is not None or is_begun or (one.was_loaded and anew)
        if is_beside and one.beside is not None and one.beside.only_tables != wanted:
            raise _other_load(name, one.beside.only_tables)
        if one.problem is not None and (wanted is not None or not is_beside):
            raise one.problem
        if wanted is not None and not one.was_loaded:
            raise SetupError(f"target {name} was never loaded, so no table of it can be loaded beside the others")
        if is_beside and not one.config.follows:
            raise SetupError(
                f'target {name}: its tables belong to somebody else (schema = "owned"), so nothing can be loaded '
                f"beside them. `cdc resync TABLE --target {name}` brings a table to what the source has, in place"
            )
        key = generation_key(pipeline) if is_beside else pipeline
        routes = TargetRoutes(one.config, is_beside, wanted)
        if wanted is not None:
            slot = load_slot(shared_slot, name)
        else:
            slot = _slot(name, one, is_beside, shared_slot, shared, slots)
        aims[name] = Aim(name, key, routes, slot)
    return aims


def _slot(
    target: str, found: Found, is_beside: bool, shared_name: str, shared: Slot | None, slots: Mapping[str, Slot]
) -> str:
    """The slot of one target; ``shared`` is `None` where nobody relies on the shared one, or nobody can."""
    own, beside = lane_slot(shared_name, target), load_slot(shared_name, target)
    if is_beside and beside in slots:
        return beside
    if own in slots:
        return own
    if shared is None:
        return shared_name
    if is_beside and found.is_attached:
        return beside  # also where it is gone: the shared one is the present tables'
    row = found.beside if is_beside else found.present
    if row is not None and row.position is not None and _reaches(shared, row.position):
        return shared_name  # this generation was begun on the shared slot
    return own


def _other_load(target: str, tables: frozenset[str] | None) -> SetupError:
    """Something else is being loaded beside the target's tables, or was: there is room for one such load."""
    if tables is None:
        return SetupError(
            f"target {target} is being loaded beside its tables, or that was interrupted. Finish it first: "
            f"`cdc bootstrap --from live --target {target}` (or --from backup, as it was begun)"
        )
    names = ", ".join(sorted(tables))
    again = resync_command(min(tables), target)
    return SetupError(
        f"target {target}: {names} is being built beside the others, or that was interrupted. Finish that first: "
        f"`{again}`"
    )


def _has_position(found: Found) -> bool:
    return any(row is not None and row.position is not None for row in (found.present, found.beside))


def _reaches(slot: Slot, position: Lsn) -> bool:
    """Whether the slot still has everything from a position on."""
    return slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn <= position
