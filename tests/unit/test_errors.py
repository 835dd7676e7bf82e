"""The tree of errors: as drawn, decided by type, without a row value."""

from __future__ import annotations

import inspect
import re

import pytest

from cdc import errors
from cdc.errors import BatchRejected, CdcError, ServerError, TableStopped, TerminalError, TransientError
from cdc.lsn import Lsn

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, CdcError) and kind is not CdcError
]
KINDS = [kind for kind in ALL if kind not in (TerminalError, TransientError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]  # it has one
        match = re.match(r"^(\W*)([A-Z]\w+)\s{2,}\S", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        while parents and parents[-1][0] >= depth:
            parents.pop()
        drawn[name] = parents[-1][1] if parents else "Exception"
        parents.append((depth, name))
    kinds: list[type[Exception]] = [CdcError, *ALL]
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in kinds}
    assert drawn == real


@pytest.mark.parametrize("kind", KINDS)
def test_the_type_says_whether_a_retry_can_help(kind: type[CdcError]) -> None:
    assert issubclass(kind, TerminalError) != issubclass(kind, TransientError)


@pytest.mark.parametrize("kind", [kind for kind in [CdcError, *ALL] if kind is not BatchRejected])
def test_an_error_carries_its_sentence_and_what_mends_it(kind: type[CdcError]) -> None:
    server = ServerError("23505", constraint="answers_pkey")
    error = kind("the table answers is stopped", sql="SELECT 1", server=server)
    assert str(error) == "the table answers is stopped"
    assert (error.sql, error.server) == ("SELECT 1", server)
    assert (kind("x").sql, kind("x").server) == (None, None)


def test_errors_about_a_transaction_name_the_table_and_the_transaction() -> None:
    rejected = BatchRejected("x", source_table="public.users", commit_lsn=Lsn(7), xid=3, server=ServerError("23505"))
    stopped = TableStopped("x", source_table="public.users", commit_lsn=Lsn(7), xid=3)
    for error in (rejected, stopped):
        assert (error.source_table, error.commit_lsn, error.xid) == ("public.users", 7, 3)
    assert rejected.server == ServerError("23505")
    assert (TableStopped("x").source_table, TableStopped("x").commit_lsn, TableStopped("x").xid) == (None, None, None)


def test_a_servers_error_says_its_code_and_its_names() -> None:
    assert str(ServerError("57P01")) == "SQLSTATE 57P01"
    assert (
        str(ServerError("23505", schema="public", table="users", column="id", constraint="users_pkey", type="int4"))
        == "SQLSTATE 23505 (table public.users, column id, constraint users_pkey, type int4)"
    )
    assert str(ServerError("23502", table="users")) == "SQLSTATE 23502 (table users)"


def test_invariant_08_a_servers_error_has_no_field_that_could_hold_a_row_value() -> None:
    assert set(ServerError.__slots__) == {"sqlstate", "schema", "table", "column", "constraint", "type"}
