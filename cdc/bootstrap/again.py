"""Tables that are loaded already and shall be loaded once more, because somebody asked for it.

Such a table is recorded as ``copying``, like one whose load was interrupted: the run empties it and copies it, and if
it is killed the next one does, whether it is asked again or not. It is emptied also where `cdc` did not create it,
since the operator named it. Tables that no load of ours ever filled are refused: whatever they hold is not ours
(invariant 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cdc.bootstrap.copying import hold_fence
from cdc.bootstrap.targets import Loading
from cdc.errors import ConfigurationError
from cdc.routing.patterns import nearest
from cdc.routing.route import Route
from cdc.target.remedies import resync_command
from cdc.target.session import target_errors
from cdc.target.table_state import mark_copying


@dataclass(frozen=True, slots=True)
class Again:
    """What shall be loaded again: tables of the source (``schema.table``), of one target or of all that have them."""

    tables: tuple[str, ...]
    target: str | None = None


def choose(again: Again, loadings: Mapping[str, Loading]) -> list[tuple[Loading, Route]]:
    """The loaded tables that are meant. From now on this run takes them for tables whose copy is not complete.

    Raises `ConfigurationError` for a target that is not configured and for a table that was never loaded there.
    """
    if again.target is not None and again.target not in loadings:
        raise ConfigurationError(
            f"--target: there is no target {again.target}{_suggestion(again.target, loadings)}; "
            f"the configuration has {', '.join(loadings)}"
        )
    asked = [loading for loading in loadings.values() if again.target in (None, loading.name)]
    chosen: list[tuple[Loading, Route]] = []
    for table in dict.fromkeys(again.tables):
        found = [
            (loading, route)
            for loading in asked
            for route in loading.routes
            if route.source_name == table and loading.state_of(route) is not None
        ]
        if not found:
            known = [route.source_name for loading in asked for route in loading.routes if loading.state_of(route)]
            where = f"target {again.target} has" if again.target is not None else "no target has"
            negation = "not loaded" if again.target is not None else "loaded"
            raise ConfigurationError(f"--again: {where} {negation} a table {table}{_suggestion(table, known)}")
        for loading, route in found:
            if route.keeps_deleted:
                raise ConfigurationError(
                    f"--again: target {loading.name} keeps the rows of {table} that the source has deleted (deletes = "
                    f'"keep"), and they would be lost with the others: run `{resync_command(table, loading.name)}`, '
                    "which lets them stay"
                )
        chosen += found
    for loading, route in chosen:
        state = replace(loading.states[route.source_name], state="copying")
        loading.states = {**loading.states, route.source_name: state}
    return chosen


async def record(chosen: Sequence[tuple[Loading, Route]]) -> None:
    """Record in the targets that these tables are not complete; a target's in one transaction, with its fence."""
    for loading in {loading.name: loading for loading, _ in chosen}.values():
        session = await loading.ready()
        with target_errors("recording what is loaded again", session.where):
            async with session.connection.transaction():
                for of, route in chosen:
                    if of is loading:
                        await mark_copying(session, loading.access.pipeline, route)
                await hold_fence(session.connection, loading.access)


def _suggestion(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    guess = nearest(name, list(known))
    return f"; did you mean {guess}?" if guess else ""
