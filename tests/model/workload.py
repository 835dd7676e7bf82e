"""Random transactions over tables of every kind, and how to tell, at any moment, whether a copy of them is whole.

`Workload` draws what it does from a `random.Random`, so that a seed (or hypothesis) repeats it. Every transaction ends
by storing a hash of each table in ``fingerprints``, computed inside the transaction: a reader of a target that compares
the hashes with the tables beside them, in one statement, sees whether the target shows a state that the source had at
some commit, or a half transaction (invariant 2). Transactions have to be written one after the other for that.

The sum of ``accounts`` is `TOTAL` at every commit; ``ledger`` and ``"ledger-copy"`` are equal at every commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from cdc.identifiers import quote, quote_literal

ACCOUNTS = 12
TOTAL = ACCOUNTS * 100

DDL = """
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL, note text);
CREATE TABLE ledger (entry int PRIMARY KEY, amount numeric);
CREATE TABLE "ledger-copy" (amount numeric, entry int PRIMARY KEY);
CREATE TABLE pairs (a int, "Key" text, value timestamptz, PRIMARY KEY ("Key", a));
CREATE TABLE documents (id int PRIMARY KEY, title text, body text, extra text);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL;
CREATE TABLE bag (a int, payload json, word text);
ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE log (line text);
CREATE TABLE parents (id int PRIMARY KEY, name text);
CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents, name text);
CREATE TABLE slugs (id int PRIMARY KEY, slug text NOT NULL UNIQUE);
CREATE TABLE fingerprints ("table" text PRIMARY KEY, hash text);
"""

COLUMNS: Mapping[str, Sequence[str]] = {
    "accounts": ("id", "balance", "note"),
    "ledger": ("entry", "amount"),
    "ledger-copy": ("entry", "amount"),
    "pairs": ("a", "Key", "value"),
    "documents": ("id", "title", "body", "extra"),
    "bag": ("a", "payload", "word"),
    "log": ("line",),
    "parents": ("id", "name"),
    "children": ("id", "parent", "name"),
    "slugs": ("id", "slug"),
}

EMPTY = "TRUNCATE " + ", ".join(map(quote, [*COLUMNS, "fingerprints"])) + ";"

FILL = f"""
INSERT INTO accounts (id, balance, note) SELECT g, 100, 'account ' || g FROM generate_series(1, {ACCOUNTS}) g;
INSERT INTO ledger (entry, amount) SELECT g, g / 7.0 FROM generate_series(1, 10) g;
INSERT INTO "ledger-copy" (amount, entry) SELECT g / 7.0, g FROM generate_series(1, 10) g;
INSERT INTO pairs (a, "Key", value) SELECT g % 3, 'k' || g, timestamptz '2020-01-01 UTC' + g * interval '1 h'
  FROM generate_series(1, 9) g;
INSERT INTO documents (id, title, body, extra) SELECT g, 'title ' || g, repeat(md5(g::text), 300),
  repeat(md5('x' || g), 300) FROM generate_series(1, 6) g;
INSERT INTO bag (a, payload, word) SELECT g % 4, '{{"a": 1,  "a": null}}', 'word' FROM generate_series(1, 8) g;
INSERT INTO log (line) SELECT 'line ' || g FROM generate_series(1, 5) g;
INSERT INTO parents (id, name) SELECT g, 'parent ' || g FROM generate_series(1, 5) g;
INSERT INTO children (id, parent, name) SELECT g, 1 + g % 5, 'child ' || g FROM generate_series(1, 10) g;
INSERT INTO slugs (id, slug) SELECT g, 'slug ' || g FROM generate_series(1, 8) g;
"""


def hash_of(table: str, place: str | None = None, names: Mapping[str, str] | None = None) -> str:
    """A query: the hash of a table's rows, whatever their order.

    ``place`` is its quoted name and ``names`` the names of its columns, where they are not the source's.
    """
    columns = [quote((names or {}).get(column, column)) for column in COLUMNS[table]]
    row = f"ROW({', '.join(f'{column}::text' for column in columns)})::text"
    joined = f"""string_agg(md5({row}), '' ORDER BY md5({row}) COLLATE "C")"""
    return f"SELECT md5(coalesce({joined}, '')) FROM {place or quote(table)}"


STAMP = 'INSERT INTO fingerprints VALUES {} ON CONFLICT ("table") DO UPDATE SET hash = excluded.hash'.format(
    ", ".join(f"({quote_literal(table)}, ({hash_of(table)}))" for table in COLUMNS)
)
"""Stores the hashes; the last statement of every transaction. An unchanged hash is written, too: one more change."""


@dataclass(frozen=True)
class View:
    """How a target names what the workload writes: ``(quoted table, renamed columns)``, absent where it has it not."""

    tables: Mapping[str, tuple[str, Mapping[str, str]]]
    fingerprints: str = "fingerprints"

    @classmethod
    def same(cls) -> View:
        """Everything, under the source's names."""
        return cls({table: (quote(table), {}) for table in COLUMNS})

    def query(self) -> str:
        """One row: the sum of the accounts, the tables that differ from their fingerprint (NULL if none), the position.

        One statement, hence one snapshot.
        """
        accounts, names = self.tables["accounts"]
        compared = " UNION ALL ".join(
            f"SELECT {quote_literal(table)}, ({hash_of(table, place, columns)})"
            for table, (place, columns) in self.tables.items()
        )
        return (
            f"SELECT (SELECT sum({quote(names.get('balance', 'balance'))}) FROM {accounts}),"
            f" (SELECT string_agg(found.name, ', ') FROM ({compared}) AS found (name, hash)"
            f' JOIN {self.fingerprints} AS stored ON stored."table" = found.name'
            " WHERE stored.hash <> found.hash),"
            " (SELECT position::text FROM cdc.target)"
        )


@dataclass(frozen=True)
class Transaction:
    """Statements in order (savepoints among them), and whether they are committed."""

    statements: Sequence[str]
    commits: bool


class Workload:
    """Draws transactions. ``large`` is the most rows of a bulk insert, 0 for none."""

    def __init__(self, random: Random, *, large: int = 0) -> None:
        self._random = random
        self._large = large
        self._operations: Sequence[Callable[[], list[str]]] = (
            self._transfer,
            self._transfer,
            self._merge_accounts,
            self._open_account,
            self._renumber_account,
            self._book,
            self._book,
            self._unbook,
            self._pair,
            self._pair_moves,
            self._document,
            self._document_changes,
            self._document_changes,
            self._document_moves,
            self._document_goes,
            self._bag,
            self._bag_changes,
            self._line,
            self._family,
            self._family_moves,
            self._family_goes,
            self._slug,
            self._slugs_swap,
            self._slug_keys_swap,
            self._truncate,
        )

    def transaction(self) -> Transaction:
        """The next one: one to six operations, some inside subtransactions, some of those rolled back."""
        statements: list[str] = []
        for _ in range(self._random.choice((1, 1, 2, 3, 6))):
            operation = self._random.choice(self._operations)()
            fate = self._random.choice(("plain", "plain", "plain", "kept", "undone", "undone twice"))
            match fate:
                case "kept":
                    operation = ["SAVEPOINT s", *operation, "RELEASE s"]
                case "undone":
                    operation = ["SAVEPOINT s", *operation, "ROLLBACK TO s"]
                case "undone twice":
                    other = self._random.choice(self._operations)()
                    operation = ["SAVEPOINT s", *operation, "SAVEPOINT t", *other, "ROLLBACK TO t", "RELEASE s"]
                    operation += self._transfer()
            statements += operation
        return Transaction([*statements, STAMP], commits=self._random.random() < 0.9)

    # --- accounts: the sum stays

    def _two(self, highest: int) -> tuple[int, int]:
        one = self._random.randint(1, highest)
        other = self._random.randint(1, highest - 1)
        return one, other + (other >= one)

    def _transfer(self) -> list[str]:
        payer, payee = self._two(ACCOUNTS)
        return [
            f"UPDATE accounts SET balance = balance + CASE id WHEN {payer} THEN -7 ELSE 7 END"
            f" WHERE id IN ({payer}, {payee})"
            f" AND (SELECT count(*) FROM accounts WHERE id IN ({payer}, {payee})) = 2"
        ]

    def _merge_accounts(self) -> list[str]:
        gone, heir = self._two(ACCOUNTS)
        return [
            f"UPDATE accounts SET balance = balance + (SELECT balance FROM accounts WHERE id = {gone})"
            f" WHERE id = {heir} AND EXISTS (SELECT FROM accounts WHERE id = {gone})",
            f"DELETE FROM accounts WHERE id = {gone} AND EXISTS (SELECT FROM accounts WHERE id = {heir})",
        ]

    def _open_account(self) -> list[str]:
        return [f"INSERT INTO accounts VALUES ({self._random.randint(1, ACCOUNTS)}, 0, NULL) ON CONFLICT DO NOTHING"]

    def _renumber_account(self) -> list[str]:
        old, new = self._two(ACCOUNTS)
        return [
            f"UPDATE accounts SET id = {new} WHERE id = {old} AND NOT EXISTS (SELECT FROM accounts WHERE id = {new})"
        ]

    # --- ledger: two tables, always equal

    def _book(self) -> list[str]:
        entry, amount = self._random.randint(1, 30), self._random.randint(-500, 500) / 8
        return [
            f"INSERT INTO ledger VALUES ({entry}, {amount})"
            f" ON CONFLICT (entry) DO UPDATE SET amount = ledger.amount + {amount}",
            f'INSERT INTO "ledger-copy" (entry, amount) VALUES ({entry}, {amount})'
            f' ON CONFLICT (entry) DO UPDATE SET amount = "ledger-copy".amount + {amount}',
        ]

    def _unbook(self) -> list[str]:
        first = self._random.randint(1, 30)
        return [
            f"DELETE FROM {table} WHERE entry BETWEEN {first} AND {first + 2}" for table in ("ledger", '"ledger-copy"')
        ]

    # --- a composite key

    def _pair(self) -> list[str]:
        a, key = self._random.randint(0, 3), f"k{self._random.randint(1, 9)}"
        return [
            f"INSERT INTO pairs VALUES ({a}, '{key}', clock_timestamp())"
            ' ON CONFLICT ("Key", a) DO UPDATE SET value = CASE WHEN pairs.value IS NULL THEN excluded.value END'
        ]

    def _pair_moves(self) -> list[str]:
        a, b = self._two(4)
        key = f"k{self._random.randint(1, 9)}"
        return [
            f"UPDATE pairs SET a = {b} WHERE a = {a} AND \"Key\" = '{key}'"
            f" AND NOT EXISTS (SELECT FROM pairs WHERE a = {b} AND \"Key\" = '{key}')",
            f"DELETE FROM pairs WHERE a = {a} AND \"Key\" <> '{key}'",
        ]

    # --- values out of line (hazard 6)

    def _document(self) -> list[str]:
        number = self._random.randint(1, 12)
        return [
            f"INSERT INTO documents VALUES ({number}, 'new', repeat(md5('{self._random.random()}'), 200), NULL)"
            f" ON CONFLICT (id) DO UPDATE SET extra = excluded.body"
        ]

    def _document_changes(self) -> list[str]:
        number = self._random.randint(1, 12)
        change = self._random.choice(
            (
                "title = title || '.'",
                "title = NULL, body = repeat(md5(random()::text), 200)",
                "extra = repeat(md5(random()::text), 250)",
                "extra = 'short'",
                "body = extra, extra = body",
                "body = NULL",
            )
        )
        return [f"UPDATE documents SET {change} WHERE id = {number}"]

    def _document_moves(self) -> list[str]:
        old, new = self._two(12)
        also = self._random.choice(("", ", title = 'moved'", ", body = repeat(md5(random()::text), 300)"))
        return [
            f"UPDATE documents SET id = {new}{also} WHERE id = {old}"
            f" AND NOT EXISTS (SELECT FROM documents WHERE id = {new})"
        ]

    def _document_goes(self) -> list[str]:
        return [f"DELETE FROM documents WHERE id = {self._random.randint(1, 12)}"]

    # --- no key: REPLICA IDENTITY FULL, and inserts only

    def _bag(self) -> list[str]:
        payload = self._random.choice(("NULL", "'{\"a\": 1.0}'", "'{\"a\": 1.00}'", "'[ ]'"))
        word = self._random.choice(("NULL", "'word'", "'other'"))
        count = self._random.choice((1, 1, 3))
        return [
            f"INSERT INTO bag SELECT {self._random.randint(0, 3)}, {payload}, {word} FROM generate_series(1, {count})"
        ]

    def _bag_changes(self) -> list[str]:
        one = f"ctid = (SELECT ctid FROM bag WHERE a = {self._random.randint(0, 3)} ORDER BY word LIMIT 1)"
        change = self._random.choice(
            (f"UPDATE bag SET word = 'changed' WHERE {one}", f"UPDATE bag SET a = a + 1 WHERE {one}")
        )
        return [self._random.choice((f"DELETE FROM bag WHERE {one}", change))]

    def _line(self) -> list[str]:
        if self._large and self._random.random() < 0.1:
            count = self._random.randint(self._large // 2, self._large)
            return [
                "TRUNCATE log",
                f"INSERT INTO log SELECT repeat(md5(g::text), 6) FROM generate_series(1, {count}) g",
            ]
        return [f"INSERT INTO log VALUES ('{self._random.random()}')"]

    # --- a foreign key

    def _family(self) -> list[str]:
        parent, child = self._random.randint(1, 8), self._random.randint(1, 20)
        return [
            f"INSERT INTO parents VALUES ({parent}, 'new') ON CONFLICT DO NOTHING",
            f"INSERT INTO children VALUES ({child}, {parent}, 'new') ON CONFLICT (id) DO UPDATE SET parent = {parent}",
        ]

    def _family_moves(self) -> list[str]:
        old, new = self._two(8)
        return [
            f"INSERT INTO parents VALUES ({new}, 'heir') ON CONFLICT DO NOTHING",
            f"UPDATE children SET parent = {new} WHERE parent = {old}",
            f"UPDATE parents SET name = name || '+' WHERE id = {new}",
        ]

    def _family_goes(self) -> list[str]:
        parent = self._random.randint(1, 8)
        return [f"DELETE FROM children WHERE parent = {parent}", f"DELETE FROM parents WHERE id = {parent}"]

    # --- a unique column, and keys that are exchanged (hazards 10 and 11)

    def _slug(self) -> list[str]:
        number = self._random.randint(1, 12)
        return [
            self._random.choice(
                (
                    f"DELETE FROM slugs WHERE id = {number}",
                    f"INSERT INTO slugs VALUES ({number}, 'slug {self._random.randint(1, 12)}') ON CONFLICT DO NOTHING",
                    f"UPDATE slugs SET slug = slug || '-{self._random.random()}' WHERE id = {number}",
                )
            )
        ]

    def _slugs_swap(self) -> list[str]:
        if self._random.random() < 0.7:
            return self._slug()  # a refused batch is divided down to its transactions, which takes long
        one, other = self._two(12)
        both = f"(SELECT count(*) FROM slugs WHERE id IN ({one}, {other})) = 2"
        slug = "(SELECT slug FROM slugs WHERE id = {})"
        return [
            f"UPDATE slugs SET slug = slug || '|' || {slug.format(other)} WHERE id = {one} AND {both}",
            f"UPDATE slugs SET slug = split_part({slug.format(one)}, '|', 1) WHERE id = {other} AND {both}",
            f"UPDATE slugs SET slug = split_part(slug, '|', 2) WHERE id = {one} AND {both}",
        ]

    def _slug_keys_swap(self) -> list[str]:
        if self._random.random() < 0.5:
            return self._slug()
        one, other = self._two(12)
        return [
            f"UPDATE slugs SET id = -1 WHERE id = {one}",
            f"UPDATE slugs SET id = {one} WHERE id = {other}",
            f"UPDATE slugs SET id = {other} WHERE id = -1",
        ]

    def _truncate(self) -> list[str]:
        if self._random.random() < 0.6:
            return self._line()
        return [
            "TRUNCATE "
            + self._random.choice(
                ("bag", "log", 'ledger, "ledger-copy"', "parents, children", "children", "parents CASCADE", "slugs")
            )
        ]
