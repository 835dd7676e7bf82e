"""An LSN prints, reads, compares and subtracts as PostgreSQL's pg_lsn does."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.lsn import INVALID_LSN, Lsn
from tests.database import Database

LSNS = st.integers(0, 2**64 - 1).map(Lsn)


@given(LSNS)
def test_what_is_printed_is_read_back(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn
    assert isinstance(Lsn.parse(str(lsn)), Lsn)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0/0", 0), ("16/B374D848", 0x16B374D848), ("1/0", 1 << 32), ("FFFFFFFF/FFFFFFFF", 2**64 - 1), ("0/a", 10)],
)
def test_postgresqls_notation_is_read(text: str, number: int) -> None:
    assert Lsn.parse(text) == number
    assert str(Lsn(number)) == text.upper()


@pytest.mark.parametrize(
    "text", ["", "0", "/", "0/", "/0", "1/2/3", " 0/0", "0/0 ", "0/G", "123456789/0", "-1/0", "0/0\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


def test_a_difference_is_a_number_of_bytes() -> None:
    assert Lsn.parse("1/10") - Lsn.parse("0/FFFFFFF0") == 0x20


def test_it_prints_the_same_in_an_f_string_and_a_number_where_one_asks_for_it() -> None:
    lsn = Lsn.parse("16/B374D848")
    assert f"{lsn}" == "16/B374D848"
    assert f"{lsn:>14}" == "   16/B374D848"
    assert f"{lsn:d}" == str(int(lsn))
    assert f"{lsn:x}" == "16b374d848"
    assert repr(lsn) == "Lsn('16/B374D848')"


def test_it_orders_as_a_number_and_the_invalid_one_is_before_all() -> None:
    assert INVALID_LSN < Lsn.parse("0/1") < Lsn.parse("9/0") < Lsn.parse("A/0") < Lsn.parse("10/0")
    assert not INVALID_LSN


def test_it_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Lsn(7))) == Lsn(7)


def test_postgresql_agrees(source: Database) -> None:
    for number in (0, 1, 2**32 - 1, 2**32, 0x16B374D848, 2**64 - 1):
        lsn = Lsn(number)
        text, difference = source.fetch("SELECT %s::pg_lsn::text, %s::pg_lsn - '0/0'::pg_lsn", str(lsn), str(lsn))[0]
        # PostgreSQL 19 pads the lower half with zeros.
        assert Lsn.parse(text) == lsn
        assert difference == number
