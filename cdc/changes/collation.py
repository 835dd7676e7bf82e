"""A column's collation by name, with what makes it anew where it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdc.identifiers import quote_literal, quote_qualified

_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


@dataclass(frozen=True, slots=True)
class Collation:
    """A collation that a column has and its type does not.

    ``definition`` is what stands in parentheses behind CREATE COLLATION. ``is_deterministic`` is false where strings of
    different bytes may be equal.
    """

    schema: str
    name: str
    definition: str
    is_deterministic: bool = True

    @property
    def sql_name(self) -> str:
        """``"schema"."name"``."""
        return quote_qualified(self.schema, self.name)


def read_collation(schema: str, row: Mapping[str, object]) -> Collation:
    """A collation from its row of ``pg_collation``, whose columns differ from version to version."""
    provider = str(row["collprovider"])
    # colllocale since 17, colliculocale in 15 and 16; before, both settings hold the locale of ICU.
    locale = row.get("colllocale") or row.get("colliculocale") or row.get("collcollate")
    options = []
    if provider in _PROVIDERS:
        options.append(f"provider = {_PROVIDERS[provider]}")
    if provider == "c":
        options.append(f"lc_collate = {quote_literal(str(row['collcollate']))}")
        options.append(f"lc_ctype = {quote_literal(str(row['collctype']))}")
    else:
        options.append(f"locale = {quote_literal(str(locale))}")
    if row.get("collicurules"):
        options.append(f"rules = {quote_literal(str(row['collicurules']))}")
    is_deterministic = bool(row.get("collisdeterministic", True))
    if not is_deterministic:
        options.append("deterministic = false")
    return Collation(schema, str(row["collname"]), ", ".join(options), is_deterministic)
