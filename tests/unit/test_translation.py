"""Values of the source in the target's words: oids inside of arrays, composites and ranges; and damaged bytes."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes.relation import Attribute, DataType, Relation, ReplicaIdentity
from cdc.changes.row_reader import ValueRefused, row_reader
from cdc.changes.translation import (
    NotAsPlanned,
    ObjectOids,
    Translate,
    UnknownObjects,
    Unlike,
    as_text,
    names_objects,
    translation,
)
from cdc.changes.unreadable import AS_TEXT
from cdc.pgoutput.tuples import NULL as NULL_FIELD
from cdc.pgoutput.tuples import UNCHANGED

INT = DataType(23, "pg_catalog", "int4", "integer")
TEXT = DataType(25, "pg_catalog", "text", "text")
VARCHAR = DataType(1043, "pg_catalog", "varchar", "character varying(9)")
CLASS = DataType(2205, "pg_catalog", "regclass", "regclass")
MOOD = DataType(70_000, "public", "mood", "public.mood", "e", labels=("sad",))
ROW = DataType(70_001, "public", "pair", "public.pair", "c", attributes=(Attribute("a", INT), Attribute("b", MOOD)))

NULL = b"\xff\xff\xff\xff"


def there(data_type: DataType, by: int = 1000) -> DataType:
    """The same type on another server, where what users made has other oids."""
    return replace(
        data_type,
        oid=data_type.oid if data_type.is_builtin else data_type.oid + by,
        element=None if data_type.element is None else there(data_type.element, by),
        attributes=tuple(Attribute(one.name, there(one.type, by)) for one in data_type.attributes),
    )


def array_of(element: DataType, oid: int = 70_100) -> DataType:
    schema = "pg_catalog" if element.is_builtin else "public"
    return DataType(oid, schema, f"_{element.name}", f"{element.sql}[]", "a", element)


def over(base: DataType, kind: str = "d", oid: int = 70_200) -> DataType:
    return DataType(oid, "public", f"{kind}_{base.name}", f"public.{kind}_{base.name}", kind, base)


def sized(value: bytes | None) -> bytes:
    return NULL if value is None else struct.pack(">i", len(value)) + value


def array(oid: int, *elements: bytes | None, lower: int = 1) -> bytes:
    head = struct.pack(">iiIii", 1, int(None in elements), oid, len(elements), lower)
    return head + b"".join(map(sized, elements))


def row(*attributes: tuple[int, bytes | None]) -> bytes:
    return struct.pack(">i", len(attributes)) + b"".join(struct.pack(">I", oid) + sized(v) for oid, v in attributes)


def made(source: DataType, target: DataType | None = None, objects: ObjectOids | None = None) -> Translate:
    found = translation(source, target or there(source), objects or ObjectOids())
    assert found is not None
    return found


def test_the_oid_of_an_array_s_elements_is_the_target_s() -> None:
    translate = made(array_of(VARCHAR), array_of(TEXT))
    value = array(1043, b"sad", None, b"", lower=-3)
    assert translate(value) == array(25, b"sad", None, b"", lower=-3)
    empty = struct.pack(">iiI", 0, 0, 1043)
    assert translate(empty) == struct.pack(">iiI", 0, 0, 25)


def test_containers_in_containers_are_translated_to_the_bottom() -> None:
    several = DataType(1, "public", "m", "public.m", "m", over(array_of(ROW), "r"))
    translate = made(over(several))
    old, new = row((23, b"1234"), (70_000, b"sad")), row((23, b"1234"), (71_000, b"sad"))
    flags = bytes([0x02])

    def value(pair: bytes, oid: int) -> bytes:
        bounded = flags + sized(array(oid, pair, None)) + sized(array(oid))
        lower_only = bytes([0x10]) + sized(array(oid, pair))
        ranges = (bounded, lower_only, bytes([0x01]), bytes([0x18]))
        return struct.pack(">i", 4) + b"".join(map(sized, ranges))

    assert translate(value(old, 70_001)) == value(new, 71_001)


def test_attributes_go_by_their_names_and_those_that_an_older_value_lacks_are_null() -> None:
    turned = replace(there(ROW), attributes=tuple(reversed(there(ROW).attributes)))
    translate = made(ROW, turned)
    assert translate(row((23, b"1234"), (70_000, b"sad"))) == row((71_000, b"sad"), (23, b"1234"))
    assert translate(row((23, None), (70_000, None))) == row((71_000, None), (23, None))
    assert translate(row((23, b"1234"))) == row((71_000, None), (23, b"1234"))


@pytest.mark.parametrize(
    "source", [INT, array_of(INT), over(array_of(MOOD)), over(INT), MOOD, over(array_of(MOOD), "r")]
)
def test_what_is_the_same_on_both_sides_passes_unread(source: DataType) -> None:
    assert translation(source, there(source), ObjectOids()) is None


def test_a_value_with_more_attributes_says_what_helps_where_both_types_are_alike_already() -> None:
    """It was written before attributes were dropped: nothing brings those back, so the rows have to be read again."""
    with pytest.raises(NotAsPlanned, match="attributes were dropped after the row was written: run cdc resync"):
        made(ROW)(row((23, b"1234"), (70_000, b"sad"), (23, None)))
    with pytest.raises(NotAsPlanned, match="made of other parts"):
        made(ROW)(row((25, b"1234"), (70_000, b"sad")))


def test_a_composite_of_equal_oids_passes_unread_unless_asked_to_be_thorough() -> None:
    plain = replace(ROW, attributes=(Attribute("a", INT), Attribute("b", TEXT)))
    assert translation(plain, plain, ObjectOids()) is None
    thorough = translation(plain, plain, ObjectOids(), thorough=True)
    assert thorough is not None
    with pytest.raises(NotAsPlanned):
        thorough(row((23, None), (25, None), (23, None)))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (ROW, replace(ROW, attributes=ROW.attributes[:1]), "lacks the attribute b"),
        (replace(ROW, attributes=ROW.attributes[:1]), ROW, "has the attribute b that public.pair lacks at the source"),
        (ROW, replace(ROW, attributes=(Attribute("a", TEXT), ROW.attributes[1])), "attribute a of the composite type"),
        (array_of(INT), array_of(TEXT), "values of integer cannot be taken as text"),
        (ROW, INT, "values of public.pair cannot be taken as integer"),
    ],
)
def test_types_that_are_not_alike_are_refused_with_the_reason(source: DataType, target: DataType, reason: str) -> None:
    with pytest.raises(Unlike, match=reason):
        translation(source, target, ObjectOids())


@pytest.mark.parametrize("target", [TEXT, replace(MOOD, name="other", oid=5)])
def test_labels_are_labels_of_another_enum_or_strings(target: DataType) -> None:
    assert translation(array_of(MOOD), array_of(target), ObjectOids()) is None
    assert translation(array_of(target), array_of(MOOD), ObjectOids()) is None


def test_objects_have_the_oid_that_their_name_has_at_the_target() -> None:
    objects = ObjectOids()
    source = array_of(CLASS)
    assert names_objects(over(source))
    assert not names_objects(array_of(ROW))
    translate = made(source, source, objects)
    value = array(2205, b"\0\0\0\7", b"\0\0\0\0", b"\0\0\0\x08")
    with pytest.raises(UnknownObjects):
        translate(value)
    objects.collects = True
    translate(value)
    assert objects.missing == {("regclass", 7), ("regclass", 8)}
    objects.collects = False
    objects.known |= {("regclass", 7): 9, ("regclass", 8): 8}
    assert translate(value) == array(2205, b"\0\0\0\x09", b"\0\0\0\0", b"\0\0\0\x08")
    with pytest.raises(NotAsPlanned):
        translate(array(2205, b"\0\0\0"))


def test_an_infinite_interval_is_refused_where_one_side_does_not_know_it() -> None:
    new = DataType(1186, "pg_catalog", "interval", "interval")
    old = replace(new, lacks_infinity=True)
    infinity = struct.pack(">qii", 2**63 - 1, 2**31 - 1, 2**31 - 1)
    minus = struct.pack(">qii", -(2**63), -(2**31), -(2**31))
    longest = struct.pack(">qii", 2**63 - 1, 2**31 - 1, 2**31 - 2)
    assert translation(new, new, ObjectOids()) is translation(old, old, ObjectOids()) is None
    for source, target in ((new, old), (old, new)):
        translate = made(source, target)
        assert translate(longest) == longest
        for value in (infinity, minus):
            with pytest.raises(NotAsPlanned, match="infinite"):
                translate(value)
            with pytest.raises(NotAsPlanned, match="infinite"):
                made(array_of(source), array_of(target))(array(1186, value))


NESTED = over(
    DataType(70_300, "public", "m", "public.m", "m", over(array_of(replace(ROW, attributes=(
        Attribute("x", array_of(MOOD, 70_400)), Attribute("y", over(MOOD, "d", 70_500)), Attribute("z", CLASS),
    ))), "r"))
)  # fmt: skip


def nested_value(oid: int) -> bytes:
    by = oid - 70_000
    pair = row((70_400 + by, array(70_000, b"sad", None)), (70_500 + by, b"sad"), (2205, b"\0\0\0\0"))
    span = bytes([0x02]) + sized(array(70_001 + by, pair, pair)) + sized(array(70_001 + by))
    return struct.pack(">i", 2) + sized(span) + sized(bytes([0x01]))


def test_a_deep_value_comes_out_whole() -> None:
    assert made(NESTED)(nested_value(70_000)) == nested_value(71_000)


@given(st.data())
def test_damaged_bytes_are_refused_or_come_out_whole(data: st.DataObject) -> None:
    """Never another exception, never an endless loop, never a value of which a part was lost."""
    value = bytearray(nested_value(70_000))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(value) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "double"])):
            case "byte":
                value[place] = data.draw(st.integers(0, 255))
            case "cut":
                del value[place:]
            case _:
                value[place:place] = value[: len(value) - place]
        if not value:
            break
    try:
        found = made(NESTED, objects=ObjectOids(collects=True))(bytes(value))
    except NotAsPlanned:
        return
    assert len(found) >= len(value)


def test_a_reader_translates_what_was_sent_wherever_it_picks_rows() -> None:
    """Rows of inserts, deletes and updates alike, NULLs and unchanged values as they are."""
    relation = Relation(1, "public", "t", ReplicaIdentity.DEFAULT, ())

    def shout(value: bytes) -> bytes:
        if value == b"bad":
            raise NotAsPlanned("no")
        return value.upper() + b"!"

    reader = row_reader(relation, b"bbb", (2, 0), (1,), {0: shout, 1: shout})

    def fields(*values: bytes | None) -> bytes:
        shown = (b"u" if v == b"~" else b"n" if v is None else b"b" + sized(v) for v in values)
        return struct.pack(">h", len(values)) + b"".join(shown)

    new = b"I\0\0\0\1N" + fields(b"k", b"left out", b"v")
    assert reader.new_row(new) == [sized(b"V!"), sized(b"K!")]
    assert list(reader.new_rows([new, new])) == [reader.new_row(new)] * 2
    assert reader.old_row(b"D\0\0\0\1K" + fields(b"k", None, None)) == [NULL_FIELD, sized(b"K!")]
    changed = b"U\0\0\0\1K" + fields(b"k", None, None) + b"N" + fields(b"l", b"x", b"~")
    assert reader.old_and_new(changed) == ([NULL_FIELD, sized(b"K!")], [UNCHANGED, sized(b"L!")])
    assert reader.old_and_new(changed)[1][0] is UNCHANGED
    with pytest.raises(ValueRefused) as refused:
        reader.new_row(b"I\0\0\0\1N" + fields(b"bad", None, None))
    assert (refused.value.relation, refused.value.column_index) == (relation, 0)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=4), st.binary(max_size=40))
def test_a_vector_as_text_is_its_numbers_and_damage_is_refused(numbers: list[int], noise: bytes) -> None:
    value = struct.pack(">iiIii", 1, 0, 26, len(numbers), 0) + b"".join(sized(struct.pack(">I", n)) for n in numbers)
    assert as_text("oidvector", value) == " ".join(map(str, numbers)).encode()
    for name in AS_TEXT:
        try:
            as_text(name, noise)
        except NotAsPlanned:
            continue


def test_a_tsquery_as_text_keeps_its_tree_its_weights_and_its_quotes() -> None:
    def lexeme(text: bytes, weights: int = 0, prefix: int = 0) -> bytes:
        return bytes([1, weights, prefix]) + text + b"\0"

    a, b = lexeme(b"a", 8 | 1, 1), lexeme(b"it's \\")
    value = struct.pack(">i", 5) + b"\2\4\0\3" + b + b"\2\1" + b"\2\2" + a + lexeme(b"c")
    with pytest.raises(NotAsPlanned):
        as_text("tsquery", value)  # one item is missing
    value = struct.pack(">i", 6) + value[4:]
    assert as_text("tsquery", value) == rb"(!(('c') & ('a':*AD))) <3> ('it''s \\')"
    assert as_text("tsquery", bytes(4)) == b""
