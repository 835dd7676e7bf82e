"""Random tables of random types, nested in each other, with random values: what arrives equals what left, by every way.

An example makes types and tables at the source, lets a following target create them, and moves rows by stream, live
copy and backup; then rows are changed, and the changes are streamed. ``CDC_TEST_MODEL_EXAMPLES`` asks for more examples
(40 is the usual number; this takes a twentieth of it), ``CDC_TEST_MODEL_SECONDS`` for as many as that time allows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.arrivals import Arrivals, arrivals
from tests.conftest import MakeDatabase
from tests.database import Database
from tests.integration.test_types_edges import GROUPS, Sql

SECONDS = float(os.environ.get("CDC_TEST_MODEL_SECONDS", "0"))
EXAMPLES = 100_000 if SECONDS else max(1, int(os.environ.get("CDC_TEST_MODEL_EXAMPLES", "40")) // 20)

TABLES = 5
COLUMNS = 4
ROWS = 5
DEEPEST = 3

NOT_NESTED = ("xml", "tsquery", "oidvector", "int2vector", "aclitem", "money", "regproc", "regoper")
"""Types that not every server has, and those that not every way brings, or not inside of others."""

SCALARS = [
    (name, [value for value in values if not isinstance(value, Sql) and len(value) < 1000])
    for group in ("numbers", "strings", "times", "shapes", "ranges")
    for name, values in GROUPS[group].items()
    if name not in NOT_NESTED
] + [("regtype", ["integer", "-", "text[]"]), ("regclass", ["pg_class", "-"])]
SORTED = [
    one
    for one in SCALARS
    if one[0] in ("int4", "numeric", "text", "timestamptz", "uuid", "date", "bytea", "float8", "int4range")
]

OTHER_OIDS = "CREATE TYPE before_us AS (a int); CREATE TYPE before_too AS ENUM ('a'); CREATE DOMAIN before_all AS int;"


@dataclass(frozen=True)
class Kind:
    """A type: its name in DDL, and how its values are written."""

    sql: str
    form: str
    values: tuple[str, ...] = ()
    parts: tuple[Kind, ...] = ()

    @property
    def delimiter(self) -> str:
        """What stands between the elements of an array of it (``pg_type.typdelim``)."""
        if self.form in ("array", "domain"):
            return self.parts[0].delimiter
        return ";" if self.sql == "box" else ","


@dataclass
class Drawn:
    """Draws types and values; ``ddl`` creates what was drawn."""

    random: Random
    prefix: str
    ddl: list[str] = field(default_factory=list)
    _made: int = 0

    def kind(self, depth: int = DEEPEST, *, is_sorted: bool = False) -> Kind:
        """A type of at most this depth; ``is_sorted`` asks for one over which there can be ranges."""
        forms = ["scalar"] if depth == 0 else ["scalar", "enum", "array", "composite", "domain", "range", "multirange"]
        form = self.random.choice(forms)
        if form == "scalar":
            name, values = self.random.choice(SORTED if is_sorted else SCALARS)
            return Kind(name, form, tuple(values))
        name = self._name()
        if form == "enum":
            labels = ("a", "B b", 'q"{}', "it's")
            self.ddl.append(f"CREATE TYPE {name} AS ENUM ({', '.join(map(_literal, labels))})")
            return Kind(name, form, labels)
        is_sorted = is_sorted or form in ("range", "multirange")
        part = self.kind(depth - 1, is_sorted=is_sorted)
        match form:
            case "array":
                return part if part.sql.endswith("[]") else Kind(f"{part.sql}[]", form, parts=(part,))
            case "domain":
                self.ddl.append(f"CREATE DOMAIN {name} AS {part.sql}")
                return Kind(name, form, parts=(part,))
            case "composite":
                parts = (part, *(self.kind(depth - 1, is_sorted=is_sorted) for _ in range(self.random.randint(0, 2))))
                attributes = [f'"A {place}" {one.sql}' for place, one in enumerate(parts)]
                self.ddl.append(f"CREATE TYPE {name} AS ({', '.join(attributes)})")
                return Kind(name, form, parts=parts)
        self.ddl.append(f"CREATE TYPE {name} AS RANGE (subtype = {part.sql}, multirange_type_name = {name}_many)")
        return Kind(name if form == "range" else f"{name}_many", form, parts=(part,))

    def value(self, kind: Kind) -> str | None:
        """The text of a value, or NULL."""
        if self.random.random() < 0.1:
            return None
        match kind.form:
            case "array":
                count = self.random.choice((0, 1, 3))
                items = kind.delimiter.join(_quoted(self.value(kind.parts[0]), "NULL") for _ in range(count))
                lower = self.random.choice(("", "", f"[-2:{count - 3}]=")) if count else ""
                return f"{lower}{{{items}}}"
            case "composite":
                return "(" + ",".join(_quoted(self.value(part), "") for part in kind.parts) + ")"
            case "domain":
                return self.value(kind.parts[0])
            case "range":
                return self._range(kind)
            case "multirange":
                return self.random.choice(("{}", "{(,)}", f"{{{self._range(kind)}}}"))
        return self.random.choice(kind.values)

    def _range(self, kind: Kind) -> str:
        bound = self.value(kind.parts[0])
        if bound is None:
            return "empty"
        edge = _quoted(bound, "")
        return self.random.choice((f"[{edge},{edge}]", f"[{edge},)", f"(,{edge})", f"(,{edge}]"))

    def _name(self) -> str:
        self._made += 1
        return f"{self.prefix}_{self._made}"


def _quoted(value: str | None, null: str) -> str:
    return null if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass
class Bench:
    runner: asyncio.Runner
    ways: Arrivals
    ends_at: float = 0.0


@pytest.fixture
def bench(source: Database, make_target: MakeDatabase, postgres_binaries: Path, tmp_path: Path) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opening = arrivals(source, make_target, postgres_binaries, tmp_path, target_ddl=OTHER_OIDS)
        ways = runner.run(stack.enter_async_context(opening))
        yield Bench(runner, ways, ends_at=time.monotonic() + SECONDS)
        runner.run(stack.aclose())


@pytest.mark.timeout(600 + SECONDS)
def test_random_values_of_random_types_arrive_as_they_left_by_every_way(bench: Bench) -> None:
    for seed in range(EXAMPLES):
        if SECONDS and time.monotonic() > bench.ends_at:
            return
        print("seed", seed)
        bench.runner.run(check(bench.ways, Random(seed), f"x{seed}"))


async def check(ways: Arrivals, random: Random, prefix: str) -> None:
    drawn = Drawn(random, prefix)
    source = ways.source
    tables = [f"{prefix}_t{place}" for place in range(TABLES)]
    names = [f"public.{table}" for table in tables]
    columns = [f"c{place}" for place in range(COLUMNS)]
    for table in tables:
        kinds = [drawn.kind() for _ in columns]
        definitions = ", ".join(f"{column} {kind.sql}" for column, kind in zip(columns, kinds, strict=True))
        drawn.ddl.append(f"CREATE TABLE {table} (id int PRIMARY KEY, {definitions})")
        for statement in drawn.ddl:
            print(statement)  # shown when it fails
            source.execute(statement)
        drawn.ddl.clear()
        for number in range(1, ROWS + 1):
            row = [drawn.value(kind) for kind in kinds]
            print(table, number, row)
            values = ", ".join(_literal(value) for value in row)
            source.execute(f"INSERT INTO {table} VALUES ({number}, {values})")
    await ways.create(*names)
    await ways.copy_live(*names)
    await ways.restore(*names)
    assert not ways.refused
    await ways.deliver()
    ways.assert_equal(*names)

    listed = ", ".join(columns)
    for table in tables:
        source.execute(
            f"UPDATE {table} SET ({listed}) = (SELECT {listed} FROM {table} o WHERE o.id = {table}.id % {ROWS} + 1);"
            f"ALTER TABLE {table} REPLICA IDENTITY FULL"
        )
        source.execute(f"UPDATE {table} SET id = id + 10 WHERE id > 3; DELETE FROM {table} WHERE id = 2")
    await ways.deliver()
    ways.assert_equal(*names, ways=["stream"])
    for database in (source, *ways.targets.values()):
        database.execute(f"DROP TABLE {', '.join(tables)}")
    await ways.replica.record()


def _literal(value: str | None) -> str:
    return "NULL" if value is None else "E'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
