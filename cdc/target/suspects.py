"""The columns whose values a server may refuse for what it lacks itself, as its SQLSTATE says: names, for messages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cdc.changes.relation import Relation
from cdc.changes.translation import names_objects

NOT_SUPPORTED = "0A000"
"""What a server says that was built without libxml, ICU and the like."""

_NO_SUCH_OBJECT = frozenset(("3F000", "42602", "42704", "42725", "42883", "42P01"))
"""What the input functions of the reg* types say of a name: its schema, or what it names, is not there or not alone."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """``objects`` are columns whose values name objects when they are text (reg* types), ``xml`` those of xml."""

    objects: tuple[str, ...] = ()
    xml: tuple[str, ...] = ()

    def told(self, sqlstate: str | None) -> str:
        """What follows the work that was refused, in brackets; empty where these columns explain nothing."""
        if self.objects and sqlstate in _NO_SUCH_OBJECT:
            names = ", ".join(self.objects)
            return f" (whose values in {names} name objects that have to exist there, and be the only ones)"
        if self.xml and sqlstate == NOT_SUPPORTED:
            return (
                f" (whose values in {', '.join(self.xml)} are xml, which a server that was built without libxml does "
                "not take: leave these columns out of the route, or use another build of the server)"
            )
        return ""


NOBODY = Suspects()


def suspects(relation: Relation, names: Collection[str]) -> Suspects:
    """The suspects among those columns of a relation that have these names."""
    columns = [column for column in relation.columns if column.name in names]
    return Suspects(
        tuple(column.name for column in columns if names_objects(column.type)),
        tuple(c.name for c in columns if c.type.holds(lambda one: one.is_builtin and one.name == "xml")),
    )
