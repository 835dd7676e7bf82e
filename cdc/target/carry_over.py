"""What a table that takes another's place inherits from it, as statements that are run once it has its name.

Owner, grants (of the table and of its columns, with grant options), row security, replica identity, storage parameters,
what is set on columns (defaults, statistics targets, storage), comments where the new table has none, the ownership of
sequences, membership of publications. Names, not oids, so that it can all be written down before anything moves.

Grants end up exactly as they were: what default privileges gave the new table, and the old one did not have, goes.
The owner's rights on its own table are PostgreSQL's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from cdc import statements
from cdc.identifiers import quote, quote_literal, quote_qualified
from cdc.target.table_swap import Column, Pair, Relation

_IDENTITIES = {"f": "FULL", "n": "NOTHING"}


@dataclass(frozen=True, slots=True)
class Grant:
    """One privilege on a table or one of its columns. ``grantee`` `None` is PUBLIC."""

    column: str | None
    privilege: str
    is_grantable: bool
    grantee: str | None

    def grant_sql(self, table: str) -> str:
        """GRANT on a table, given by its quoted name."""
        option = " WITH GRANT OPTION" if self.is_grantable else ""
        return f"GRANT {self._what} ON {table} TO {self._grantee}{option}"

    def revoke_sql(self, table: str) -> str:
        """REVOKE of the same, and of what the grantee granted on."""
        return f"REVOKE {self._what} ON {table} FROM {self._grantee} CASCADE"

    @property
    def _what(self) -> str:
        return self.privilege if self.column is None else f"{self.privilege} ({quote(self.column)})"

    @property
    def _grantee(self) -> str:
        return "PUBLIC" if self.grantee is None else quote(self.grantee)


async def inheritance(connection: asyncpg.Connection, pairs: Sequence[Pair]) -> list[str]:
    """The statements, to be run when every new table has its present name; the driver's errors pass."""
    both = [(pair.present, pair.new) for pair in pairs if pair.present is not None and pair.new is not None]
    grants: dict[int, set[Grant]] = {}
    for row in await connection.fetch(
        statements.load("target", "swap_grants"), [side.oid for sides in both for side in sides]
    ):
        grant = Grant(row["column_name"], row["privilege_type"], row["is_grantable"], row["grantee"])
        grants.setdefault(row["table_oid"], set()).add(grant)
    found: list[str] = []
    for present, new in both:
        found += _of_table(present, new)
        for column in new.columns:
            old = next((old for old in present.columns if old.name == column.name), None)
            if old is not None:
                found += _of_column(present.sql_name, old, column)
        if present.owner != new.owner:
            found.append(f"ALTER TABLE {present.sql_name} OWNER TO {quote(present.owner)}")
        found += _grants(present.sql_name, grants.get(present.oid, set()), grants.get(new.oid, set()), present.owner)
    return found


def missing_identity(pair: Pair, indexes: Iterable[str]) -> str | None:
    """The index that identifies the present table's rows to those who replicate it, if the new one has none like it."""
    if pair.present is None or pair.present.replica_identity != "i":
        return None
    name = pair.present.identity_index
    return None if name is None or name in indexes else name


def _of_table(present: Relation, new: Relation) -> list[str]:
    table = present.sql_name
    set_already = {option.partition("=")[0] for option in new.options}
    options = [option.partition("=") for option in present.options]
    lacking = [f"{name} = {quote_literal(value)}" for name, _, value in options if name not in set_already]
    found = [f"ALTER TABLE {table} SET ({', '.join(lacking)})"] if lacking else []
    if present.row_security and not new.row_security:
        found.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    if present.force_row_security and not new.force_row_security:
        found.append(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    if present.replica_identity == "i" and present.identity_index is not None:
        found.append(f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX {quote(present.identity_index)}")
    elif present.replica_identity in _IDENTITIES:
        found.append(f"ALTER TABLE {table} REPLICA IDENTITY {_IDENTITIES[present.replica_identity]}")
    if present.comment is not None and new.comment is None:
        found.append(f"COMMENT ON TABLE {table} IS {quote_literal(present.comment)}")
    return found


def _of_column(table: str, old: Column, new: Column) -> list[str]:
    column = quote(old.name)
    changes = []
    if old.default is not None and new.default is None and not new.is_filled:
        changes.append(f"SET DEFAULT {old.default}")
    if old.statistics is not None and new.statistics is None:
        changes.append(f"SET STATISTICS {old.statistics}")
    if old.options and not new.options:
        pairs = [option.partition("=") for option in old.options]
        changes.append(f"SET ({', '.join(f'{name} = {quote_literal(value)}' for name, _, value in pairs)})")
    if old.storage is not None and new.storage is None:
        changes.append(f"SET STORAGE {old.storage}")
    if old.compression is not None and new.compression is None:
        changes.append(f"SET COMPRESSION {old.compression}")
    found = [f"ALTER TABLE {table} {', '.join(f'ALTER COLUMN {column} {change}' for change in changes)}"]
    found = found if changes else []
    if old.comment is not None and new.comment is None:
        found.append(f"COMMENT ON COLUMN {table}.{column} IS {quote_literal(old.comment)}")
    return found


def _grants(table: str, wanted: set[Grant], there: set[Grant], owner: str) -> list[str]:
    """From what the new table has to what the present one has; nothing where both are the same."""
    surplus = {grant for grant in there if grant.grantee != owner} - wanted
    revoked = sorted(grant.revoke_sql(table) for grant in surplus)
    # A revoked privilege of a column is gone with that of the table, so all that is wanted is granted again.
    return [*revoked, *sorted(grant.grant_sql(table) for grant in wanted)] if revoked or wanted - there else []


def own_sequences(sequences: Iterable[tuple[tuple[str, str], tuple[str, str], str]]) -> tuple[list[str], list[str]]:
    """Statements that free sequences of their owners before the tables move, and that give them back afterwards."""
    before, after = [], []
    for sequence, table, column in sequences:
        alter = f"ALTER SEQUENCE {quote_qualified(*sequence)} OWNED BY"
        before.append(f"{alter} NONE")
        after.append(f"{alter} {quote_qualified(*table)}.{quote(column)}")
    return before, after


def publish_again(publications: Iterable[tuple[str, tuple[str, str]]]) -> list[str]:
    """Statements that publish the tables that have taken the place of published ones."""
    return [f"ALTER PUBLICATION {quote(name)} ADD TABLE {quote_qualified(*table)}" for name, table in publications]
